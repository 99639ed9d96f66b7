"""Which replicas live on this node: it follows the partition table, and its own durable record.

A replica is created when the table wants one here: empty, a learner that waits for its leader. It
is removed when the table has dropped it, which the table does only after the group's committed
configuration let it go: data and log in one range delete, together with the note that its id was
here and is gone. So a replica that left can never be taken for one that remembers its votes, and a
crash in between leaves all of it or nothing.

At the start the record says what there is; what changed meanwhile follows as at any other time.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

import msgspec

from cluster_core.errors import KotobaError
from cluster_core.node.placements import Placements
from cluster_core.placement.table import GroupTable
from cluster_core.ports import DATA, RAFT, Batch, Engine
from cluster_core.raft import UNKNOWN, Configuration
from cluster_core.replication.host import ReplicationHost
from cluster_core.replication.replica import Replica
from cluster_core.replication.snapshots import Receiver
from cluster_core.storage import keys
from cluster_core.types import GroupId, ReplicaId

__all__ = ["Residence", "Resident", "read_resident"]

log = logging.getLogger("kotoba.residence")

LOOK_EVERY_S: Final = 0.05
"""Between two looks at the table; nothing is done when it has not changed."""

NOBODY: Final[ReplicaId] = 0


class Resident(msgspec.Struct, array_like=True, frozen=True):
    """Of one group: the replica that is here, and the last one that was removed."""

    here: ReplicaId = NOBODY
    removed: ReplicaId = NOBODY


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Resident).decode


def read_resident(engine: Engine, group: GroupId) -> Resident | None:
    """What is recorded; None while a founding replica, or none at all, is here."""
    value = engine.get(RAFT, keys.resident(group))
    return None if value is None else _decode(value)


class Residence:
    """See the module. ``founding`` is the table with which the cluster began."""

    def __init__(
        self,
        host: ReplicationHost,
        engine: Engine,
        placements: Placements,
        founding: dict[GroupId, GroupTable],
        incoming: Receiver,
    ) -> None:
        self._host = host
        self._engine = engine
        self._placements = placements
        self._founding = founding
        self._incoming = incoming
        self._tables = placements.tables
        self._done: dict[GroupId, GroupTable] = {}
        """The tables with which this node has done what they want of it."""

    def load(self) -> None:
        """Bring to life what is here."""
        for group in self._tables:
            here = self._resident(group).here
            if here != NOBODY and not self._incoming.load(group):
                self._open(group, here)
            self._placements.refresh()  # the meta group, which knows of the others, is the first

    def open(self, group: GroupId) -> None:
        """What a crash had interrupted is done: ``group`` has a whole replica here."""
        replica = self._open(group, self._resident(group).here)
        self._host.mark(replica)

    def _open(self, group: GroupId, replica: ReplicaId) -> Replica:
        self._host.add(group, replica, self._tables[group].members, self._began(group, replica))
        opened = self._host.find(group)
        assert opened is not None
        return opened

    def _resident(self, group: GroupId) -> Resident:
        recorded = read_resident(self._engine, group)
        if recorded is not None:
            return recorded
        return Resident(here=self._founding[group].replica_at(self._host.node_id) or NOBODY)

    def _began(self, group: GroupId, replica: ReplicaId) -> Configuration:
        """With which configuration a replica began: one that was added learns it from its log."""
        table = self._founding[group]
        return (
            Configuration.of(table.voters, table.learners) if replica in table.members else UNKNOWN
        )

    async def run(self) -> None:
        """Follow the table until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                self._placements.refresh()
                self._follow_all()
            except KotobaError as error:
                log.debug("the replicas of this node, next time: %s", error.detail)
            except Exception:
                log.exception("following the partition table failed")

    def _follow_all(self) -> None:
        if self._host.storage_error is not None:
            return
        for group, table in self._tables.items():
            if self._done.get(group) is not table and self._follow(group, table):
                self._done[group] = table

    def _follow(self, group: GroupId, table: GroupTable) -> bool:
        """Do what ``table`` wants of this node; False when it is not possible yet."""
        if self._incoming.replaces(group):
            return False
        replica = self._host.find(group)
        if replica is not None and replica.id not in table.members:
            if replica.is_leader:
                return False  # it hands over
            self._remove(replica)
            replica = None
        wanted = table.replica_at(self._host.node_id)
        if replica is None and wanted is not None:
            self._create(group, wanted)
            return True
        return wanted is None or replica is None or replica.id == wanted

    def _create(self, group: GroupId, replica: ReplicaId) -> None:
        removed = self._resident(group).removed
        assert replica > removed, "an id that left does not return"
        log.info("group %d: replica %d begins here", group, replica)
        batch = self._engine.batch()
        self._record(batch, group, Resident(replica, removed))
        self._host.write(batch)
        self._open(group, replica)

    def _remove(self, replica: Replica) -> None:
        log.info("group %d: replica %d leaves", replica.group, replica.id)
        self._incoming.forget(replica.group)
        self._host.remove(replica)
        batch = self._engine.batch()
        prefix = keys.group_prefix(replica.group)
        for family in (DATA, RAFT):
            batch.delete_range(family, prefix, keys.after(prefix))
        self._record(batch, replica.group, Resident(removed=replica.id))
        self._host.write(batch)

    def _record(self, batch: Batch, group: GroupId, resident: Resident) -> None:
        batch.put(RAFT, keys.resident(group), _encode(resident))
