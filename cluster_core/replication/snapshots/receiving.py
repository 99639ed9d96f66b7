"""The receiver of snapshots: whom it admits, what it stages, when a replica is replaced.

A few transfers at a time, and no faster than the node's configuration says; other senders come
again. A chunk is on the disk before it is answered. When all are there and verified, the replica is
withdrawn from service, replaced (``staging.py``), and given back with the same Raft state machine:
it has kept answering heartbeats and votes meanwhile, by the log that it had before. That is safe,
for until the new state is durable nobody was told that it is here, and all that was acknowledged
before is in the old log; and what is durable then is at least as up-to-date (§5.4.1), so a node
that crashes in between and votes by the snapshot's last entry refuses nobody wrongly.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Final

import msgspec

from cluster_core.config import ReplicationConfig
from cluster_core.errors import (
    Conflict,
    InvalidRequest,
    KotobaError,
    Overloaded,
    Refused,
    StorageFull,
)
from cluster_core.hlc import HybridClock
from cluster_core.ports import Engine
from cluster_core.raft.membership import decode_configuration
from cluster_core.replication.host import ReplicationHost
from cluster_core.replication.log_store import LogStore
from cluster_core.replication.replica import Replica
from cluster_core.replication.snapshots.messages import (
    Begin,
    Chunk,
    Finish,
    Header,
    Position,
    Request,
    decode_request,
    encode,
    is_intact,
)
from cluster_core.replication.snapshots.staging import Manifest, Staging
from cluster_core.types import GroupId

__all__ = ["Receiver"]

log = logging.getLogger("kotoba.snapshots")

IDLE_S: Final = 60.0
"""A transfer that brings nothing for so long is given up, and what it brought removed. Twice as
long as a sender tries to go on."""

STALLED_S: Final = 5.0
"""A transfer that brings nothing for so long stands in the way of no other one."""


class _Transfer:
    """One transfer that this node takes in, or has all of and is replacing its replica by."""

    __slots__ = ("seen", "staging", "task")

    def __init__(self, staging: Staging, now: float) -> None:
        self.staging = staging
        self.seen = now
        self.task: asyncio.Task[None] | None = None
        """Verifies and replaces, once all is there."""

    @property
    def id(self) -> bytes:
        return self.staging.manifest.transfer


class Receiver:
    """The receiving side of one node. ``open_replica(group)`` brings a replica to life from what
    the engine holds, after a replacement that an earlier process had begun."""

    def __init__(
        self,
        host: ReplicationHost,
        engine: Engine,
        clock: HybridClock,
        config: ReplicationConfig,
        cluster_id: str,
        open_replica: Callable[[GroupId], None],
    ) -> None:
        self._host = host
        self._engine = engine
        self._clock = clock
        self._config = config
        self._cluster_id = cluster_id
        self._open_replica = open_replica
        self._transfers: dict[GroupId, _Transfer] = {}
        self._free_at = 0.0
        """When the next chunk may be answered, by the rate."""
        self.installed = 0
        """Replicas replaced by a snapshot since the start."""

    # Starting and stopping.

    def load(self, group: GroupId) -> bool:
        """Look for what an earlier process left of ``group``. True when its replica is being
        replaced: it must not be brought to life, and comes by ``open_replica``."""
        staging = Staging.load(self._engine, group, self._host.write, self._host.synced)
        if staging is None:
            return False
        transfer = _Transfer(staging, asyncio.get_running_loop().time())
        self._transfers[group] = transfer
        if staging.manifest.replacing:
            self._run(transfer, self._resume(transfer))
            return True
        return False

    async def close(self) -> None:
        tasks = [one.task for one in self._transfers.values() if one.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def tidy(self) -> None:
        """Remove what was staged of transfers that bring nothing any more."""
        now = asyncio.get_running_loop().time()
        for transfer in list(self._transfers.values()):
            if transfer.task is None and now - transfer.seen > IDLE_S:
                self._drop(transfer)

    def replaces(self, group: GroupId) -> bool:
        """Whether the replica of ``group`` is being replaced, or about to be: it must stay."""
        transfer = self._transfers.get(group)
        return transfer is not None and transfer.task is not None

    def forget(self, group: GroupId) -> None:
        """The replica of ``group`` is removed, and with it what was staged for it."""
        assert not self.replaces(group)
        self._transfers.pop(group, None)

    # Requests.

    async def serve(self, body: bytes) -> bytes:
        """Answer a request of a sender. Raises a KotobaError to refuse it."""
        try:
            request = decode_request(body)
        except msgspec.DecodeError:
            raise InvalidRequest("this is no part of a snapshot", errors=[]) from None
        return encode(await self._position(request))

    async def _position(self, request: Request) -> Position:
        header = request.header
        if header.cluster_id != self._cluster_id:
            raise Refused(f"this node belongs to the cluster {self._cluster_id}")
        self._clock.merge(header.clock)
        transfer = self._transfers.get(header.offer.group)
        if transfer is not None and transfer.task is not None:
            return self._busy(transfer, header)
        replica = self._replica_of(header)
        replica.raft.step(header.offer)
        self._host.mark(replica)
        if replica.raft.commit >= header.offer.index and not replica.raft.distrusted:
            await self._host.synced()
            return Position(0, installed=True)
        if header.offer.term < replica.raft.term or not replica.raft.wants(header.offer):
            raise Conflict("this replica does not want that snapshot")
        if isinstance(request, Begin):
            return self._begin(replica, request)
        if isinstance(request, Chunk):
            return await self._add(self._known(header), request)
        return self._finish(replica, self._known(header), request)

    def _replica_of(self, header: Header) -> Replica:
        replica = self._host.find(header.offer.group)
        if replica is None or replica.id != header.offer.target:
            raise Conflict("there is no such replica here")
        if replica.members.get(header.offer.source) != header.sender:
            raise Refused(f"{header.sender} does not have that replica")
        return replica

    def _busy(self, transfer: _Transfer, header: Header) -> Position:
        if transfer.id != header.transfer:
            raise Overloaded("this replica is being replaced by another snapshot")
        return Position(transfer.staging.next)

    def _known(self, header: Header) -> _Transfer:
        transfer = self._transfers.get(header.offer.group)
        if transfer is None or transfer.id != header.transfer:
            raise Conflict("this transfer is not known here (any more)")
        transfer.seen = asyncio.get_running_loop().time()
        return transfer

    def _begin(self, replica: Replica, request: Begin) -> Position:
        header, group = request.header, replica.group
        transfer = self._transfers.get(group)
        if transfer is None or transfer.id != header.transfer:
            self._admit(group)
            manifest = Manifest(header.transfer, header.offer, request.configuration)
            staging = Staging(self._engine, self._host.write, self._host.synced, manifest)
            staging.begin()
            transfer = _Transfer(staging, asyncio.get_running_loop().time())
            self._transfers[group] = transfer
        return Position(transfer.staging.next)

    def _admit(self, group: GroupId) -> None:
        self._require_room(1)
        now = asyncio.get_running_loop().time()
        under_way = sum(
            one.task is not None or now - one.seen < STALLED_S
            for other, one in self._transfers.items()
            if other != group
        )
        if under_way >= self._config.snapshots_incoming_max:
            raise Overloaded("other snapshots are being taken in")

    async def _add(self, transfer: _Transfer, chunk: Chunk) -> Position:
        staging = transfer.staging
        if chunk.number > staging.next:
            raise Conflict("a part of the snapshot is missing")
        if not is_intact(chunk.pairs, chunk.checksum):
            raise Conflict("a part of the snapshot does not have its checksum")
        if chunk.number == staging.next:
            self._require_room(1)
            staging.add(chunk.checksum, chunk.pairs)
            await self._pace(len(chunk.pairs))
        await self._host.synced()
        return Position(chunk.number + 1)

    async def _pace(self, size: int) -> None:
        """Chunks are answered no faster than the rate: a sender waits for the answer."""
        now = asyncio.get_running_loop().time()
        self._free_at = max(now, self._free_at) + size / self._config.snapshot_bytes_per_s
        await asyncio.sleep(self._free_at - now)

    def _require_room(self, chunks: int) -> None:
        wanted = chunks * self._config.snapshot_chunk_bytes
        if not self._engine.has_room() or self._engine.disk_free_bytes() < wanted:
            raise StorageFull("there is no room for a snapshot on this node's disk")

    def _finish(self, replica: Replica, transfer: _Transfer, request: Finish) -> Position:
        staging = transfer.staging
        if staging.next != request.chunks:
            raise Conflict("a part of the snapshot is missing")
        self._require_room(request.chunks)  # once more, for the state that is made of them
        self._run(transfer, self._replace(replica, transfer, request))
        return Position(staging.next)

    # Replacing a replica.

    async def _replace(self, replica: Replica, transfer: _Transfer, request: Finish) -> None:
        staging = transfer.staging
        if not await staging.verify(request.chunks, request.digest):
            log.warning("group %d: a snapshot does not have its digest", replica.group)
            self._drop(transfer)
        elif not replica.raft.begin_restore(staging.manifest.offer):
            self._drop(transfer)
        else:
            self._host.mark(replica)
            await self._host.synced()
            self._host.withdraw(replica)
            if replica.raft.distrusted:
                await self._rebuild(replica, staging)
            else:
                await staging.replace(replica.log)
                self._host.renew(replica, decode_configuration(staging.manifest.configuration))
            del self._transfers[replica.group]
            self._note_installed(staging)

    async def _rebuild(self, replica: Replica, staging: Staging) -> None:
        """Of a distrusted replica all is made anew from the disk, as by a restart: its log, which
        nobody doubts, and the state of the snapshot, behind which it goes on by that log."""
        keeps_log = replica.raft.has_last_of(staging.manifest.offer)
        await staging.replace(replica.log, keeps_log=keeps_log)
        self._host.discard(replica)
        self._open_replica(replica.group)

    async def _resume(self, transfer: _Transfer) -> None:
        """Go on with a replacement that a crash has interrupted."""
        staging = transfer.staging
        log_store = LogStore(self._engine, staging.group)
        await staging.replace(log_store, keeps_log=staging.manifest.keeps_log)
        del self._transfers[staging.group]
        self._open_replica(staging.group)
        self._note_installed(staging)

    def _note_installed(self, staging: Staging) -> None:
        self.installed += 1
        log.info("group %d: took in a snapshot at %d", staging.group, staging.manifest.offer.index)

    def _run(self, transfer: _Transfer, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(_guarded(work))
        transfer.task = task

    def _drop(self, transfer: _Transfer) -> None:
        del self._transfers[transfer.staging.group]
        with suppress(KotobaError):  # what fails here is the host's to report
            transfer.staging.drop()


async def _guarded(work: Coroutine[None, None, None]) -> None:
    """A replacement ends with what ends this node's storage, and is resumed by the next process."""
    try:
        await work
    except KotobaError as error:
        log.warning("a replica is not replaced: %s", error.detail)
    except Exception:
        log.exception("a replica is not replaced")
