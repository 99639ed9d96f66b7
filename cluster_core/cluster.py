"""KotobaCluster: one node of the database, for people who embed it in their own asyncio program.

    cluster = KotobaCluster("node-1", data_dir=Path("data"), transport=transport)
    await cluster.start("127.0.0.1:8080")
    await cluster.ready()
    result = await cluster.execute_operation(CreateNode(labels=("Person",), properties={...}))
    await cluster.stop()

Without a transport it is a database of one node, in this process only.
"""

from __future__ import annotations

import asyncio
import logging
import random as random_module
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Literal

from cluster_core.config import ClusterConfig
from cluster_core.errors import (
    InvalidRequest,
    KotobaError,
    StorageFailed,
    StorageFull,
    Unavailable,
)
from cluster_core.graph.operations import (
    BatchOperation,
    Operation,
    OperationResult,
    TransactionResult,
)
from cluster_core.hlc import HybridClock, first_of_ms
from cluster_core.membership.forming import (
    FORMING,
    Forming,
    Founding,
    Member,
    Report,
    encode_report,
    form,
)
from cluster_core.node.bus import EventBus, Subscription
from cluster_core.node.clock_watch import BelievedWall
from cluster_core.node.identity import Identity
from cluster_core.node.local import NoTransport, SystemClock
from cluster_core.node.node import ClusterNode
from cluster_core.node.observe import (
    Observed,
    health_of,
    partition_status,
    readiness_of,
    status_of,
)
from cluster_core.ports import Clock, Engine, Random, Transport
from cluster_core.query.plan import Query
from cluster_core.query.planner import Explanation
from cluster_core.query.results import QueryResult
from cluster_core.replication.snapshots import SNAPSHOT
from cluster_core.status import (
    ClusterStatus,
    HealthStatus,
    IndexStatus,
    PartitionStatus,
    ReadyStatus,
)
from cluster_core.storage import MemoryDisk, MemoryEngine, RocksEngine
from cluster_core.types import Consistency, Digest, NodeId, Timestamp, group_of, partition_of

__all__ = ["KotobaCluster"]

log = logging.getLogger("kotoba.cluster")


class KotobaCluster:
    """See the module.

    ``data_dir`` holds the node's RocksDB; without it (and without ``open_engine``) everything is in
    memory and gone with the process. ``peers`` are the addresses of the other founding nodes.
    ``advertise`` is where others reach this node, when that is not the address it listens at.
    The remaining arguments replace the ports of :mod:`cluster_core.ports`; ``open_engine`` is
    called at the start, and again after a write that found no space, once there is room
    (then all Raft state is rebuilt from the disk). After any other failure of the disk the node
    stays without replicas until the process starts again: it passes on what clients ask.
    """

    def __init__(
        self,
        node_id: NodeId,
        config: ClusterConfig | None = None,
        *,
        data_dir: Path | None = None,
        peers: Sequence[str] = (),
        advertise: str | None = None,
        transport: Transport | None = None,
        clock: Clock | None = None,
        open_engine: Callable[[], Engine] | None = None,
        random: Random | None = None,
    ) -> None:
        self.node_id = node_id
        self.config = config or ClusterConfig()
        self.address = ""
        self._peers = list(peers)
        self._advertise = advertise
        self._transport: Transport = transport or NoTransport()
        self._wall: Clock = clock or SystemClock()
        self._open_engine = open_engine or self._store_of(data_dir)
        self._engine: Engine | None = None
        self._random: Random = random or random_module.Random()
        self._bus = EventBus(self.config.limits.event_queue_max)
        self._identity: Identity | None = None
        self._node: ClusterNode | None = None
        self._forming: asyncio.Task[None] | None = None
        self._formation: Forming | None = None
        self._trouble: str | None = None
        self._reopening: asyncio.Task[None] | None = None
        self._was_full = False
        """Whether this process reported a full disk, and opened its store again since."""
        self._first_request = 0
        self._latest: Timestamp = 0
        self._founded = asyncio.Event()

    # Life.

    async def start(self, address: str) -> None:
        """Open the store, listen at ``address`` (``host:port``) and begin to form or to recover.

        Returns when this node listens; :meth:`ready` waits for the cluster. With a full disk it
        listens, says so in its status, and goes on when there is room. Raises StorageFailed,
        InvalidRequest, or what the transport raises when it cannot listen.
        """
        assert not self.address, "a cluster object is started once"
        self.address = self._advertise or address
        try:
            await self._open()
        except StorageFull as error:
            self._note_trouble(error.detail)
        try:
            await self._transport.listen(address, self)
        except BaseException:
            self._close_engine()
            raise
        if self._engine is None:
            self._reopen_when_there_is_room()
        else:
            self._join()

    def _store_of(self, data_dir: Path | None) -> Callable[[], Engine]:
        if data_dir is None:
            disk = MemoryDisk()
            return lambda: MemoryEngine(disk)
        reserve_bytes = self.config.storage.reserve_bytes
        return lambda: RocksEngine(data_dir, reserve_bytes=reserve_bytes)

    async def _open(self) -> None:
        """Open the store and read who we are. Leaves nothing open when it fails."""
        self._engine = self._open_engine()
        try:
            self._identity = await Identity.load(self._engine, self.node_id, self._random)
        except BaseException:
            self._close_engine()
            raise

    def _close_engine(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    def _join(self) -> None:
        if self._own.founding is not None:
            self._begin(self._own.founding)
        else:
            self._forming = asyncio.get_running_loop().create_task(self._form())

    async def ready(self, timeout: float = 30.0) -> None:
        """Wait until this node has joined, and most partitions have a leader that it can reach.

        Raises Unavailable with what is missing.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while True:
            readiness = await self.readiness()
            if readiness.is_ready:
                return
            if loop.time() >= deadline:
                raise Unavailable(f"not ready after {timeout:g} s: {'; '.join(readiness.missing)}")
            await asyncio.sleep(0.02)

    async def stop(self) -> None:
        """Hand leaderships over, finish what is in flight, close the store."""
        for task in (self._reopening, self._forming):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        if self._node is not None:
            await self._node.hand_over()
        self._bus.close()
        await self._transport.drain()
        if self._node is not None:
            await self._node.stop()
        await self._transport.close()
        self._close_engine()

    # A full disk.

    def _reopen_when_there_is_room(self) -> None:
        if self._reopening is None or self._reopening.done():
            self._reopening = asyncio.get_running_loop().create_task(self._reopen())

    async def _reopen(self) -> None:
        """A write found no space, or there was none to open the store: open it when there is.

        Until then the node that lost its replicas goes on without any. Nothing that was written
        without success survives in memory: engine and composition are made anew.
        """
        delay_ms = self.config.storage.reopen_after_ms
        delay_ms_max = 10 * delay_ms
        while True:
            await asyncio.sleep(delay_ms / 1000)
            delay_ms = min(2 * delay_ms, delay_ms_max)
            engine = self._engine
            if engine is not None and not _has_room_to_open(engine):
                continue
            await self._end_composition()
            self._close_engine()
            try:
                await self._open()
            except StorageFull as error:
                self._note_trouble(error.detail)
                continue
            except StorageFailed as error:
                self._note_trouble(error.detail)
                log.error("the store cannot be opened again: %s", error.detail)
                return
            log.warning("the disk has room: the store was opened again")
            self._trouble = None
            self._was_full = True
            self._join()
            return

    async def _end_composition(self) -> None:
        """Stop what works on the store, and remember what the next composition must not repeat.

        The streams to peers end with it, so nobody waits for an answer that is lost.
        """
        if self._forming is not None:
            self._forming.cancel()
            await asyncio.gather(self._forming, return_exceptions=True)
            self._forming = None
        node, self._node = self._node, None
        if node is not None:
            self._transport.set_peers({})
            await node.stop()
            self._first_request = node.mesh.last_request
            self._latest = node.clock.latest

    async def _form(self) -> None:
        """Found a cluster with the peers, or be named by one that is founded."""
        identity = self._own
        own = Member(
            node_id=self.node_id,
            store_id=identity.store_id,
            address=self.address,
            zone=self.config.zone,
            role=self.config.role,
        )
        self._formation = Forming(own, self._peers, self.config, identity.proposed)
        try:
            founding = await form(
                self._formation,
                config=self.config,
                transport=self._transport,
                persist=identity.propose,
                on_problem=self._note_trouble,
            )
            await identity.found(founding)
        except StorageFull as error:
            self._note_trouble(error.detail)
            self._reopen_when_there_is_room()
            return
        except KotobaError as error:
            self._note_trouble(error.detail)
            log.error("this node cannot join its cluster: %s", error.detail)
            return
        self._trouble = None
        self._begin(founding)

    def _begin(self, founding: Founding) -> None:
        assert self._engine is not None
        wall = BelievedWall(self._wall)
        clock = self._own.clock(wall, self.config.replication.clock_ceiling_ahead_ms)
        clock.merge(self._latest)
        self._transport.identify(
            cluster_id=founding.cluster_id, node_id=self.node_id, store_id=self._own.store_id
        )
        self._node = ClusterNode(
            node_id=self.node_id,
            founding=founding,
            engine=self._engine,
            clock=clock,
            wall=wall,
            transport=self._transport,
            config=self.config,
            random=self._random,
            bus=self._bus,
            on_storage_full=self._reopen_when_there_is_room,
            storage_was_full=self._was_full,
            first_request=self._above_earlier_requests(clock),
        )
        self._node.start()
        self._founded.set()

    def _above_earlier_requests(self, clock: HybridClock) -> int:
        """A number above those of all requests of earlier compositions, also of earlier processes:
        a peer may still be at work on one of them, and answers by its number. They are given much
        more slowly than timestamps, and a restarted clock begins above what it gave."""
        wall = first_of_ms(self._wall.wall_ms())  # on a new disk the clock begins with nothing
        return max(self._first_request, clock.latest, wall)

    # What the transport tells (ports.Receiver).

    def on_frames(self, peer: NodeId, frames: list[bytes]) -> None:
        if self._node is not None:
            self._node.on_frames(peer, frames)

    def on_peer_up(self, peer: NodeId) -> None:
        if self._node is not None:
            self._node.on_peer_up(peer)

    def on_peer_down(self, peer: NodeId) -> None:
        if self._node is not None:
            self._node.on_peer_down(peer)

    async def on_call(self, method: str, body: bytes) -> bytes:
        if method == FORMING:
            return encode_report(self._report())
        if method == SNAPSHOT:
            return await self.node.incoming.serve(body)
        raise InvalidRequest(f"no such call: {method}", errors=[])

    # Writing and reading.

    async def execute_operation(
        self,
        operation: Operation,
        *,
        consistency: Literal["strong", "eventual"] = "strong",
        idempotency_key: str | None = None,
        principal: str = "",
        nonce: bytes | None = None,
        forward: bool = True,
        timeout_ms: int | None = None,
    ) -> OperationResult:
        """Execute one operation, wherever its partition is led.

        ``strong`` returns when a majority has it on its disks; ``eventual`` when the leader has.
        With ``forward=False`` raises NotLeader (``leader``: node id and address; ``nonce``: of a
        creation) instead of asking another node. ``timeout_ms`` is at most the configured limit.
        """
        return await self.node.writes.operation(
            operation,
            eventual=consistency == "eventual",
            idempotency_key=idempotency_key,
            principal=principal,
            nonce=nonce,
            forward=forward,
            deadline=self._deadline(timeout_ms),
        )

    async def execute_batch(
        self,
        operations: Sequence[BatchOperation],
        *,
        consistency: Literal["strong", "eventual"] = "strong",
        idempotency_key: str | None = None,
        principal: str = "",
        timeout_ms: int | None = None,
    ) -> list[OperationResult | KotobaError]:
        """Execute operations, each for itself; results in order, an error in place of a failure."""
        return await self.node.writes.batch(
            operations,
            eventual=consistency == "eventual",
            idempotency_key=idempotency_key,
            principal=principal,
            deadline=self._deadline(timeout_ms),
        )

    async def execute_transaction(
        self,
        operations: Sequence[BatchOperation],
        *,
        idempotency_key: str | None = None,
        principal: str = "",
        timeout_ms: int | None = None,
    ) -> TransactionResult:
        """Execute all of ``operations`` or none, over any partitions, at one timestamp.

        Each sees what those before it do. Raises the error of the first operation that failed, with
        its ``index``, and Conflict when it lost against other transactions until its time was over.
        """
        return await self.node.writes.transaction(
            operations,
            idempotency_key=idempotency_key,
            principal=principal,
            deadline=self._deadline(timeout_ms),
        )

    async def execute_query(
        self,
        query: Query,
        *,
        consistency: Consistency = "strong",
        as_of: Timestamp | None = None,
        session: Timestamp | None = None,
        max_staleness_ms: int | None = None,
        timeout_ms: int | None = None,
    ) -> QueryResult:
        """Run a query on one snapshot: the present (``strong``), what this node has
        (``eventual``), or a past moment (``as_of``).

        ``read_your_writes`` sees all up to ``session``, the time of your last write or read;
        ``eventual`` as well when it is given, and is no older than ``max_staleness_ms``. Both are
        served here when this node has what they ask for, else as a strong read: the statistics of
        the answer say which was given.
        """
        return await self.node.query(
            query,
            consistency=consistency,
            as_of=as_of,
            deadline=self._deadline(timeout_ms),
            session=session,
            max_staleness_ms=max_staleness_ms,
        )

    async def explain_query(self, query: Query, *, as_of: Timestamp | None = None) -> Explanation:
        """How :meth:`execute_query` would find what ``query`` asks for."""
        return self.node.explain(query, as_of)

    # Indexes.

    async def declare_index(
        self, label: str, name: str, *, timeout_ms: int | None = None
    ) -> tuple[IndexStatus, bool]:
        """Declare an index on the property ``name`` of what has ``label``, vertices and edges.

        Returns when that is decided; it is built while writes go on, and queries use it once its
        state is ``ready``. The second value says whether it is new.
        """
        return await self.node.indexes.declare(label, name, self._deadline(timeout_ms))

    async def drop_index(
        self, label: str, name: str, *, timeout_ms: int | None = None
    ) -> IndexStatus:
        """Drop an index. Raises NotFound."""
        return await self.node.indexes.drop(label, name, self._deadline(timeout_ms))

    async def indexes(self, *, timeout_ms: int | None = None) -> list[IndexStatus]:
        """The declared indexes, and how far they are."""
        return await self.node.indexes.statuses(self._deadline(timeout_ms))

    def _deadline(self, timeout_ms: int | None) -> float:
        limits = self.config.limits
        wanted = limits.timeout_ms if timeout_ms is None else timeout_ms
        if not 1 <= wanted <= limits.timeout_ms_max:
            why = f"must be 1 to {limits.timeout_ms_max}"
            raise InvalidRequest(f"timeout_ms {why}", errors=[{"where": "timeout_ms", "why": why}])
        return asyncio.get_running_loop().time() + wanted / 1000

    # Placement.

    async def move_partition(
        self, partition: int, source: NodeId, target: NodeId, *, timeout_ms: int | None = None
    ) -> PartitionStatus:
        """Move the replica of ``partition`` at ``source`` to ``target``.

        Returns when that is decided; the moving follows, and a PartitionMoved when it is done.
        Raises NotFound where there is no such replica or node, AlreadyExists where ``target`` has
        one.
        """
        await self.node.placements.move(partition, source, target, self._deadline(timeout_ms))
        return partition_status(self.node, partition)

    async def change_replicas(
        self, partition: int, nodes: Sequence[NodeId], *, timeout_ms: int | None = None
    ) -> PartitionStatus:
        """Let ``nodes`` have the voters of ``partition``, in this order of preference to lead.

        Returns when that is decided, as :meth:`move_partition` does. Raises NotFound, and
        InvalidRequest for fewer voters than there are and the replication factor asks for.
        """
        await self.node.placements.place(partition, nodes, self._deadline(timeout_ms))
        return partition_status(self.node, partition)

    async def transfer_leadership(
        self, partition: int, node_id: NodeId, *, timeout_ms: int | None = None
    ) -> PartitionStatus:
        """Let ``node_id``, which has a vote in ``partition``, lead it, and be preferred to lead it
        from now on. Returns when it leads. Raises NotFound, InvalidRequest, OutcomeUnknown."""
        deadline = self._deadline(timeout_ms)
        await self.node.placements.prefer(partition, node_id, deadline)
        await self.node.leaderships.lead_at(group_of(partition), node_id, deadline)
        return partition_status(self.node, partition)

    # Observing.

    async def get_status(self) -> ClusterStatus:
        """The cluster as this node sees it."""
        return status_of(self.observed)

    async def check_health(self) -> HealthStatus:
        """Whether the cluster is healthy, and whether this node can serve."""
        return health_of(self.observed)

    async def readiness(self) -> ReadyStatus:
        """Whether this node has joined, its disk works, and most partitions have a leader."""
        return readiness_of(self.observed)

    async def partitions(self) -> list[PartitionStatus]:
        count = self.node.founding.partition_count
        return [partition_status(self.node, partition) for partition in range(count)]

    async def partition(self, partition: int) -> PartitionStatus:
        """Raises NotFound."""
        return partition_status(self.node, partition)

    async def partition_of(self, digest: Digest) -> PartitionStatus:
        """The partition that is responsible for the entity with this first digest."""
        count = self.node.founding.partition_count
        return partition_status(self.node, partition_of(digest, count))

    def subscribe_events(
        self,
        types: Collection[str] | None = None,
        *,
        labels: Collection[str] | None = None,
        partitions: Collection[int] | None = None,
        changes: bool = True,
        since: Timestamp | None = None,
    ) -> Subscription:
        """Cluster events from now on, and changes of the graph from now on or behind ``since``, the
        timestamp of a Resolved; an asynchronous iterator.

        Changes come complete and in the order of their timestamps. Iterating raises SlowReader, or
        HistoryCollected where changes after ``since`` are not kept any more. Raises InvalidRequest
        when ``since`` is in the future.
        """
        feed = None if since is None else self.node.feed
        subscription = self._bus.subscribe(
            types, labels=labels, partitions=partitions, changes=changes, since=since
        )
        if feed is not None:
            try:
                feed.resume(subscription)
            except KotobaError:
                subscription.close()
                raise
        return subscription

    def now(self) -> Timestamp:
        """A reading of this node's clock, above every timestamp that it has seen."""
        return self.node.clock.now()

    @property
    def node(self) -> ClusterNode:
        """The founded node. Raises Unavailable while there is no cluster yet, and StorageFull
        while there is no room to open the store."""
        if self._node is None:
            if self.observed.waits_for_room:
                raise StorageFull(self._trouble or "the disk of this node is full")
            raise Unavailable(self._trouble or "this node has not joined a cluster yet")
        return self._node

    @property
    def founded(self) -> ClusterNode | None:
        """The founded node, or None while there is no cluster yet."""
        return self._node

    @property
    def engine(self) -> Engine | None:
        """The store of this node, while it is open."""
        return self._engine

    @property
    def observed(self) -> Observed:
        """What :mod:`cluster_core.node.observe` looks at."""
        waits = self._reopening is not None and not self._reopening.done()
        return Observed(self.node_id, self.config, self._engine, self._node, self._trouble, waits)

    @property
    def _own(self) -> Identity:
        if self._identity is None:
            raise Unavailable(self._trouble or f"{self.node_id} is starting")
        return self._identity

    def _note_trouble(self, problem: str | None) -> None:
        if problem is not None and problem != self._trouble:
            log.warning("no cluster yet: %s", problem)
        self._trouble = problem

    def _report(self) -> Report:
        """What this node tells of itself to one that forms."""
        founding = self._own.founding
        if founding is None:
            if self._formation is None:
                raise Unavailable(f"{self.node_id} is starting")
            return self._formation.report()
        member = next(one for one in founding.members if one.node_id == self.node_id)
        return Report(
            member=member,
            partition_count=founding.partition_count,
            replication_factor=founding.replication_factor,
            seen=founding.members,
            proposed=founding,
            founded=founding,
            virtual_nodes=founding.virtual_nodes,
        )


def _has_room_to_open(engine: Engine) -> bool:
    """Half of the reserve, held or free, is enough to start with."""
    return 2 * engine.room_bytes() >= max(1, engine.reserve_bytes)
