"""Which members are alive, as far as this node can tell. Pure: times come in, transitions go out.

::

            silence > suspect_after, or the            silence > fail_after
            stream broke 300 ms ago
    active ---------------------------------> suspected ------------------> failed
       ^                                          |                            |
       +------------------ heard ----------------+----------- heard -----------+

A detector informs; it decides nothing: Raft keeps its members whatever is seen here. Times are
seconds of one monotonic clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

import msgspec

from cluster_core.config import MembershipConfig
from cluster_core.types import NodeId

__all__ = ["FailureDetector", "MemberState", "Transition"]

MemberState = Literal["active", "suspected", "failed"]

RECONNECT_S: Final = 0.3
"""A broken stream that stands again within this time was no news: a flaky link, a quick restart."""


class Transition(msgspec.Struct, frozen=True):
    """``node`` was taken for ``before``, and now for ``after``."""

    node: NodeId
    before: MemberState
    after: MemberState

    @property
    def event(self) -> str:
        """The type of the cluster event that tells of it."""
        if self.after == "active":
            return "NodeRecovered"
        return "NodeSuspected" if self.after == "suspected" else "NodeFailed"


class _Member:
    __slots__ = ("heard_at", "lost_at", "state")

    def __init__(self, now: float) -> None:
        self.state: MemberState = "active"
        self.heard_at = now
        self.lost_at: float | None = None
        """When its stream broke; None once it was heard again."""


class FailureDetector:
    """Watches the other members of a cluster. A new member is active until it has been silent."""

    def __init__(self, config: MembershipConfig, members: Iterable[NodeId], now: float) -> None:
        self._suspect_s = config.suspect_after_ms / 1000
        self._fail_s = config.fail_after_ms / 1000
        self._members: dict[NodeId, _Member] = {}
        self.set_members(members, now)

    def set_members(self, members: Iterable[NodeId], now: float) -> None:
        """Watch these nodes from now on; those that were watched before keep their state."""
        self._members = {
            node: self._members.get(node) or _Member(now) for node in sorted(set(members))
        }

    def heard(self, node: NodeId, now: float) -> None:
        """Something came from ``node``, or its stream stands."""
        member = self._members.get(node)
        if member is not None:
            member.heard_at = max(member.heard_at, now)
            member.lost_at = None

    def lost(self, node: NodeId, now: float) -> None:
        """A stream to or from ``node`` broke."""
        member = self._members.get(node)
        if member is not None and member.lost_at is None:
            member.lost_at = now

    def tick(self, now: float) -> list[Transition]:
        """What changed since the last call, in the order of the nodes' names."""
        transitions = []
        for node, member in self._members.items():
            after = self._judge(member, now)
            if after != member.state:
                transitions.append(Transition(node, member.state, after))
                member.state = after
        return transitions

    def state(self, node: NodeId) -> MemberState:
        """As of the last tick. A node that is not watched is ourselves: active."""
        member = self._members.get(node)
        return member.state if member is not None else "active"

    def states(self) -> dict[NodeId, MemberState]:
        """Of all watched nodes, as of the last tick."""
        return {node: member.state for node, member in self._members.items()}

    def _judge(self, member: _Member, now: float) -> MemberState:
        silence = now - member.heard_at
        if silence > self._fail_s:
            return "failed"
        broken = member.lost_at is not None and now - member.lost_at >= RECONNECT_S
        return "suspected" if broken or silence > self._suspect_s else "active"
