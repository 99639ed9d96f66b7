"""Read points: which snapshot a read sees, and what a replica needs before it may serve it.

A *strong* read of one partition asks its leader for a moment (ReadIndex): what is applied at the
leader once a majority has confirmed that it still leads. Any replica that has applied that serves
the read, at the time that the leader gave: so nothing is told that the leader would hold for a
snapshot (``replication/holds.py``). One of several partitions is a snapshot of all
(``snapshot_rounds.py``). No clock is trusted for any of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence, Set
from contextlib import asynccontextmanager, suppress
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
from cluster_core.hlc import HybridClock, format_timestamp, wall_of
from cluster_core.node.snapshot_rounds import Snapshot, SnapshotRounds
from cluster_core.ports import Engine
from cluster_core.query.host import ReadAgain, ReadPoint
from cluster_core.query.local import run_task_bytes
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


class _Moment(msgspec.Struct, array_like=True, frozen=True):
    """A read of one partition: at ``timestamp``, where ``index`` is applied."""

    index: int
    timestamp: Timestamp


_encode = msgspec.msgpack.Encoder().encode
_decode_groups = msgspec.msgpack.Decoder(list[GroupId]).decode
_decode_moments = msgspec.msgpack.Decoder(dict[GroupId, _Moment]).decode


class _Asking:
    """A question for moments that gathers groups until it leaves."""

    __slots__ = ("deadline", "groups", "moments")

    def __init__(self, moments: asyncio.Future[dict[GroupId, _Moment]]) -> None:
        self.moments = moments
        self.groups: set[GroupId] = set()
        self.deadline = 0.0


def _hand_over(
    moments: asyncio.Future[dict[GroupId, _Moment]], asked: asyncio.Task[dict[GroupId, _Moment]]
) -> None:
    if moments.done():
        return
    if asked.cancelled():
        moments.cancel()
    elif (error := asked.exception()) is not None:
        moments.set_exception(error)
        moments.exception()  # every reader may have gone
    else:
        moments.set_result(asked.result())


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
        self._tasks: set[asyncio.Task[dict[GroupId, _Moment]]] = set()
        self.rounds = SnapshotRounds(router, clock, partition_count)
        router.mesh.handle("read.point", self._serve_point)
        router.mesh.handle("query", self._serve_query, cancellable=True)

    # Read points.

    async def strong(self, partition: int, deadline: float) -> ReadPoint:
        """The present of one partition: all that was acknowledged before this call is in it."""
        group = group_of(partition)
        return await self._until(deadline, [group], lambda: self._latest(group, deadline))

    async def snapshot(self, deadline: float) -> Snapshot:
        """The present of all partitions at one moment."""
        return await self.rounds.now(deadline)

    async def stands(self, snapshot: Snapshot, deadline: float) -> bool:
        """Whether what was read in ``snapshot`` may be told; if not, a new one is needed."""
        if snapshot.verified is None:
            return True
        async with _before(deadline):
            stands = await asyncio.shield(snapshot.verified)
        if not stands:
            self.rounds.too_slow()
        return stands

    async def at(self, timestamp: Timestamp, deadline: float) -> ReadPoint:
        """A given moment of all partitions, past or present. Raises InvalidRequest for one that is
        too far ahead."""
        await self._wait_for_clock(timestamp, deadline)
        return await self._until(deadline, [], lambda: self.rounds.at(timestamp, deadline))

    async def _until(
        self,
        deadline: float,
        groups: Sequence[GroupId],
        ask: Callable[[], Awaitable[ReadPoint]],
    ) -> ReadPoint:
        """``ask``, until it is answered."""
        while True:
            try:
                return await ask()
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
            timestamp = replica.applied_timestamp
            if strong:
                timestamp = (await self.strong(partition, deadline)).timestamp
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
        loop = asyncio.get_running_loop()
        while (now := self._clock.now()) < timestamp:
            ahead_ms = wall_of(timestamp) - wall_of(now)
            if ahead_ms > self._config.replication.clock_offset_ms_max:
                why = "is in the future"
                raise InvalidRequest(f"as_of {why}", errors=[{"where": "as_of", "why": why}])
            # Longer than this where our clock is ahead of wall time: so we look again.
            ready_at = loop.time() + (ahead_ms + 1) / 1000
            await asyncio.sleep(min(ready_at, deadline) - loop.time())
            if loop.time() >= deadline:
                raise OutcomeUnknown("as_of is ahead of this node's clock; try again")

    async def _latest(self, group: GroupId, deadline: float) -> ReadPoint:
        node = await self._router.find_leader(group, deadline)
        replica = self._router.host.replicas.get(group)
        if node == self._router.node_id:
            assert replica is not None
            async with _before(deadline):
                await replica.read_barrier()
                await replica.read_floor_reached()
                timestamp, index = replica.applied_timestamp, replica.applied
                await replica.holds.passed(timestamp)
            return ReadPoint(timestamp, {group - 1: index})
        moment = (await self._shared(node, group, deadline)).get(group)
        if moment is None:
            raise NoLeader(f"{node} does not lead partition {group - 1} any more")
        if replica is not None and replica.applied < moment.index:
            async with _before(deadline):
                await replica.reached(moment.index)
        return ReadPoint(moment.timestamp, {group - 1: moment.index})

    async def _shared(
        self, node: NodeId, group: GroupId, deadline: float
    ) -> dict[GroupId, _Moment]:
        """Ask ``node`` for a moment, together with all other readers of this turn.

        Only a question that has not left yet is joined: leadership has to be confirmed after the
        read began.
        """
        batch = self._asking.get(node)
        if batch is None:
            batch = self._asking[node] = _Asking(asyncio.get_running_loop().create_future())
            self._router.mesh.pace.soon(partial(self._ask_shared, node))
        batch.groups.add(group)
        batch.deadline = max(batch.deadline, deadline)
        async with _before(deadline):
            return await asyncio.shield(batch.moments)

    def _ask_shared(self, node: NodeId) -> None:
        batch = self._asking.pop(node)
        task = asyncio.get_running_loop().create_task(
            self._moments_at(node, sorted(batch.groups), batch.deadline)
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(partial(_hand_over, batch.moments))

    async def _moments_at(
        self, node: NodeId, groups: list[GroupId], deadline: float
    ) -> dict[GroupId, _Moment]:
        remaining = max(0.001, deadline - asyncio.get_running_loop().time())
        body = _encode(groups)
        answer = await self._router.mesh.request(node, "read.point", body, timeout=remaining)
        return _decode_moments(answer)

    async def _serve_point(self, peer: NodeId, body: bytes) -> bytes:
        deadline = asyncio.get_running_loop().time() + self._config.limits.timeout_ms_max / 1000
        async with _before(deadline):
            return _encode(await self._moments_here(_decode_groups(body)))

    async def _moments_here(self, groups: Sequence[GroupId]) -> dict[GroupId, _Moment]:
        """Of those that are led here and were confirmed; the others are left out."""
        known = [self._router.host.replicas.get(group) for group in groups]
        leading = [one for one in known if one is not None and one.evaluation is not None]
        confirmed = await _known([replica.read_barrier() for replica in leading])
        reached = await _known(
            [
                replica.read_floor_reached()
                for replica, index in zip(leading, confirmed, strict=True)
                if index is not None
            ]
        )
        sure = [one for one, index in zip(leading, confirmed, strict=True) if index is not None]
        moments: dict[GroupId, _Moment] = {}
        for replica, floor in zip(sure, reached, strict=True):
            if floor is None or replica.evaluation is None:
                continue
            self._router.host.tell_commit(replica)
            moments[replica.group] = _Moment(replica.applied, replica.applied_timestamp)
        if moments:
            newest = max(moment.timestamp for moment in moments.values())
            await self._router.host.holds.passed(newest)
        return moments

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


async def _known(futures: Sequence[asyncio.Future[int]]) -> list[int | None]:
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


@asynccontextmanager
async def _before(deadline: float) -> AsyncIterator[None]:
    """Raises OutcomeUnknown at ``deadline``."""
    try:
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError:
        raise OutcomeUnknown("leadership was not confirmed in time; try again") from None
