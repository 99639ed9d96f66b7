"""Read points: which snapshot a read sees, and what a replica needs before it may serve it.

A *strong* read of one partition has its moment from the partition's leader (``moments.py``). One of
several partitions is a snapshot of all (``snapshot_rounds.py``). No clock is trusted for any of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence, Set
from contextlib import asynccontextmanager, suppress

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
from cluster_core.node.confirmed_leaders import ConfirmedLeaders
from cluster_core.node.moments import Moments
from cluster_core.node.snapshot_rounds import Snapshot, SnapshotRounds
from cluster_core.ports import Engine
from cluster_core.query.host import ReadAgain, ReadPoint
from cluster_core.query.local import run_task_bytes
from cluster_core.replication.router import RETRY_DELAY_S, Router
from cluster_core.storage import keys
from cluster_core.storage.mvcc import newest
from cluster_core.types import (
    Digest,
    NodeId,
    Timestamp,
    group_of,
    partition_of,
)

__all__ = ["Reads"]


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
        steady_s: Callable[[], float],
    ) -> None:
        self.engine = engine
        self.indexes = indexes
        self.steady_s = steady_s
        self.partition_count = partition_count
        self._router = router
        self._clock = clock
        self._config = config
        self.leaders = ConfirmedLeaders(router.host, clock.latest)
        self._moments = Moments(router, self.leaders)
        self.rounds = SnapshotRounds(router, self.leaders, clock, partition_count)
        router.mesh.handle("query", self._serve_query, cancellable=True)

    def on_peer_down(self, peer: NodeId) -> None:
        self.leaders.forget(peer)
        self.rounds.on_peer_down(peer)

    async def close(self) -> None:
        await self.rounds.close()
        await self._moments.close()

    # Read points.

    async def strong(self, partition: int, deadline: float) -> ReadPoint:
        """The present of one partition: all that was acknowledged before this call is in it."""
        return await self._until(deadline, lambda: self._latest(partition, deadline))

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
        return await self._until(deadline, lambda: self.rounds.at(timestamp, deadline))

    async def _until(self, deadline: float, ask: Callable[[], Awaitable[ReadPoint]]) -> ReadPoint:
        """``ask``, until it is answered."""
        while True:
            try:
                return await ask()
            except (NoLeader, OutcomeUnknown, ClockCeiling):
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
            found = newest(self.engine, keys.entity(replica.group, digest))
            if strong and found is not None and replica.intents.detaching:
                held = [end for end in edge_ends(found[1]) if end in replica.intents.detaching]
                if held:
                    with suppress(ReadAgain):
                        await self._settle_before(deadline, partition, timestamp, *held)
                    continue
            if strong and found is not None and found[0] > timestamp:
                # It is newer than the moment. But a transaction may have been acknowledged before
                # this read began of which only the intent was applied then. So this is what we
                # tell, once the leader would.
                if (await self.strong(partition, deadline)).timestamp < found[0]:
                    continue
                timestamp = found[0]
            if found is None or not found[1]:
                return None
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

    async def _latest(self, partition: int, deadline: float) -> ReadPoint:
        group = group_of(partition)
        async with _before(deadline):
            moment = await self._moments.of(group)
            replica = self._router.host.replicas.get(group)
            if replica is not None and replica.applied < moment.index:
                await replica.reached(moment.index)
        return ReadPoint(moment.timestamp, {partition: moment.index})

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

    def horizon(self, partition: int) -> Timestamp:
        replica = self._router.host.replicas.get(group_of(partition))
        return 0 if replica is None else replica.horizon

    def detaching(self, partition: int) -> Set[Digest]:
        replica = self._router.host.replicas.get(group_of(partition))
        return frozenset() if replica is None else replica.intents.detaching

    async def settle(
        self,
        partition: int,
        timestamp: Timestamp,
        digests: Collection[Digest] | None,
        *,
        past_holds: bool = False,
    ) -> None:
        replica = self._router.host.replicas.get(group_of(partition))
        if replica is None:
            raise NoLeader(f"{self.node_id} has no replica of partition {partition}")
        undecided = replica.intents.undecided
        while (intent := undecided(timestamp, digests, past_holds=past_holds)) is not None:
            commit = await replica.intents.decided(intent.transaction)
            if commit > timestamp:
                raise ReadAgain(commit)
        replica.require_intact()


@asynccontextmanager
async def _before(deadline: float) -> AsyncIterator[None]:
    """Raises OutcomeUnknown at ``deadline``."""
    try:
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError:
        raise OutcomeUnknown("leadership was not confirmed in time; try again") from None
