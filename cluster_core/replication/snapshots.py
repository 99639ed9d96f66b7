"""Snapshots of partitions: how a replica gets what its leader's log no longer has (Raft §7).

A snapshot is a partition's key range as it is applied at one index, frozen while writes go on. It
travels in chunks, each a request that is answered with the number of the next one, so that a
transfer goes on where a broken connection left it. The receiver takes a few transfers at a time and
refuses others for now; it keeps what it receives beside the replica, checks a digest over all of
it, and then takes it in with one atomic write: a crash leaves the old replica or the new one.
"""

from __future__ import annotations

import asyncio
import logging
from hashlib import sha256
from typing import Final

import msgspec

from cluster_core.errors import Conflict, KotobaError, NoLeader, OutcomeUnknown, Overloaded
from cluster_core.ports import DATA, Engine, Scan
from cluster_core.raft import NotLeading, SnapshotNeeded
from cluster_core.raft.membership import decode_configuration, encode_configuration
from cluster_core.replication.host import ReplicationHost
from cluster_core.replication.mesh import Mesh
from cluster_core.replication.replica import Replica
from cluster_core.storage import keys
from cluster_core.types import GroupId, NodeId
from cluster_core.wire.messages import SnapshotOffer

__all__ = ["Snapshots"]

log = logging.getLogger("kotoba.snapshots")

CHUNK_BYTES: Final = 256 << 10
"""Small enough that a heartbeat behind it on the stream is not late."""

INCOMING_MAX: Final = 2
"""Transfers that a node takes at a time; what they bring is in memory until it is taken in."""

CHUNK_TIMEOUT_S: Final = 5.0
CHUNK_TRIES: Final = 10
RETRY_S: Final = 0.2

IDLE_S: Final = 30.0
"""A transfer that brings nothing for so long is given up by the receiver."""


class _Chunk(msgspec.Struct, array_like=True, frozen=True):
    """A piece of a snapshot. ``digest`` is set in the last one: of all pairs, in order."""

    offer: SnapshotOffer
    number: int
    pairs: list[bytes]
    configuration: bytes
    digest: bytes = b""


_encode = msgspec.msgpack.Encoder().encode
_decode_chunk = msgspec.msgpack.Decoder(_Chunk).decode


class _Incoming:
    """A transfer under way at its receiver."""

    __slots__ = ("hashing", "next", "offer", "pairs", "seen")

    def __init__(self, offer: SnapshotOffer, now: float) -> None:
        self.offer = offer
        self.next = 0
        self.pairs: list[bytes] = []
        self.hashing = sha256()
        self.seen = now

    def add(self, chunk: _Chunk) -> None:
        for part in chunk.pairs:
            self.hashing.update(len(part).to_bytes(4, "big") + part)
        self.pairs += chunk.pairs
        self.next = chunk.number + 1


class Snapshots:
    """Both sides of the transfers of one node."""

    def __init__(self, host: ReplicationHost, mesh: Mesh, engine: Engine) -> None:
        self._host = host
        self._mesh = mesh
        self._engine = engine
        self._incoming: dict[GroupId, _Incoming] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.sent = 0
        self.installed = 0
        host.on_snapshot_needed = self.needed
        mesh.handle("snapshot.chunk", self._serve_chunk)

    async def close(self) -> None:
        tasks = sorted(self._tasks, key=lambda task: task.get_name())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # The leader's side.

    def needed(self, replica: Replica, need: SnapshotNeeded) -> None:
        """Freeze the partition as it is applied, in this turn, and bring it to the target."""
        node = replica.members.get(need.target)
        try:
            offer = replica.raft.snapshot_offer(need.target)
        except NotLeading:
            return
        if node is None:
            replica.raft.snapshot_failed(need.target)
            return
        prefix = keys.group_prefix(replica.group)
        frozen = self._engine.scan(DATA, prefix, keys.after(prefix))
        configuration = encode_configuration(replica.raft.applied_configuration)
        log.info("group %d: a snapshot at %d for %s", replica.group, offer.index, node)
        task = asyncio.get_running_loop().create_task(
            self._bring(replica, node, offer, frozen, configuration),
            name=f"snapshot of {replica.group} for {node}",
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _bring(
        self,
        replica: Replica,
        node: NodeId,
        offer: SnapshotOffer,
        frozen: Scan,
        configuration: bytes,
    ) -> None:
        arrived = False
        try:
            await self._send_all(node, offer, frozen, configuration)
            arrived = True
            self.sent += 1
        except KotobaError as error:
            log.info("group %d: no snapshot for %s: %s", replica.group, node, error.detail)
        finally:
            if arrived:
                replica.raft.snapshot_finished(offer.target, offer.index)
            else:
                replica.raft.snapshot_failed(offer.target)
            self._host.mark(replica)

    async def _send_all(
        self, node: NodeId, offer: SnapshotOffer, frozen: Scan, configuration: bytes
    ) -> None:
        hashing = sha256()
        number = 0
        pairs: list[bytes] = []
        size = 0
        while found := frozen.fetch():
            for key, value in found:
                for part in (key, value):
                    hashing.update(len(part).to_bytes(4, "big") + part)
                    pairs.append(part)
                size += len(key) + len(value)
                if size >= CHUNK_BYTES:
                    await self._send(node, _Chunk(offer, number, pairs, configuration))
                    number, pairs, size = number + 1, [], 0
        await self._send(node, _Chunk(offer, number, pairs, configuration, hashing.digest()))

    async def _send(self, node: NodeId, chunk: _Chunk) -> None:
        """Until the receiver has it. Raises what it refuses with, or what the last try met."""
        body = _encode(chunk)
        for attempt in range(CHUNK_TRIES):
            try:
                await self._mesh.request(node, "snapshot.chunk", body, timeout=CHUNK_TIMEOUT_S)
                return
            except (OutcomeUnknown, NoLeader):
                if attempt == CHUNK_TRIES - 1:
                    raise
                await asyncio.sleep(RETRY_S)

    # The receiver's side.

    async def _serve_chunk(self, peer: NodeId, body: bytes) -> bytes:
        """Take a chunk in; one that was taken already is answered once more."""
        chunk = _decode_chunk(body)
        replica = self._host.replicas.get(chunk.offer.group)
        if replica is None or replica.id != chunk.offer.target:
            raise Conflict("there is no such replica here")
        incoming = self._incoming_for(replica, chunk)
        if chunk.number == incoming.next:
            incoming.add(chunk)
        elif chunk.number > incoming.next:
            raise Conflict("a part of the snapshot is missing")
        if chunk.digest:
            self._incoming.pop(replica.group, None)
            if incoming.hashing.digest() != chunk.digest:
                raise Conflict("the snapshot does not have its digest")
            await self._install(replica, incoming, chunk.configuration)
        return b""

    def _incoming_for(self, replica: Replica, chunk: _Chunk) -> _Incoming:
        now = asyncio.get_running_loop().time()
        self._incoming = {
            group: one for group, one in self._incoming.items() if now - one.seen < IDLE_S
        }
        incoming = self._incoming.get(replica.group)
        if incoming is None or incoming.offer != chunk.offer:
            self._admit(replica, chunk)
            incoming = self._incoming[replica.group] = _Incoming(chunk.offer, now)
        incoming.seen = now
        return incoming

    def _admit(self, replica: Replica, chunk: _Chunk) -> None:
        replica.raft.step(chunk.offer)
        self._host.mark(replica)
        if not replica.raft.wants(chunk.offer):
            raise Conflict("this replica has what the snapshot would bring")
        others = [group for group in self._incoming if group != replica.group]
        if len(others) >= INCOMING_MAX:
            raise Overloaded("other snapshots are being taken in")
        if chunk.number > 0:
            raise Conflict("a part of the snapshot is missing")

    async def _install(self, replica: Replica, incoming: _Incoming, configuration: bytes) -> None:
        """Replace the replica by the snapshot; a crash leaves all of the one or of the other."""
        offer = incoming.offer
        if not replica.raft.begin_restore(offer):
            raise Conflict("this replica has what the snapshot would bring")
        self._host.mark(replica)
        await self._host.synced()
        batch = self._engine.batch()
        prefix = keys.group_prefix(replica.group)
        batch.delete_range(DATA, prefix, keys.after(prefix))
        pairs = iter(incoming.pairs)
        for key, value in zip(pairs, pairs, strict=True):
            assert key.startswith(prefix)
            batch.put(DATA, key, value)
        replica.log.replace(batch, offer.index, offer.last_term)
        self._host.write(batch)
        replica.reload()
        assert replica.applied == offer.index, "the snapshot is as it was applied at its index"
        await self._host.synced()
        replica.restored(decode_configuration(configuration))
        self.installed += 1
        log.info("group %d: took in a snapshot at %d", replica.group, offer.index)
        self._host.mark(replica)
