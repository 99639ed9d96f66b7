"""Reads that need no leader: at a timestamp that is closed where they are served.

A strong read asks the leaders for the present. A read that may be a little older, or is of the
past, is served at once by any node to whose replicas that time is closed
(``replication/closed.py``): all versions at or below it are applied there, and no intent prepared
at or below it is undecided. So such a read is one snapshot, waits for nothing, and its answer says
how old it is at most. Where nothing suitable is closed, the leaders are asked.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from cluster_core.errors import ClockCeiling
from cluster_core.graph.entities import Entity
from cluster_core.graph.records import decode_record
from cluster_core.hlc import COUNTER_BITS, HybridClock
from cluster_core.ports import Engine
from cluster_core.query.host import ReadPoint
from cluster_core.replication.closed import ClosedTimestamps
from cluster_core.replication.host import ReplicationHost
from cluster_core.storage import keys
from cluster_core.storage.mvcc import read_at
from cluster_core.types import Consistency, Digest, Timestamp, group_of, partition_of

__all__ = ["ClosedReads", "Freshness"]


class Freshness(msgspec.Struct, frozen=True):
    """How new a read of the present has to be.

    ``session`` is the time of the client's own last write or read; ``max_staleness_ms`` bounds how
    old the answer may be. Both bind whatever is weaker than ``strong``.
    """

    consistency: Consistency = "strong"
    session: Timestamp | None = None
    max_staleness_ms: int | None = None

    def oldest(self, clock: HybridClock) -> Timestamp | None:
        """The lowest timestamp to serve at; 0: whatever there is, None: only the present."""
        if self.consistency == "strong":
            return None
        if self.consistency == "read_your_writes" and self.session is None:
            return None
        oldest = self.session or 0
        if self.max_staleness_ms is not None:
            try:
                now = clock.now()  # the latest alone stands still at a node that nobody talks to
            except ClockCeiling:
                return None
            oldest = max(oldest, now - (self.max_staleness_ms << COUNTER_BITS), 1)
        return oldest


class ClosedReads:
    """See the module."""

    def __init__(
        self,
        host: ReplicationHost,
        closed: ClosedTimestamps,
        engine: Engine,
        clock: HybridClock,
        partition_count: int,
    ) -> None:
        self._host = host
        self._closed = closed
        self._engine = engine
        self._clock = clock
        self._partition_count = partition_count

    def at(self, timestamp: Timestamp, partitions: Sequence[int]) -> ReadPoint | None:
        """A moment of the past, if it is closed in all of ``partitions``."""
        return self._point(timestamp, partitions) if timestamp <= self._among(partitions) else None

    def newest(self, oldest: Timestamp, partitions: Sequence[int]) -> ReadPoint | None:
        """The newest snapshot that is closed in all of ``partitions``, if it is no older than
        ``oldest``."""
        timestamp = self._among(partitions)
        return self._point(timestamp, partitions) if timestamp >= max(oldest, 1) else None

    def _among(self, partitions: Sequence[int]) -> Timestamp:
        return self._closed.among([group_of(partition) for partition in partitions])

    def _point(self, timestamp: Timestamp, partitions: Sequence[int]) -> ReadPoint:
        """With the indexes of all, as a strong one: a replica that covers it now may be replaced by
        one that does not yet, before the query comes to it."""
        applied = {
            partition: self._closed.of(group_of(partition)).last_index for partition in partitions
        }
        return ReadPoint(timestamp, applied)

    def time_for(self, digest: Digest, oldest: Timestamp) -> Timestamp | None:
        """The newest time at which the partition that ``digest`` names can be read here, if it is
        no older than ``oldest``.

        Timestamps ascend along a log. So a replica that has applied a command at T lacks, of what
        is written at or below T, only what undecided intents will write; without any, it may serve
        T even if that is not closed yet.
        """
        group = group_of(partition_of(digest, self._partition_count))
        replica = self._host.replicas.get(group)
        if replica is None or replica.failed is not None:
            return None
        timestamp = self._closed.of(group).timestamp
        if not replica.intents:
            timestamp = max(timestamp, replica.applied_timestamp)
        return timestamp if timestamp >= oldest else None

    def entity(self, digest: Digest, timestamp: Timestamp) -> tuple[Entity, Timestamp] | None:
        """The entity ``digest`` at a time of :meth:`time_for`, asked in this turn of the loop."""
        group = group_of(partition_of(digest, self._partition_count))
        found = read_at(self._engine, keys.entity(group, digest), timestamp)
        if found is None or not found[1]:
            return None
        return decode_record(digest, *found), timestamp

    def staleness_ms(self, timestamp: Timestamp) -> float | None:
        """How old a snapshot is, by this node's clock; None while its clock cannot tell."""
        try:
            ahead = self._clock.now() - timestamp
        except ClockCeiling:
            return None
        return max(0, ahead >> COUNTER_BITS)

    def staleness_here_ms(self) -> float | None:
        """How old a read of what this node has, without any promise, may be at most."""
        timestamp = self._among(range(self._partition_count))
        return self.staleness_ms(timestamp) if timestamp else None
