"""History: which versions of the past are kept, and how the rest is collected.

Each partition has a *horizon*, a timestamp that its leader moves forward by entries of the log, so
that at one applied index every replica has the same one. Kept are all versions above the horizon,
and for each key the newest at or below it unless that is a tombstone: exactly what reads at the
horizon or later can see. A read below the horizon is refused, by whoever has applied it.

- A horizon is never above what is closed and applied at its leader, so no version at or below an
  applied horizon is ever added: what this replica decides to collect stays decided.
- Each replica collects on its own, in steps that are short, and only below a horizon that it has
  applied. A read looks at the horizon once more when it has read everything: if it had been
  overtaken by a collection, it finds out there.
- Of one key the tombstone goes together with the last version below it, or after it: a crash, or a
  read between two steps, never brings a deleted entity back to life.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from struct import Struct
from typing import Final

from cluster_core.config import ClusterConfig
from cluster_core.errors import KotobaError
from cluster_core.graph.records import record_version
from cluster_core.hlc import COUNTER_BITS, HybridClock
from cluster_core.ports import DATA, RAFT, Batch, Engine
from cluster_core.replication.closed import ClosedTimestamps
from cluster_core.replication.host import ReplicationHost
from cluster_core.replication.replica import Replica
from cluster_core.storage import keys, mvcc
from cluster_core.types import META_GROUP, GroupId, Timestamp

__all__ = ["Collection", "KeptSieve", "Retention", "Sieve", "kept_pairs"]

log = logging.getLogger("kotoba.history")

VERSIONED: Final = (keys.ENTITY, keys.IN, keys.LABEL, keys.OUT, keys.PROPERTY)
"""The tables whose keys end in an inverted timestamp."""

ADVANCES: Final = 16
"""A horizon moves this often in the time of one retention: so much more than that is kept at most,
and an idle partition costs no more entries."""

STEP_PAIRS: Final = 512
"""Pairs that one step looks at: a millisecond or two."""

PAUSE_S: Final = 0.02
"""Between two steps: a collection takes a tenth of a core at most, for some 25,000 pairs/s."""

LOOK_EVERY_S: Final = 0.5
"""Between two looks at whether there is anything to do."""

_U64: Final = Struct(">Q")
_AFTER_VERSION: Final = b"\0"


class Sieve:
    """Tells of the pairs of a versioned table, given in key order, which are kept."""

    __slots__ = ("_done", "_oldest")

    def __init__(self, horizon: Timestamp, done: bytes = b"") -> None:
        self._oldest = _U64.pack(keys.TIMESTAMP_MAX - horizon)
        self._done = done

    @property
    def done(self) -> bytes:
        """The user key whose newest version at or below the horizon was seen last."""
        return self._done

    def keeps(self, key: bytes, value: bytes) -> bool:
        if key[-8:] < self._oldest:
            return True
        if key[:-8] == self._done:
            return False
        self._done = key[:-8]
        return bool(value)


def kept_pairs(engine: Engine, group: GroupId, horizon: Timestamp) -> Iterator[tuple[bytes, bytes]]:
    """All pairs of a group that are kept at ``horizon``, in key order, however far its collection
    has come: what two replicas with the same applied index have in common."""
    prefix = keys.group_prefix(group)
    keeps = KeptSieve(engine, group, horizon)
    for key, value in engine.scan(DATA, prefix, keys.after(prefix)):
        if keeps(key, value):
            yield key, value


class KeptSieve:
    """Tells of all pairs of a group, given in key order, which are kept at ``horizon``. Those of a
    scan that was opened in the past too, as long as nothing above ``horizon`` is collected."""

    def __init__(self, engine: Engine, group: GroupId, horizon: Timestamp) -> None:
        self._engine = engine
        self._group = group
        self._horizon = horizon
        self._sieve = Sieve(horizon)

    def __call__(self, key: bytes, value: bytes) -> bool:
        table = key[2:3]
        if table in VERSIONED:
            return self._sieve.keeps(key, value)
        if table == keys.CHANGE:
            timestamp: Timestamp = _U64.unpack_from(key, 3)[0]
            return timestamp > self._horizon
        if table == keys.VERSION:
            return _keeps_pointer(self._engine, self._group, key[3:], value, self._horizon)
        return True


def _keeps_pointer(
    engine: Engine, group: GroupId, version: bytes, entity: bytes, horizon: Timestamp
) -> bool:
    """A pointer is kept as long as the version that it leads to."""
    below = False
    for timestamp, record in mvcc.versions(engine, keys.entity(group, entity)):
        if record and record_version(record) == version:
            return timestamp > horizon or not below
        below = below or timestamp <= horizon
    return False


class Collection:
    """One pass over a replica's tables, below one horizon; in steps, so that it can pause."""

    def __init__(self, engine: Engine, group: GroupId, horizon: Timestamp) -> None:
        self.horizon = horizon
        self.collected = 0
        """Pairs that were given up."""
        self._engine = engine
        self._group = group
        self._tables = list(VERSIONED)
        self._position = b""
        self._done = b""
        self._begun = False

    def step(self) -> bool:
        """Collect a little more; False when the pass is complete."""
        batch = self._engine.batch()
        if not self._begun:
            self._begun = True
            changes = keys.table_prefix(self._group, keys.CHANGE)
            batch.delete_range(DATA, changes, changes + _U64.pack(self.horizon + 1))
        elif self._tables:
            self._sift(batch, self._tables[0])
        else:
            batch.put(RAFT, keys.collected(self._group), _U64.pack(self.horizon))
            self._engine.write(batch)
            return False
        if len(batch):
            self._engine.write(batch)
        return True

    def _sift(self, batch: Batch, table: bytes) -> None:
        prefix = keys.table_prefix(self._group, table)
        sieve = Sieve(self.horizon, self._done)
        tombstone = b""  # waits for the versions below it to be given up with it
        looked_at = 0
        begin = self._position
        scan = self._engine.scan(DATA, self._position or prefix, keys.after(prefix))
        while pairs := scan.fetch():
            for key, value in pairs:
                if tombstone and key[:-8] != tombstone[:-8]:
                    self._give_up(batch, table, tombstone, b"")
                    tombstone = b""
                newest_below = sieve.done != key[:-8]
                if not sieve.keeps(key, value):
                    if newest_below:
                        tombstone = key
                    else:
                        self._give_up(batch, table, key, value)
                self._position = key + _AFTER_VERSION
            looked_at += len(pairs)
            if looked_at >= STEP_PAIRS and (tombstone != begin or len(batch)):
                self._done = sieve.done
                if tombstone:  # not all below it was seen: begin there again
                    self._position, self._done = tombstone, b""
                return
        if tombstone:
            self._give_up(batch, table, tombstone, b"")
        self._tables.pop(0)
        self._position = self._done = b""

    def _give_up(self, batch: Batch, table: bytes, key: bytes, value: bytes) -> None:
        batch.delete(DATA, key)
        self.collected += 1
        if table == keys.ENTITY and value:
            version = record_version(value)
            if version != key[3:35]:  # the first version needs no pointer
                batch.delete(DATA, keys.version(self._group, version))


class Retention:
    """Moves the horizons of the partitions that are led here, and collects in all that are here."""

    def __init__(
        self,
        host: ReplicationHost,
        closed: ClosedTimestamps,
        engine: Engine,
        clock: HybridClock,
        config: ClusterConfig,
    ) -> None:
        self._host = host
        self._closed = closed
        self._engine = engine
        self._clock = clock
        self._retention = config.replication.history_retention_ms << COUNTER_BITS
        self._deadline_s = config.limits.timeout_ms / 1000

    async def run(self) -> None:
        """Look after all partitions until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            for replica in list(self._host.replicas.values()):
                if replica.group == META_GROUP or replica.failed is not None:
                    continue
                try:
                    self._advance(replica)
                    await self._collect(replica)
                except KotobaError as error:
                    log.debug("group %d, next time: %s", replica.group, error.detail)
                except Exception:
                    log.exception("collecting in group %d failed", replica.group)

    def _advance(self, replica: Replica) -> None:
        """Propose a later horizon, where this node leads and it is worth an entry."""
        evaluation = replica.evaluation
        if evaluation is None:
            return
        wanted = min(self._clock.latest - self._retention, self._closed.of(replica.group).timestamp)
        if wanted <= evaluation.horizon + self._retention // ADVANCES:
            return
        draft = replica.draft()
        draft.advance(self._clock.now())
        draft.move_horizon(wanted)
        deadline = asyncio.get_running_loop().time() + self._deadline_s
        replica.propose(draft, deadline).add_done_callback(_observe)

    async def _collect(self, replica: Replica) -> None:
        """Everything below the horizon that is applied here now."""
        if replica.comparing or replica.horizon <= self._collected(replica.group):
            return
        collection = Collection(self._engine, replica.group, replica.horizon)
        while self._host.replicas.get(replica.group) is replica and replica.failed is None:
            if not collection.step():
                log.debug("group %d: %d pairs collected", replica.group, collection.collected)
                return
            await asyncio.sleep(PAUSE_S)

    def _collected(self, group: GroupId) -> Timestamp:
        value = self._engine.get(RAFT, keys.collected(group))
        return 0 if value is None else int.from_bytes(value, "big")


def _observe(proposed: asyncio.Future[Timestamp]) -> None:
    """What became of it is seen at the next look."""
    if not proposed.cancelled():
        proposed.exception()
