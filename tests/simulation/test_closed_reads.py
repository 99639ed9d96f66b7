"""Reads that any replica serves: at a closed timestamp, with and without its leader in reach."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, Final

import pytest
from msgspec import structs

from cluster_core.cluster import KotobaCluster
from cluster_core.errors import HistoryCollected, KotobaError
from cluster_core.graph.operations import CreateNode, DeleteNode, OperationResult, UpdateNode
from cluster_core.hlc import COUNTER_BITS
from cluster_core.ports import DATA
from cluster_core.query.plan import Count, FindNodes, Get, History, OrderBy, Query
from cluster_core.query.results import QueryResult
from cluster_core.storage import keys
from tests.simulation.world import SIM_CONFIG, SimNode, World, simulate

pytestmark = pytest.mark.simulation

_SETTLED_S: Final = 0.5
"""By then all that was written before is closed at every node."""


async def create(node: SimNode, value: int) -> OperationResult:
    operation = CreateNode(labels=("Thing",), properties={"value": value})
    return await node.ask(lambda cluster: cluster.execute_operation(operation))


async def update(node: SimNode, digest: bytes, value: int) -> OperationResult:
    operation = UpdateNode(digest=digest, properties={"value": value})
    return await node.ask(lambda cluster: cluster.execute_operation(operation))


async def delete(node: SimNode, digest: bytes) -> None:
    operation = DeleteNode(digest=digest)
    await node.ask(lambda cluster: cluster.execute_operation(operation))


async def ask(node: SimNode, query: Query, **how: Any) -> QueryResult:
    def request(cluster: KotobaCluster) -> Any:
        return cluster.execute_query(query, **how)

    return await node.ask(request)


def values(result: QueryResult) -> list[Any]:
    return [row.properties["value"] for row in result.rows]  # type: ignore[union-attr]


def isolate(world: World, node: SimNode) -> None:
    for other in world.addresses:
        if other != node.address:
            world.network.cut(node.address, other)
            world.network.cut(other, node.address)


async def ready(world: World) -> None:
    world.start_all()
    await world.until_ready()
    await asyncio.sleep(_SETTLED_S)


def test_a_session_sees_its_write_at_every_node() -> None:
    async def scenario(world: World) -> None:
        await ready(world)
        for value in range(20):
            made = await create(world.nodes[0], value)
            for node in world.nodes:
                result = await ask(
                    node,
                    Get(cids=(made.digest,)),
                    consistency="read_your_writes",
                    session=made.timestamp,
                )
                assert values(result) == [value]
                assert result.session >= made.timestamp

    simulate(1, scenario)


def test_an_answer_never_takes_a_session_back() -> None:
    async def scenario(world: World) -> None:
        await ready(world)
        first = await create(world.nodes[0], 1)
        session = first.timestamp
        for value in range(2, 10):
            session = (await create(world.nodes[0], value)).timestamp
        result = await ask(world.nodes[1], Get(cids=(first.digest,)), session=session)
        assert result.session >= session

    simulate(2, scenario)


def test_what_is_closed_is_served_without_a_leader_in_reach() -> None:
    async def scenario(world: World) -> None:
        await ready(world)
        made = await create(world.nodes[0], 1)
        await asyncio.sleep(_SETTLED_S)
        alone = world.nodes[2]
        isolate(world, alone)
        await asyncio.sleep(5)
        changed = await update(world.nodes[0], made.digest, 2)
        get, count = Get(cids=(made.digest,)), Count()
        how = {"consistency": "read_your_writes", "session": made.timestamp}
        for query in (get, count):
            result = await ask(alone, query, **how)
            assert result.statistics.consistency == "read_your_writes"
            assert result.statistics.staleness_ms is not None
            assert result.statistics.staleness_ms > 4_000
            assert result.timestamp >= made.timestamp
        past = await ask(alone, get, as_of=made.timestamp)
        assert (values(past), past.statistics.consistency) == ([1], "as_of")
        assert values(await ask(alone, get, consistency="eventual")) == [1]
        for impossible in (
            {"consistency": "eventual", "max_staleness_ms": 1_000},
            {"consistency": "read_your_writes", "session": changed.timestamp},
            {"as_of": changed.timestamp},
            {"consistency": "strong"},
        ):
            for query in (get, count):
                with pytest.raises(KotobaError):
                    await ask(alone, query, timeout_ms=1_000, **impossible)
        fresh = await ask(world.nodes[1], get, consistency="eventual", max_staleness_ms=1_000)
        assert values(fresh) == [2]
        assert fresh.statistics.staleness_ms is not None
        assert fresh.statistics.staleness_ms <= 1_000

    simulate(3, scenario)


def test_what_is_closed_names_what_every_replica_has_to_have_applied() -> None:
    """Also those that are here: another replica may have come before they are read."""

    async def scenario(world: World) -> None:
        await ready(world)
        await create(world.nodes[0], 1)
        await asyncio.sleep(_SETTLED_S)
        node = world.nodes[1].cluster.node
        partitions = range(node.founding.partition_count)
        point = node.closed_reads.newest(1, partitions)
        assert point is not None
        assert sorted(point.applied) == list(partitions)
        for partition, index in point.applied.items():
            assert 0 < index <= node.host.replicas[partition + 1].applied

    simulate(3, scenario)


def test_a_bounded_staleness_is_served_here_where_it_can_be() -> None:
    async def scenario(world: World) -> None:
        await ready(world)
        await create(world.nodes[0], 1)
        await asyncio.sleep(_SETTLED_S)
        for node in world.nodes:
            result = await ask(node, Count(), consistency="eventual", max_staleness_ms=500)
            assert result.statistics.consistency == "eventual"
            assert result.statistics.staleness_ms is not None
            assert result.statistics.staleness_ms <= 500
            now = await ask(node, Count(), consistency="eventual", max_staleness_ms=0)
            assert now.statistics.consistency == "strong"
            assert now.statistics.staleness_ms == 0

    simulate(4, scenario)


def test_nodes_without_a_replica_read_what_is_closed_elsewhere() -> None:
    async def scenario(world: World) -> None:
        await ready(world)
        made = [await create(world.nodes[0], value) for value in range(8)]
        await asyncio.sleep(_SETTLED_S)
        for node in world.nodes:
            result = await ask(node, Count(), as_of=made[3].timestamp)
            assert result.rows[0].count == 4  # type: ignore[union-attr]
            for value, one in enumerate(made):
                found = await ask(
                    node,
                    Get(cids=(one.digest,)),
                    consistency="read_your_writes",
                    session=made[-1].timestamp,
                )
                assert values(found) == [value]

    simulate(5, scenario, nodes=5)


SHORT: Final = replace(
    SIM_CONFIG, replication=replace(SIM_CONFIG.replication, history_retention_ms=2_000)
)


def test_the_past_is_kept_for_its_retention_and_then_gone_everywhere() -> None:
    async def scenario(world: World) -> None:
        await ready(world)
        first = await create(world.nodes[0], 1)
        doomed = await create(world.nodes[0], 100)
        second = await update(world.nodes[1], first.digest, 2)
        await update(world.nodes[1], first.digest, 3)
        await delete(world.nodes[0], doomed.digest)
        get = Get(cids=(first.digest,))
        await asyncio.sleep(_SETTLED_S)
        for node in world.nodes:
            assert values(await ask(node, get, as_of=first.timestamp)) == [1]
            assert values(await ask(node, get, as_of=second.timestamp)) == [2]
        await asyncio.sleep(6)
        for node in world.nodes:
            with pytest.raises(HistoryCollected):
                await ask(node, get, as_of=first.timestamp)
            with pytest.raises(HistoryCollected):
                await ask(node, Count(), as_of=first.timestamp)
            assert values(await ask(node, get)) == [3]
            assert values(await ask(node, get, as_of=_ago(node, 1_500))) == [3]
            left = [key.hex() for key, _ in _pairs(node) if key[3:35] == second.version]
            left += [key.hex() for key, value in _pairs(node) if doomed.digest in key + value]
            assert not left

    simulate(6, scenario, config=SHORT)


@pytest.mark.parametrize(
    "query", [FindNodes(limit=3), FindNodes(limit=3, order_by=(OrderBy("value"),))]
)
def test_pages_whose_snapshot_goes_while_they_are_turned_end_with_410_and_not_short(
    query: FindNodes,
) -> None:
    """Until then each page has what was there at first, whatever is deleted meanwhile."""

    async def scenario(world: World) -> None:
        await ready(world)
        made = [await create(world.nodes[0], value) for value in range(60)]
        seen: list[Any] = []
        cursor: str | None = None
        turned = 0
        while True:
            node = world.nodes[turned % len(world.nodes)]
            try:
                result = await ask(node, structs.replace(query, cursor=cursor))
            except HistoryCollected:
                break
            assert len(result.rows) == query.limit
            assert result.cursor is not None, "all were shown before they were gone"
            seen += values(result)
            cursor = result.cursor
            turned += 1
            await delete(node, made.pop().digest)
            await asyncio.sleep(0.4)
        assert len(set(seen)) == len(seen) == query.limit * turned >= 9
        if query.order_by:
            assert seen == list(range(len(seen)))
        for node in world.nodes:
            with pytest.raises(HistoryCollected):
                await ask(node, structs.replace(query, cursor=cursor))

    simulate(8, scenario, config=SHORT)


def test_a_history_tells_what_is_kept_and_that_there_was_more() -> None:
    async def scenario(world: World) -> None:
        await ready(world)
        made = await create(world.nodes[0], 0)
        written = [made]
        for value in range(1, 21):
            written.append(await update(world.nodes[value % 3], made.digest, value))
            await asyncio.sleep(0.3)
        query = History(digest=made.digest)
        for node in world.nodes:
            result = await ask(node, query)
            told = [row.timestamp for row in result.rows]  # type: ignore[union-attr]
            assert told == [one.timestamp for one in written[: -len(told) - 1 : -1]]
            assert 6 <= len(told) < len(written)
            assert (result.truncated, result.bound) == (True, "history")
            kept = written[-5].timestamp
            assert (await ask(node, query, as_of=kept)).rows[0].timestamp == kept  # type: ignore[union-attr]
            with pytest.raises(HistoryCollected):
                await ask(node, query, as_of=written[2].timestamp)
        fresh = await create(world.nodes[0], 0)
        whole = await ask(world.nodes[1], History(digest=fresh.digest))
        assert (len(whole.rows), whole.truncated) == (1, False)

    simulate(9, scenario, config=SHORT)


def _ago(node: SimNode, milliseconds: int) -> int:
    founded = node.founded
    assert founded is not None
    return founded.clock.latest - (milliseconds << COUNTER_BITS)


def _pairs(node: SimNode) -> list[tuple[bytes, bytes]]:
    """The data of a node, without what remembers requests."""
    pairs = node.engine.scan(DATA, b"", b"\xff" * 8)
    return [(key, value) for key, value in pairs if key[2:3] != keys.DEDUPE]
