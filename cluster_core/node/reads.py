"""Read points: which snapshot a read sees, and what a replica needs before it may serve it.

A *strong* read of one partition asks its leader for an index (ReadIndex) and reads what is applied
there or later. One of several partitions reads a single timestamp T: first every leader involved is
asked for its clock, T is the highest; then each leader confirms, in the same term, a round that
carried T to a majority, and waits for what it had proposed until then. From then on no leader of
these groups writes at or below T, this one or a later one. No clock is trusted for any of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence, Set
from contextlib import suppress
from functools import partial

import msgspec

from cluster_core.config import ClusterConfig
from cluster_core.errors import (
    ClockCeiling,
    HistoryCollected,
    InvalidRequest,
    NoLeader,
    OutcomeUnknown,
)
from cluster_core.graph.entities import Entity
from cluster_core.graph.indexes import IndexDefinition
from cluster_core.graph.records import decode_record, edge_ends
from cluster_core.hlc import HybridClock, format_timestamp
from cluster_core.ports import Engine
from cluster_core.query.host import ReadAgain, ReadPoint
from cluster_core.query.local import run_task_bytes
from cluster_core.replication.replica import Replica
from cluster_core.replication.router import RETRY_DELAY_S, Router
from cluster_core.storage import keys
from cluster_core.storage.mvcc import read_at
from cluster_core.types import (
    Digest,
    GroupId,
    NodeId,
    Timestamp,
    group_of,
    partition_of,
)

__all__ = ["Reads"]


class _ClockRequest(msgspec.Struct, array_like=True, frozen=True):
    groups: list[GroupId]


class _Clocks(msgspec.Struct, array_like=True, frozen=True):
    """The clock of a node, and the term in which it leads each group asked for."""

    clock: Timestamp
    terms: dict[GroupId, int]


class _PointRequest(msgspec.Struct, array_like=True, frozen=True):
    """Confirm these groups (with the terms of :class:`_Clocks`; 0: any). ``snapshot`` 0: only the
    index of what is committed."""

    snapshot: Timestamp
    terms: dict[GroupId, int]


class _Points(msgspec.Struct, array_like=True, frozen=True):
    """``indexes`` to be applied, and the timestamp up to which this node has applied."""

    applied: Timestamp
    indexes: dict[GroupId, int]


_encode = msgspec.msgpack.Encoder().encode
_decode_clock_request = msgspec.msgpack.Decoder(_ClockRequest).decode
_decode_clocks = msgspec.msgpack.Decoder(_Clocks).decode
_decode_point_request = msgspec.msgpack.Decoder(_PointRequest).decode
_decode_points = msgspec.msgpack.Decoder(_Points).decode


class _Asking:
    """A question for read points that gathers groups until it leaves."""

    __slots__ = ("deadline", "groups", "points")

    def __init__(self, points: asyncio.Future[_Points]) -> None:
        self.points = points
        self.groups: dict[GroupId, int] = {}
        self.deadline = 0.0


def _hand_over(points: asyncio.Future[_Points], asked: asyncio.Task[_Points]) -> None:
    if points.done():
        return
    if asked.cancelled():
        points.cancel()
    elif (error := asked.exception()) is not None:
        points.set_exception(error)
        points.exception()  # every reader may have gone
    else:
        points.set_result(asked.result())


class Reads:
    """This node as the query engine sees it (``query.host.QueryHost``), and its read points."""

    def __init__(
        self,
        router: Router,
        engine: Engine,
        clock: HybridClock,
        config: ClusterConfig,
        partition_count: int,
        indexes: Callable[[], Sequence[IndexDefinition]],
    ) -> None:
        self.engine = engine
        self.indexes = indexes
        self.partition_count = partition_count
        self._router = router
        self._clock = clock
        self._config = config
        self._asking: dict[NodeId, _Asking] = {}
        self._tasks: set[asyncio.Task[_Points]] = set()
        router.mesh.handle("read.clock", self._serve_clock)
        router.mesh.handle("read.point", self._serve_point)
        router.mesh.handle("query", self._serve_query, cancellable=True)

    # Read points.

    async def strong(self, partitions: Sequence[int], deadline: float) -> ReadPoint:
        """The present of ``partitions``: all that was acknowledged before this call is in it."""
        groups = [group_of(partition) for partition in partitions]
        while True:
            try:
                if len(groups) == 1:
                    return await self._latest(groups[0], deadline)
                return await self._snapshot_now(groups, deadline)
            except (NoLeader, OutcomeUnknown, ClockCeiling):
                for group in groups:
                    self._router.forget(group)
                if asyncio.get_running_loop().time() + RETRY_DELAY_S >= deadline:
                    raise
                await asyncio.sleep(RETRY_DELAY_S)

    async def at(
        self, timestamp: Timestamp, partitions: Sequence[int], deadline: float
    ) -> ReadPoint:
        """A given moment, past or present. Raises InvalidRequest for one that is too far ahead."""
        await self._wait_for_clock(timestamp, deadline)
        groups = [group_of(partition) for partition in partitions]
        while True:
            try:
                by_node = await self._by_leader(groups, deadline)
                terms = {node: dict.fromkeys(ones, 0) for node, ones in by_node.items()}
                return await self._confirm_snapshot(timestamp, terms, deadline)
            except (NoLeader, OutcomeUnknown, ClockCeiling):
                for group in groups:
                    self._router.forget(group)
                if asyncio.get_running_loop().time() + RETRY_DELAY_S >= deadline:
                    raise
                await asyncio.sleep(RETRY_DELAY_S)

    def eventual(self) -> ReadPoint:
        """What this node has; intents are passed over."""
        return ReadPoint(self._clock.latest, skip_intents=True)

    async def entity(
        self, digest: Digest, *, strong: bool, deadline: float
    ) -> tuple[Entity, Timestamp] | None:
        """The entity ``digest`` in the partition that its digest names, and the snapshot's time.

        None when it is not there, or when no replica of that partition is here: ask the query
        engine then.
        """
        partition = partition_of(digest, self.partition_count)
        replica = self._router.host.replicas.get(group_of(partition))
        if replica is None:
            return None
        while True:
            if strong:
                await self.strong((partition,), deadline)
            timestamp = replica.applied_timestamp
            if strong and replica.intents:
                try:
                    await self._settle_before(deadline, partition, timestamp, digest)
                except ReadAgain:
                    continue
            replica.require_intact()
            found = read_at(self.engine, keys.entity(replica.group, digest), timestamp)
            if found is None or not found[1]:
                return None
            if strong and replica.intents.detaching:
                held = [end for end in edge_ends(found[1]) if end in replica.intents.detaching]
                if held:
                    with suppress(ReadAgain):
                        await self._settle_before(deadline, partition, timestamp, *held)
                    continue
            return decode_record(digest, *found), timestamp

    async def _settle_before(
        self, deadline: float, partition: int, timestamp: Timestamp, *digests: Digest
    ) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                await self.settle(partition, timestamp, digests)
        except TimeoutError:
            raise OutcomeUnknown("a transaction on this entity is not decided yet") from None

    async def _wait_for_clock(self, timestamp: Timestamp, deadline: float) -> None:
        """A client's timestamp never moves our clock: one that is ahead waits, within bounds."""
        ahead_ms = (timestamp >> 16) - (self._clock.now() >> 16)
        if ahead_ms > self._config.replication.clock_offset_ms_max:
            why = "is in the future"
            raise InvalidRequest(f"as_of {why}", errors=[{"where": "as_of", "why": why}])
        if ahead_ms >= 0:
            remaining = deadline - asyncio.get_running_loop().time()
            await asyncio.sleep(min(remaining, (ahead_ms + 1) / 1000))

    async def _latest(self, group: GroupId, deadline: float) -> ReadPoint:
        node = await self._router.find_leader(group, deadline)
        replica = self._router.host.replicas.get(group)
        if node == self._router.node_id:
            assert replica is not None
            await _before(deadline, replica.read_barrier())
            return ReadPoint(replica.applied_timestamp)
        points = await self._shared_point(node, group, deadline)
        index = points.indexes.get(group)
        if index is None:
            raise NoLeader(f"{node} does not lead partition {group - 1} any more")
        if replica is None:
            return ReadPoint(points.applied, {group - 1: index})
        await _before(deadline, replica.reached(index))
        return ReadPoint(replica.applied_timestamp)

    async def _shared_point(self, node: NodeId, group: GroupId, deadline: float) -> _Points:
        """Ask ``node`` for a read point, together with all other readers of this moment.

        Only a question that has not left yet is joined: leadership has to be confirmed after the
        read began.
        """
        batch = self._asking.get(node)
        if batch is None:
            batch = self._asking[node] = _Asking(asyncio.get_running_loop().create_future())
            self._router.mesh.pace.soon(partial(self._ask_shared, node))
        batch.groups[group] = 0
        batch.deadline = max(batch.deadline, deadline)
        try:
            async with asyncio.timeout_at(deadline):
                return await asyncio.shield(batch.points)
        except TimeoutError:
            raise OutcomeUnknown("leadership was not confirmed in time") from None

    def _ask_shared(self, node: NodeId) -> None:
        batch = self._asking.pop(node)
        request = _PointRequest(0, batch.groups)
        task = asyncio.get_running_loop().create_task(self._point_at(node, request, batch.deadline))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(partial(_hand_over, batch.points))

    async def _snapshot_now(self, groups: Sequence[GroupId], deadline: float) -> ReadPoint:
        by_node = await self._by_leader(groups, deadline)
        clocks = await asyncio.gather(
            *(self._clock_at(node, ones, deadline) for node, ones in by_node.items())
        )
        timestamp = max(clock.clock for clock in clocks)
        terms = {node: clock.terms for node, clock in zip(by_node, clocks, strict=True)}
        return await self._confirm_snapshot(timestamp, terms, deadline)

    async def _confirm_snapshot(
        self, timestamp: Timestamp, terms: dict[NodeId, dict[GroupId, int]], deadline: float
    ) -> ReadPoint:
        answers = await asyncio.gather(
            *(
                self._point_at(node, _PointRequest(timestamp, ones), deadline)
                for node, ones in terms.items()
            )
        )
        confirmed = sum(len(answer.indexes) for answer in answers)
        if confirmed < sum(len(ones) for ones in terms.values()):
            raise NoLeader("a leader changed; ask again")
        applied: dict[int, int] = {}
        waits = []
        for answer in answers:
            for group, index in answer.indexes.items():
                replica = self._router.host.replicas.get(group)
                if replica is None:
                    applied[group - 1] = index
                elif replica.applied < index:
                    waits.append(replica.reached(index))
        if waits:
            await _before(deadline, *waits)
        return ReadPoint(timestamp, applied)

    async def _by_leader(
        self, groups: Sequence[GroupId], deadline: float
    ) -> dict[NodeId, list[GroupId]]:
        by_node: dict[NodeId, list[GroupId]] = {}
        for group in groups:
            node = await self._router.find_leader(group, deadline)
            by_node.setdefault(node, []).append(group)
        return by_node

    # The two questions, here and elsewhere.

    async def _clock_at(self, node: NodeId, groups: list[GroupId], deadline: float) -> _Clocks:
        if node == self._router.node_id:
            return self._clocks_here(groups)
        body = _encode(_ClockRequest(groups))
        return _decode_clocks(
            await self._router.mesh.request(node, "read.clock", body, timeout=_remaining(deadline))
        )

    def _clocks_here(self, groups: Sequence[GroupId]) -> _Clocks:
        terms = {group: self._router.leading(group).raft.term for group in groups}
        return _Clocks(self._clock.now(), terms)

    async def _serve_clock(self, peer: NodeId, body: bytes) -> bytes:
        return _encode(self._clocks_here(_decode_clock_request(body).groups))

    async def _point_at(self, node: NodeId, request: _PointRequest, deadline: float) -> _Points:
        if node == self._router.node_id:
            try:
                async with asyncio.timeout_at(deadline):
                    return await self._point_here(request)
            except TimeoutError:
                raise OutcomeUnknown("leadership was not confirmed in time") from None
        return _decode_points(
            await self._router.mesh.request(
                node, "read.point", _encode(request), timeout=_remaining(deadline)
            )
        )

    async def _point_here(self, request: _PointRequest) -> _Points:
        """Those of the groups that are led here and were confirmed; the others are left out."""
        self._clock.merge(request.snapshot)
        replicas: list[Replica] = []
        terms: list[int] = []
        for group, wanted in request.terms.items():
            replica = self._router.host.replicas.get(group)
            if replica is None or replica.evaluation is None:
                continue
            if wanted in (0, replica.raft.term):
                replicas.append(replica)
                terms.append(replica.raft.term)
        proposed = [replica.raft.last_index for replica in replicas]
        indexes = await _gather_known([replica.read_barrier() for replica in replicas])
        if request.snapshot:
            waits = zip(replicas, indexes, proposed, strict=True)
            indexes = await _gather_known(
                [
                    _lost() if confirmed is None else replica.reached_while_leading(index)
                    for replica, confirmed, index in waits
                ]
            )
        points: dict[GroupId, int] = {}
        applied = 0
        for replica, term, index, last in zip(replicas, terms, indexes, proposed, strict=True):
            if index is None or replica.evaluation is None or replica.raft.term != term:
                continue
            self._router.host.tell_commit(replica)
            points[replica.group] = last if request.snapshot else index
            applied = max(applied, replica.applied_timestamp)
        return _Points(applied, points)

    async def _serve_point(self, peer: NodeId, body: bytes) -> bytes:
        deadline = asyncio.get_running_loop().time() + self._config.limits.timeout_ms_max / 1000
        return _encode(await self._point_at(self.node_id, _decode_point_request(body), deadline))

    # What the query engine asks (query.host.QueryHost).

    @property
    def node_id(self) -> NodeId:
        return self._router.node_id

    def serving_node(self, partition: int, point: ReadPoint) -> NodeId:
        group = group_of(partition)
        replica = self._router.host.replicas.get(group)
        if replica is not None and replica.failed is None:
            return self._router.node_id
        if partition not in point.applied and not point.skip_intents:
            raise NoLeader(f"partition {partition} moved away before it was read; ask again")
        leader = self._router.leader(group)
        return leader or self._router.tables[group].nodes[0]

    async def run_remote(self, node: NodeId, task: bytes) -> bytes:
        timeout = self._config.limits.timeout_ms_max / 1000
        return await self._router.mesh.request(node, "query", task, timeout=timeout)

    async def _serve_query(self, peer: NodeId, body: bytes) -> bytes:
        return await run_task_bytes(self, body)

    async def wait_applied(self, partition: int, index: int) -> None:
        replica = self._router.host.replicas.get(group_of(partition))
        if replica is None:
            raise NoLeader(f"{self.node_id} has no replica of partition {partition}")
        await replica.reached(index)

    def require_history(self, partition: int, timestamp: Timestamp) -> object:
        replica = self._router.host.replicas.get(group_of(partition))
        if replica is None:
            raise NoLeader(f"{self.node_id} has no replica of partition {partition}")
        if timestamp < replica.horizon:
            raise HistoryCollected(
                f"{format_timestamp(timestamp)} is older than what is kept",
                kept_since=format_timestamp(replica.horizon),
            )
        return replica

    def detaching(self, partition: int) -> Set[Digest]:
        replica = self._router.host.replicas.get(group_of(partition))
        return frozenset() if replica is None else replica.intents.detaching

    async def settle(
        self, partition: int, timestamp: Timestamp, digests: Collection[Digest] | None
    ) -> None:
        replica = self._router.host.replicas.get(group_of(partition))
        if replica is None:
            raise NoLeader(f"{self.node_id} has no replica of partition {partition}")
        while (intent := replica.intents.undecided(timestamp, digests)) is not None:
            commit = await replica.intents.decided(intent.transaction)
            if commit > timestamp:
                raise ReadAgain(commit)
        replica.require_intact()


def _lost() -> asyncio.Future[int]:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    future.set_exception(NoLeader("leadership was lost; ask again"))
    return future


async def _gather_known(futures: Sequence[asyncio.Future[int]]) -> list[int | None]:
    """The results, None where the leadership was lost. Raises any other error."""
    outcomes = await asyncio.gather(*futures, return_exceptions=True)
    known: list[int | None] = []
    for outcome in outcomes:
        if isinstance(outcome, NoLeader):
            known.append(None)
        elif isinstance(outcome, BaseException):
            raise outcome
        else:
            known.append(outcome)
    return known


def _remaining(deadline: float) -> float:
    return max(0.001, deadline - asyncio.get_running_loop().time())


async def _before(deadline: float, *waits: asyncio.Future[int]) -> None:
    """Wait for all of ``waits``. Raises OutcomeUnknown at ``deadline``."""
    try:
        async with asyncio.timeout_at(deadline):
            await asyncio.gather(*waits)
    except TimeoutError:
        raise OutcomeUnknown("this replica did not catch up in time; try again") from None
