"""The sender of snapshots: the leader's side.

A snapshot is a partition's key range as it is applied at one index, frozen by a scan of the engine
while writes go on. Of the frozen view one chunk at a time is in memory, and it stays there until
the receiver has it on its disk: so a transfer goes on behind a lost answer, a broken connection or
a restart of the receiver. It ends, and the view with it, when the receiver does not admit it, when
the leadership ends, or when the receiver is out of reach for too long. Raft asks for another one
then.

As long as it is under way the log is kept from its index on (``raft/progress.py``), and behind it
until the receiver has caught up, however fast writes come in.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Final

from cluster_core.config import ReplicationConfig
from cluster_core.errors import KotobaError, Overloaded, StorageFull, Unavailable, Unreachable
from cluster_core.hlc import HybridClock
from cluster_core.ports import DATA, Engine, Random, Scan, Transport
from cluster_core.raft import NotLeading, SnapshotNeeded
from cluster_core.raft.membership import encode_configuration
from cluster_core.replication.host import ReplicationHost
from cluster_core.replication.replica import Replica
from cluster_core.replication.snapshots.messages import (
    SNAPSHOT,
    Begin,
    Chunk,
    Finish,
    Header,
    Position,
    Request,
    decode_position,
    encode,
    encode_pairs,
)
from cluster_core.storage import keys
from cluster_core.types import NodeId, ReplicaId

__all__ = ["Sender"]

log = logging.getLogger("kotoba.snapshots")

CALL_TIMEOUT_S: Final = 5.0
RETRY_S: Final = 0.2
"""Between two tries of one request."""

BUSY_S: Final = 0.5
"""A receiver that takes in others, or has no room, is asked again after so long, anew."""

PATIENCE_S: Final = 30.0
"""A receiver that answers nothing for so long is given up: a frozen view holds on to space on the
disk, and so does the log behind it."""

POLL_S: Final = 0.1
"""Between two looks at whether the receiver has replaced its replica."""


class Sender:
    """The sending side of one node. ``address_of(node)`` is where a node listens."""

    def __init__(
        self,
        host: ReplicationHost,
        engine: Engine,
        clock: HybridClock,
        transport: Transport,
        random: Random,
        config: ReplicationConfig,
        cluster_id: str,
        address_of: Callable[[NodeId], str],
    ) -> None:
        self._host = host
        self._engine = engine
        self._clock = clock
        self._transport = transport
        self._random = random
        self._config = config
        self._cluster_id = cluster_id
        self._address_of = address_of
        self._tasks: set[asyncio.Task[None]] = set()
        self.frozen = 0
        """Views that were frozen since the start, each for one attempt."""
        self.sent = 0
        """Snapshots that arrived and were taken in."""
        host.on_snapshot_needed = self.needed

    async def close(self) -> None:
        tasks = sorted(self._tasks, key=lambda task: task.get_name())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def needed(self, replica: Replica, need: SnapshotNeeded) -> None:
        """Bring a snapshot to the replica that needs one; Raft is told how it ended, always."""
        node = replica.members.get(need.target)
        if node is None:
            replica.raft.snapshot_failed(need.target)
            return
        task = asyncio.get_running_loop().create_task(
            self._bring(replica, need.target, node), name=_task_name(replica, need.target)
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def rebuild(self, replica: Replica, target: ReplicaId) -> None:
        """Bring a snapshot to a replica that asks for one although it lacks nothing of the log;
        not a second one while one is under way."""
        name = _task_name(replica, target)
        if not any(task.get_name() == name for task in self._tasks):
            self.needed(replica, SnapshotNeeded(target, 0))

    async def _bring(self, replica: Replica, target: ReplicaId, node: NodeId) -> None:
        arrived = 0
        try:
            arrived = await self._transfer(replica, target, node)
            self.sent += 1
        except (Overloaded, StorageFull):
            await asyncio.sleep(BUSY_S)
        except (KotobaError, NotLeading) as error:
            log.info("group %d: no snapshot for %s: %s", replica.group, node, error)
        finally:
            if arrived:
                replica.raft.snapshot_finished(target, arrived)
            else:
                replica.raft.snapshot_failed(target)
            self._host.mark(replica)

    async def _transfer(self, replica: Replica, target: ReplicaId, node: NodeId) -> int:
        """The index of the snapshot that arrived. Raises KotobaError or NotLeading."""
        outgoing = self._freeze(replica, target, node)
        await outgoing.run()
        return outgoing.header.offer.index

    def _freeze(self, replica: Replica, target: ReplicaId, node: NodeId) -> _Outgoing:
        """The view, the offer and the configuration belong together: all of one turn."""
        offer = replica.raft.snapshot_offer(target)
        prefix = keys.group_prefix(replica.group)
        frozen = self._engine.scan(DATA, prefix, keys.after(prefix))
        configuration = encode_configuration(replica.raft.applied_configuration)
        self.frozen += 1
        header = Header(
            self._cluster_id,
            self._host.node_id,
            self._clock.latest,
            self._random.randbytes(16),
            offer,
        )
        chunks = _chunks(frozen, self._config.snapshot_chunk_bytes)
        return _Outgoing(
            replica, header, configuration, chunks, self._transport, self._address_of(node)
        )


class _Outgoing:
    """One frozen view on its way."""

    def __init__(
        self,
        replica: Replica,
        header: Header,
        configuration: bytes,
        chunks: Iterator[bytes],
        transport: Transport,
        address: str,
    ) -> None:
        self.header = header
        self._replica = replica
        self._configuration = configuration
        self._chunks = chunks
        self._transport = transport
        self._address = address

    async def run(self) -> None:
        """Returns when the receiver has replaced its replica, or turned out to have all this."""
        header = self.header
        if (await self._ask(Begin(header, self._configuration), patient=False)).installed:
            return
        log.info("group %d: a snapshot at %d leaves", header.offer.group, header.offer.index)
        of_all = sha256()
        number = 0
        for pairs in self._chunks:
            checksum = sha256(pairs).digest()
            of_all.update(checksum)
            if (await self._ask(Chunk(header, number, checksum, pairs))).installed:
                return
            number += 1
        finish = Finish(header, number, of_all.digest())
        while not (await self._ask(finish)).installed:  # noqa: ASYNC110 (elsewhere)
            await asyncio.sleep(POLL_S)

    async def _ask(self, request: Request, *, patient: bool = True) -> Position:
        """Until there is an answer; with ``patient`` also while the receiver is out of reach or
        without room. Raises the last error, or NotLeading when the leadership is over."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + PATIENCE_S
        body = encode(request)
        while True:
            self._require_leading()
            try:
                answer = await self._transport.call(
                    self._address, SNAPSHOT, body, timeout=CALL_TIMEOUT_S
                )
                return decode_position(answer)
            except (Unreachable, Unavailable, StorageFull):
                if not patient or loop.time() >= deadline:
                    raise
                await asyncio.sleep(RETRY_S)

    def _require_leading(self) -> None:
        raft = self._replica.raft
        if not raft.is_leader or raft.term != self.header.offer.term:
            raise NotLeading


def _task_name(replica: Replica, target: ReplicaId) -> str:
    return f"snapshot of {replica.group} for {target}"


def _chunks(frozen: Scan, bytes_max: int) -> Iterator[bytes]:
    """The pairs of a frozen view, encoded, in portions of ``bytes_max`` or a pair more."""
    pairs: list[bytes] = []
    size = 0
    while found := frozen.fetch():
        for key, value in found:
            pairs += (key, value)
            size += len(key) + len(value)
            if size >= bytes_max:
                yield encode_pairs(pairs)
                pairs, size = [], 0
    if pairs:
        yield encode_pairs(pairs)
