"""A failure detector: which nodes are active, suspected or failed, by when they were last heard.

Pure: time is an argument. It informs status and events; it moves no data and votes for nobody.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

import msgspec

from cluster_core.config import MembershipConfig
from cluster_core.types import NodeId

__all__ = ["FailureDetector", "State", "Transition"]

State = Literal["active", "suspected", "failed"]

BROKEN_MS: Final = 300
"""A stream that broke and does not stand again within this time makes its node suspected: the
process is gone, or the way to it."""


class Transition(msgspec.Struct, frozen=True):
    node: NodeId
    before: State
    after: State


class _Seen(msgspec.Struct):
    heard: float
    broken: float | None = None
    state: State = "active"


class FailureDetector:
    """``members`` are the other nodes; times are seconds of one monotonic clock."""

    def __init__(self, config: MembershipConfig, members: Iterable[NodeId], now: float) -> None:
        self._config = config
        self._seen = {node: _Seen(now) for node in sorted(members)}

    def state(self, node: NodeId) -> State:
        return self._seen[node].state

    def heard(self, node: NodeId, now: float) -> None:
        """Anything came from ``node``, or its stream stands."""
        seen = self._seen.get(node)
        if seen is not None:
            seen.heard = now
            seen.broken = None

    def lost(self, node: NodeId, now: float) -> None:
        """The stream to or from ``node`` broke."""
        seen = self._seen.get(node)
        if seen is not None and seen.broken is None:
            seen.broken = now

    def tick(self, now: float) -> list[Transition]:
        """The changes since the last tick, by node."""
        transitions = []
        for node, seen in self._seen.items():
            after = self._state_at(seen, now)
            if after != seen.state:
                transitions.append(Transition(node, seen.state, after))
                seen.state = after
        return transitions

    def _state_at(self, seen: _Seen, now: float) -> State:
        silent_ms = (now - seen.heard) * 1000
        if silent_ms >= self._config.fail_after_ms:
            return "failed"
        broken_ms = 0.0 if seen.broken is None else (now - seen.broken) * 1000
        if silent_ms >= self._config.suspect_after_ms or broken_ms >= BROKEN_MS:
            return "suspected"
        return "active"
