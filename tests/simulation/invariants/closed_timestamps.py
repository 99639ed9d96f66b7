"""What is closed stays closed: no entry behind the index of a closed timestamp writes below it.

Every node's newest closed timestamps are looked at, whether it led the group or was told, and every
entry that anybody applies.
"""

from __future__ import annotations

from cluster_core.replication.closed import Point
from cluster_core.storage import keys
from cluster_core.types import META_GROUP, Digest, GroupId, Timestamp
from tests.simulation.invariants.view import Life, ReplicaView, command_of

__all__ = ["ClosedTimestampsHold"]

_VERSIONED = (keys.ENTITY, keys.OUT, keys.IN)


class ClosedTimestampsHold:
    def __init__(self) -> None:
        self.closed: dict[GroupId, Timestamp] = {}
        """The highest timestamp that was seen to be closed, per group."""
        self.changes: set[tuple[Timestamp, int, Digest]] = set()
        """Of every change that was committed: when, in which partition, of which entity."""
        self._written: dict[GroupId, list[Timestamp | None]] = {}
        """Per group, from index 1: the lowest timestamp of a version that the entry writes."""
        self._seen: dict[Life, Point] = {}
        self._points: dict[GroupId, list[Point]] = {}
        """Those whose index lies beyond what was applied when they were seen, and the highest of
        the others."""

    def check(self, replicas: list[ReplicaView]) -> None:
        for view in replicas:
            if view.group != META_GROUP:
                self._follow(view)
        for view in replicas:
            if view.group != META_GROUP:
                self._look_at(view)

    def _look_at(self, view: ReplicaView) -> None:
        point = view.founded.closed.newest(view.group)
        if point == self._seen.get(view.life):
            return
        self._seen[view.life] = point
        self.closed[view.group] = max(self.closed.get(view.group, 0), point.timestamp)
        written = self._written.setdefault(view.group, [])
        for index in range(point.last_index + 1, len(written) + 1):
            self._compare(view, point, index, written[index - 1])
        self._points.setdefault(view.group, []).append(point)

    def _follow(self, view: ReplicaView) -> None:
        written = self._written.setdefault(view.group, [])
        if view.applied <= len(written):
            return
        points = self._points.setdefault(view.group, [])
        for index in range(len(written) + 1, view.applied + 1):
            entry = view.entry(index)
            if entry is None:
                assert index < view.first_kept
                return  # a snapshot brought it; somebody else has the entries
            lowest = self._lowest_written(view.group, entry)
            written.append(lowest)
            for point in points:
                if point.last_index < index:
                    self._compare(view, point, index, lowest)
        behind = [point for point in points if point.last_index <= len(written)]
        ahead = [point for point in points if point.last_index > len(written)]
        self._points[view.group] = ([max(behind)] if behind else []) + ahead

    def _compare(
        self, view: ReplicaView, point: Point, index: int, lowest: Timestamp | None
    ) -> None:
        assert lowest is None or lowest > point.timestamp, (
            f"group {view.group}: {point.timestamp} was closed with index {point.last_index}, "
            f"but entry {index} writes at {lowest}"
        )

    def _lowest_written(self, group: GroupId, entry: bytes) -> Timestamp | None:
        """The lowest timestamp of a version or change that an entry writes."""
        command = command_of(entry)
        if command is None:
            return None
        lowest: Timestamp | None = None
        for key in command.puts[::2]:
            table = key[2:3]
            if table in _VERSIONED:
                timestamp = keys.split_version(key)[1]
            elif table == keys.CHANGE:
                timestamp = int.from_bytes(key[3:11], "big")
                self.changes.add((timestamp, group - 1, key[11:]))
            else:
                continue
            lowest = timestamp if lowest is None else min(lowest, timestamp)
        return lowest
