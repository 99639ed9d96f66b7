"""The hybrid clock never goes back: not at a node, not in its next life, not along a group's log.

A crash may forget what was merged and not yet covered by the durable ceiling, and nothing else.
"""

from __future__ import annotations

from cluster_core.types import GroupId, Timestamp
from tests.simulation.invariants.view import ReplicaView, command_of

__all__ = ["ClockMonotonicity"]


class ClockMonotonicity:
    def __init__(self) -> None:
        self._clocks: dict[tuple[str, int], Timestamp] = {}
        self._kept: dict[str, Timestamp] = {}
        """Of each node: what it was seen to have given or promised, in whatever life."""
        self._logs: dict[GroupId, tuple[int, Timestamp]] = {}
        """Per group: the index that was looked at last, and the highest timestamp up to it."""

    def check(self, replicas: list[ReplicaView]) -> None:
        for view in replicas:
            life = (view.node, view.incarnation)
            before = self._clocks.get(life, 0)
            assert view.clock >= before, f"{view.node}: the clock went back"
            self._clocks[life] = view.clock
            kept = self._kept.get(view.node, 0)
            assert view.clock >= kept, f"{view.node}: the clock went back in a restart"
            self._kept[view.node] = max(kept, min(view.clock, view.ceiling))
            self._follow(view)

    def _follow(self, view: ReplicaView) -> None:
        seen, latest = self._logs.get(view.group, (0, 0))
        for index in range(seen + 1, view.applied + 1):
            entry = view.entry(index)
            if entry is None:
                assert index < view.first_kept
                return  # a snapshot brought it; somebody else has the entries
            command = command_of(entry)
            if command is not None and view.group != 0:
                timestamp = command.timestamp
                assert timestamp > latest, (
                    f"group {view.group}, index {index}: timestamp {timestamp} after {latest}"
                )
                assert view.clock >= timestamp, f"{view.node}: applied a time ahead of its clock"
                latest = timestamp
            self._logs[view.group] = (index, latest)
