"""One founded cluster node: who owns what, and in which order it starts and stops."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import msgspec

from cluster_core.config import ClusterConfig
from cluster_core.errors import (
    ClockCeiling,
    HistoryCollected,
    KotobaError,
    NoLeader,
    NotFound,
    StorageFull,
)
from cluster_core.events import ClusterEvent
from cluster_core.graph.entities import Edge
from cluster_core.hlc import HybridClock, rfc3339
from cluster_core.membership.detector import FailureDetector
from cluster_core.membership.forming import Founding
from cluster_core.node.bus import EventBus
from cluster_core.node.clock_watch import BelievedWall, ClockWatch
from cluster_core.node.closed_reads import ClosedReads, Freshness
from cluster_core.node.feed import Feed
from cluster_core.node.index_building import IndexBuilder
from cluster_core.node.index_table import IndexTable
from cluster_core.node.leaderships import Leaderships
from cluster_core.node.mover import Mover
from cluster_core.node.placements import Placements
from cluster_core.node.reads import Reads
from cluster_core.node.residence import Residence
from cluster_core.node.snapshot_rounds import Snapshot
from cluster_core.node.storage_watch import StorageWatch
from cluster_core.node.table import partition_table
from cluster_core.node.writes import Writes
from cluster_core.placement.table import GroupTable
from cluster_core.ports import Engine, Random, Transport
from cluster_core.query.cursor import cursor_timestamp
from cluster_core.query.execute import execute
from cluster_core.query.host import ReadAgain, ReadPoint
from cluster_core.query.plan import Get, History, Query, check_query
from cluster_core.query.planner import Explanation, explain
from cluster_core.query.results import QueryResult, ServedConsistency, Statistics, VersionRow
from cluster_core.replication.closed import ClosedTimestamps
from cluster_core.replication.comparison import Comparison
from cluster_core.replication.history import Retention
from cluster_core.replication.host import ReplicationHost
from cluster_core.replication.mesh import Mesh
from cluster_core.replication.pace import Pace
from cluster_core.replication.replica import Replica
from cluster_core.replication.router import RETRY_DELAY_S, Router
from cluster_core.replication.snapshots import Receiver, Sender
from cluster_core.txn.atomic import AtomicExecutor
from cluster_core.txn.detach import EdgeDeletion
from cluster_core.txn.executor import Executor
from cluster_core.txn.participant import Participant
from cluster_core.txn.recovery import Recovery
from cluster_core.txn.settlement import Settlement
from cluster_core.txn.sweep import Sweep
from cluster_core.txn.transactions import Transactions
from cluster_core.types import META_GROUP, Consistency, Digest, GroupId, NodeId, Timestamp
from cluster_core.wire.messages import Message

__all__ = ["ClusterNode"]

log = logging.getLogger("kotoba.node")

HOUSEKEEPING_S: Final = 0.25
"""Between two looks at the failure detector and at leaderships that belong elsewhere."""

FOUNDING_CAMPAIGN_S: Final = 0.3
"""A new cluster's preferred leaders campaign within this time of the streams' standing."""


class ClusterNode:
    """The parts of a founded node, composed; ``KotobaCluster`` drives it.

    From below: the engine and the clock; the mesh; the host of all Raft groups; the router; the
    participant, transactions and the executor; reads; writes. Each knows only those before it.
    """

    def __init__(
        self,
        *,
        node_id: NodeId,
        founding: Founding,
        engine: Engine,
        clock: HybridClock,
        wall: BelievedWall,
        transport: Transport,
        config: ClusterConfig,
        random: Random,
        bus: EventBus,
        on_storage_full: Callable[[], None],
        storage_was_full: bool = False,
        first_request: int = 0,
    ) -> None:
        self.node_id = node_id
        self.founding = founding
        self.engine = engine
        self.clock = clock
        self.config = config
        self.bus = bus
        self.addresses = {member.node_id: member.address for member in founding.members}
        self.tables = partition_table(founding)
        """As this node knows it; ``placements`` keeps it up to date."""
        self._transport = transport
        self._random = random
        pace = Pace()
        self.host = ReplicationHost(
            node_id=node_id,
            engine=engine,
            clock=clock,
            config=config,
            random=random,
            pace=pace,
            send=self._send,
            on_leader=self._report_leader,
            on_storage_failed=self._report_storage,
        )
        self.mesh = Mesh(node_id, clock, transport, pace, self._on_messages, first_request)
        self.closed = ClosedTimestamps(self.host, self.mesh, clock)
        self.closed_reads = ClosedReads(
            self.host, self.closed, engine, clock, founding.partition_count
        )
        self.router = Router(self.host, self.mesh, self.tables)
        self.placements = Placements(self.router, clock, config, founding, self._report_move)
        self.outgoing = Sender(
            self.host,
            engine,
            clock,
            transport,
            random,
            config.replication,
            founding.cluster_id,
            self.addresses.__getitem__,
        )
        self.incoming = Receiver(
            self.host,
            engine,
            clock,
            config.replication,
            founding.cluster_id,
            self._open_replica,
        )
        self._residence = Residence(
            self.host, engine, self.placements, partition_table(founding), self.incoming
        )
        self.comparison = Comparison(
            self.host,
            self.mesh,
            engine,
            config.replication,
            random,
            self.outgoing.rebuild,
            self._report_replica,
        )
        self.participant = Participant(self.router, clock, config)
        count = founding.partition_count
        deletion = EdgeDeletion(self.router, engine, clock, config, count)
        self._settlement = Settlement(self.router, self.participant, deletion, clock, config)
        recovery = Recovery(self.router, self.participant, self._settlement, clock, config)
        transactions = Transactions(
            self.router,
            self.participant,
            self._settlement,
            recovery,
            deletion,
            clock,
            config,
            random,
        )
        self.executor = Executor(self.router, clock, config, count, transactions, random)
        self.atomic = AtomicExecutor(
            self.router, clock, config, count, self.participant, transactions, random
        )
        self.indexes = IndexTable(self.router, clock, config, count)
        self._index_builder = IndexBuilder(self.indexes, self.router, engine, clock, config)
        self.reads = Reads(
            self.router, engine, clock, config, count, self.indexes.ready, wall.steady_s
        )
        self.writes = Writes(
            self.router,
            self.executor,
            self.atomic,
            config,
            count,
            random,
            self._locate_edges,
            self.addresses.__getitem__,
        )
        others = [name for name in self.addresses if name != node_id]
        self.detector = FailureDetector(
            config.membership, others, asyncio.get_running_loop().time()
        )
        self.peers_up: dict[NodeId, float] = {}
        """Since when the stream to each peer stands, in the loop's time."""
        self.clocks = ClockWatch(
            wall,
            self.mesh,
            size=len(founding.members),
            offset_ms_max=config.replication.clock_offset_ms_max,
            on_believed=self.host.flush_soon,
        )
        self.leaderships = Leaderships(self.router, self.peers_up)
        self._mover = Mover(self.host, self.placements, self.peers_up)
        self._on_storage_full = on_storage_full
        self.storage = StorageWatch(
            engine, self.host, self.mesh, self._publish_storage, was_full=storage_was_full
        )
        self.feed = Feed(self.router, self.closed, engine, clock, config, bus)
        self._retention = Retention(self.host, self.closed, engine, clock, config)
        self._sweep = Sweep(self.router, recovery, clock, config)
        self._tasks: list[asyncio.Task[None]] = []
        self._events = 0
        self._is_new = False

    # Start and stop.

    def start(self) -> None:
        """Bring this node's replicas to life and connect to the others."""
        self._residence.load()
        self.comparison.load(self.tables)
        self._is_new = all(replica.raft.term == 0 for replica in self.host.replicas.values())
        peers = {name: address for name, address in self.addresses.items() if name != self.node_id}
        self._transport.set_peers(peers)
        self.host.start()
        self.storage.look()
        loop = asyncio.get_running_loop()
        work = (
            self._sweep.run(),
            self._retention.run(),
            self.feed.run(),
            self.indexes.run(),
            self._index_builder.run(),
            self._residence.run(),
            self._mover.run(),
            self.comparison.run(),
            self._keep_house(),
            self.mesh.expire(),
        )
        self._tasks = [loop.create_task(one) for one in work]
        for task in self._tasks:
            task.add_done_callback(_report_end)
        if self._is_new:
            loop.call_later(
                self._random.uniform(0.3, 1.0) * FOUNDING_CAMPAIGN_S, self._campaign_for_own
            )

    def _open_replica(self, group: GroupId) -> None:
        self._residence.open(group)

    def _campaign_for_own(self) -> None:
        """In a new cluster the preferred leader of each group is elected at once."""
        if self.clocks.own_ahead_ms:
            return
        for group, replica in self.host.replicas.items():
            if self.leaderships.preferred(group) == self.node_id and not replica.raft.leader:
                replica.raft.campaign()
                self.host.mark(replica)

    async def hand_over(self, *, grace_s: float = 1.0) -> None:
        """Give the leaderships to others, before a stop. Requests go on, through the others."""
        await self.leaderships.hand_over(grace_s)

    async def stop(self) -> None:
        """Stop at once; what is in flight ends as unknown, or as not executed."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.clocks.close()
        await self.outgoing.close()
        await self.incoming.close()
        await self.feed.close()
        await self.reads.close()
        await self._settlement.close()
        await self.participant.close()
        await self.host.stop()
        await self.mesh.close()

    # What the transport tells.

    def on_frames(self, peer: NodeId, frames: list[bytes]) -> None:
        self.detector.heard(peer, asyncio.get_running_loop().time())
        self.mesh.on_frames(peer, frames)

    def on_peer_up(self, peer: NodeId) -> None:
        now = asyncio.get_running_loop().time()
        self.peers_up[peer] = now
        self.mesh.on_peer_up(peer)
        self.leaderships.on_peer_up(peer)
        self.detector.heard(peer, now)
        self.clocks.on_peer_up(peer)

    def on_peer_down(self, peer: NodeId) -> None:
        self.peers_up.pop(peer, None)
        self.detector.lost(peer, asyncio.get_running_loop().time())
        self.host.on_peer_down(peer)
        self.mesh.on_peer_down(peer)
        self.router.on_peer_down(peer)
        self.reads.on_peer_down(peer)
        self.storage.on_peer_down(peer)
        self.clocks.on_peer_down(peer)

    def _send(self, peer: NodeId, messages: list[Message]) -> None:
        self.mesh.send_messages(peer, messages)

    def _on_messages(self, peer: NodeId, messages: list[Message]) -> None:
        self.host.on_messages(peer, messages)

    # Housekeeping.

    def _truncate_logs(self) -> None:
        raft = self.config.raft
        for replica in list(self.host.replicas.values()):
            self.host.truncate(replica, raft.log_keep_entries, raft.log_entries_max)

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(HOUSEKEEPING_S)
            try:
                self._tidy(asyncio.get_running_loop().time())
            except Exception:
                # What failed now may well succeed the next time, and the rest depends on it.
                log.exception("housekeeping failed")

    def _tidy(self, now: float) -> None:
        for peer in sorted(self.peers_up):
            self.detector.heard(peer, now)
        for transition in self.detector.tick(now):
            self._report_transition(transition.before, transition.after, transition.node)
        self.storage.look()
        self.clocks.look(now)
        ahead = self.clocks.ahead_ms()
        unfit = self.storage.without_room.union(ahead)
        self.leaderships.send_home(now, unfit)
        self.leaderships.send_away(unfit, all_of_them=self.node_id in ahead)
        self.router.announce()
        self._truncate_logs()
        self.incoming.tidy()

    # Events.

    def _publish(self, type_: str, node: NodeId, **more: Any) -> None:
        self._events += 1
        now = self.clock.latest
        with suppress(ClockCeiling):
            now = self.clock.now()  # the latest alone stands still while nothing is written
        at = rfc3339(now)
        event_id = f"{self.node_id}-{now:x}-{self._events}"
        self.bus.publish(ClusterEvent(type=type_, node_id=node, at=at, id=event_id, **more))

    def _report_leader(self, replica: Replica) -> None:
        leader = replica.leader
        if leader == self.node_id:
            self.router.announce()
        if leader is not None:
            partition = None if replica.group == META_GROUP else replica.group - 1
            self._publish("LeaderElected", leader, partition=partition, term=replica.raft.term)

    def _report_move(self, group: GroupId, before: GroupTable, after: GroupTable) -> None:
        if after.settled and not before.settled:
            newest = after.members[max(after.wanted)]
            where = f"partition {group - 1} is at {', '.join(after.nodes)}"
            self._publish("PartitionMoved", newest, partition=group - 1, detail=where)

    def _report_replica(self, type_: str, node: NodeId, group: GroupId) -> None:
        partition = None if group == META_GROUP else group - 1
        self._publish(type_, node, partition=partition)

    def _report_storage(self, error: KotobaError) -> None:
        """Tell the others at once, so that they elect other leaders."""
        self.storage.look()
        if isinstance(error, StorageFull):
            self._on_storage_full()

    def _publish_storage(self, type_: str, node: NodeId, detail: str) -> None:
        self._publish(type_, node, detail=detail)

    def _report_transition(self, before: str, after: str, node: NodeId) -> None:
        names = {"suspected": "NodeSuspected", "failed": "NodeFailed", "active": "NodeRecovered"}
        log.info("%s is %s (was %s)", node, after, before)
        self._publish(names[after], node)

    # Queries.

    async def query(
        self,
        query: Query,
        *,
        consistency: Consistency,
        as_of: Timestamp | None,
        deadline: float,
        session: Timestamp | None = None,
        max_staleness_ms: int | None = None,
    ) -> QueryResult:
        """Run ``query`` on the snapshot that is asked for (``closed_reads.Freshness``)."""
        check_query(query, self.config.limits)
        freshness = Freshness(consistency, session, max_staleness_ms)
        if isinstance(query, Get) and len(query.cids) == 1 and as_of is None and not query.exact:
            found = await self._get_at_home(query.cids[0], freshness, deadline)
            if found is not None:
                return found
        pinned = cursor_timestamp(query) if as_of is None else as_of
        while True:
            snapshot, given = await self._snapshot(freshness, pinned, deadline)
            point = snapshot.point
            try:
                result = await execute(query, self.reads, point, self.config.limits, deadline)
            except ReadAgain as again:
                # A transaction that was decided meanwhile committed above our snapshot, and its
                # client may have been answered before we began.
                self.clock.merge(again.timestamp)
            except NoLeader:
                # A replica moved, or its node is out of reach: others can be asked.
                if asyncio.get_running_loop().time() + RETRY_DELAY_S >= deadline:
                    raise
                await asyncio.sleep(RETRY_DELAY_S)
            except HistoryCollected:
                # The present is never gone: this read took longer than history is kept. Where the
                # client named the moment, it is told.
                if pinned is not None or asyncio.get_running_loop().time() >= deadline:
                    raise
            except KotobaError:
                if await self.reads.stands(snapshot, deadline):
                    raise
            else:
                if await self.reads.stands(snapshot, deadline):
                    return self._as_given(result, point, given, freshness)

    def explain(self, query: Query, as_of: Timestamp | None) -> Explanation:
        """The plan of ``query``, of a snapshot ``as_of``, or of the present."""
        check_query(query, self.config.limits)
        pinned = cursor_timestamp(query) if as_of is None else as_of
        known = self.indexes.ready()
        usable = [one for one in known if pinned is None or one.since <= pinned]
        return explain(query, usable, self.founding.partition_count)

    async def _snapshot(
        self, freshness: Freshness, pinned: Timestamp | None, deadline: float
    ) -> tuple[Snapshot, ServedConsistency]:
        """Where to read, and what that gives: from what is closed here, else from the leaders."""
        partitions = range(self.founding.partition_count)
        if pinned is not None:
            closed = self.closed_reads.at(pinned, partitions)
            return Snapshot(closed or await self.reads.at(pinned, deadline)), "as_of"
        oldest = freshness.oldest(self.clock)
        if oldest == 0:
            return Snapshot(self.reads.eventual()), "eventual"
        if oldest is not None:
            closed = self.closed_reads.newest(oldest, partitions)
            if closed is not None:
                return Snapshot(closed), freshness.consistency
        return await self.reads.snapshot(deadline), "strong"

    def _as_given(
        self,
        result: QueryResult,
        point: ReadPoint,
        given: ServedConsistency,
        freshness: Freshness,
    ) -> QueryResult:
        staleness: float | None
        if given == "strong":
            staleness = 0.0
        elif given == "as_of":
            staleness = None
        elif point.skip_intents:
            staleness = self.closed_reads.staleness_here_ms()
        else:
            staleness = self.closed_reads.staleness_ms(point.timestamp)
        statistics = msgspec.structs.replace(
            result.statistics, consistency=given, staleness_ms=staleness
        )
        return msgspec.structs.replace(
            result, statistics=statistics, asked_session=freshness.session or 0
        )

    async def _get_at_home(
        self, digest: Digest, freshness: Freshness, deadline: float
    ) -> QueryResult | None:
        """One vertex from its own partition, the most frequent read: 1 partition confirmed instead
        of all. None when it is not there: it may be an edge, or a version, of any partition."""
        begin_s = self.reads.steady_s()
        given: ServedConsistency = freshness.consistency
        oldest = freshness.oldest(self.clock)
        timestamp = None if oldest is None else self.closed_reads.time_for(digest, oldest)
        if timestamp is None:
            given = "strong"
            found = await self.reads.entity(digest, strong=True, deadline=deadline)
        else:
            found = self.closed_reads.entity(digest, timestamp)
        if found is None:
            return None
        entity, timestamp = found
        staleness = 0.0 if given == "strong" else self.closed_reads.staleness_ms(timestamp)
        elapsed_ms = (self.reads.steady_s() - begin_s) * 1000
        return QueryResult(
            rows=[entity],
            timestamp=timestamp,
            statistics=Statistics(
                partitions=1,
                cluster_nodes=1,
                scanned=1,
                elapsed_ms=elapsed_ms,
                consistency=given,
                staleness_ms=staleness,
            ),
            found={digest: 0},
            asked_session=freshness.session or 0,
        )

    async def _locate_edges(self, edges: list[Digest], deadline: float) -> dict[Digest, Digest]:
        """The source of each of ``edges`` that exists, or did: a retry of its deletion must find
        the answer that was remembered where it lived."""
        result = await self.query(
            Get(cids=tuple(edges)), consistency="strong", as_of=None, deadline=deadline
        )
        sources = {row.digest: row.source for row in result.rows if isinstance(row, Edge)}
        for edge in edges:
            if edge not in sources and edge not in result.found:
                sources.update(await self._locate_deleted(edge, deadline))
        return sources

    async def _locate_deleted(self, edge: Digest, deadline: float) -> dict[Digest, Digest]:
        try:
            history = await self.query(
                History(digest=edge), consistency="strong", as_of=None, deadline=deadline
            )
        except NotFound:
            return {}
        entities = [row.entity for row in history.rows if isinstance(row, VersionRow)]
        source = next((one.source for one in entities if isinstance(one, Edge)), None)
        return {} if source is None else {edge: source}


def _report_end(task: asyncio.Task[None]) -> None:
    """Work of this node that goes on for ever has come to an end."""
    if not task.cancelled():
        log.error("%r has ended: restart this node", task, exc_info=task.exception())
