"""Declaring, building and dropping indexes on a node of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import cast

import pytest

from cluster_core.cluster import KotobaCluster
from cluster_core.config import ClusterConfig
from cluster_core.errors import InvalidRequest, NotFound, TooLarge
from cluster_core.graph.operations import (
    CreateEdge,
    CreateNode,
    Operation,
    UpdateNode,
)
from cluster_core.node import index_table
from cluster_core.ports import DATA
from cluster_core.query.plan import Comparison, Count, FindNodes, OrderBy
from cluster_core.query.results import CountRow
from cluster_core.status import IndexStatus
from cluster_core.storage import keys
from tests.cluster_core.single_node import execute, single_node

BUILD_S = 20.0


@pytest.fixture
async def cluster() -> AsyncIterator[KotobaCluster]:
    async with single_node(ClusterConfig(partition_count=4)) as node:
        yield node


async def until_ready(cluster: KotobaCluster) -> list[IndexStatus]:
    async with asyncio.timeout(BUILD_S):
        while True:
            indexes = await cluster.indexes()
            if all(index.state == "ready" for index in indexes):
                return indexes
            await asyncio.sleep(0.02)


async def until_gone(cluster: KotobaCluster) -> None:
    async with asyncio.timeout(BUILD_S):
        while True:
            if not await cluster.indexes():
                return
            await asyncio.sleep(0.02)


async def count(cluster: KotobaCluster, age: int) -> tuple[int, str | None]:
    query = Count(labels=("Person",), where=Comparison("age", "eq", age))
    result = await cluster.execute_query(query)
    return cast("CountRow", result.rows[0]).count, result.statistics.index


async def test_what_was_there_and_what_comes_is_found(cluster: KotobaCluster) -> None:
    people: list[Operation] = [CreateNode(("Person",), {"age": n % 10}) for n in range(400)]
    await execute(cluster, people)
    status, is_new = await cluster.declare_index("Person", "age")
    assert (status.state, is_new) == ("building", True)
    await execute(cluster, people)
    (index,) = await until_ready(cluster)
    assert index.partitions_done == index.partition_count == 4
    assert await count(cluster, 3) == (80, "Person.age")


async def test_writes_go_on_while_it_is_built(cluster: KotobaCluster) -> None:
    digests = await execute(cluster, [CreateNode(("Person",), {"age": 1}) for _ in range(600)])
    changed = asyncio.create_task(
        execute(cluster, [UpdateNode(digest, {"age": 2}) for digest in digests[::2]])
    )
    edges: list[Operation] = [
        CreateEdge("KNOWS", source, target) for source, target in pairwise(digests)
    ]
    linked = asyncio.create_task(execute(cluster, edges))
    await cluster.declare_index("Person", "age")
    await cluster.declare_index("KNOWS", "since")
    await asyncio.gather(changed, linked)
    await until_ready(cluster)
    assert await count(cluster, 1) == (300, "Person.age")
    assert await count(cluster, 2) == (300, "Person.age")
    missing = Count(of="edges", label="KNOWS", where=Comparison("since", "exists", False))
    result = await cluster.execute_query(missing)
    assert cast("CountRow", result.rows[0]).count == 599
    assert result.statistics.index == "KNOWS.since"


async def test_a_time_before_it_was_ready_is_read_without_it(cluster: KotobaCluster) -> None:
    await execute(cluster, [CreateNode(("Person",), {"age": 1}) for _ in range(20)])
    before = cluster.now()
    await cluster.declare_index("Person", "age")
    (index,) = await until_ready(cluster)
    query = FindNodes(labels=("Person",), order_by=(OrderBy("age"),), limit=5)
    past = await cluster.execute_query(query, as_of=before)
    present = await cluster.execute_query(query, as_of=index.since)
    assert (past.statistics.index, present.statistics.index) == ("Person", "Person.age")
    assert past.rows == present.rows
    assert (await cluster.explain_query(query, as_of=before)).order == "sort"
    assert (await cluster.explain_query(query)).order == "index"


async def test_declaring_again_changes_nothing(cluster: KotobaCluster) -> None:
    await cluster.declare_index("Person", "age")
    _, is_new = await cluster.declare_index("Person", "age")
    assert not is_new
    assert len(await cluster.indexes()) == 1


async def test_a_dropped_index_leaves_nothing_and_may_be_declared_anew(
    cluster: KotobaCluster,
) -> None:
    await execute(cluster, [CreateNode(("Person",), {"age": n % 10}) for n in range(100)])
    await cluster.declare_index("Person", "age")
    await until_ready(cluster)
    status = await cluster.drop_index("Person", "age")
    assert status.state == "dropping"
    assert await count(cluster, 3) == (10, "Person")
    await until_gone(cluster)
    assert not entries(cluster)
    await cluster.declare_index("Person", "age")
    await until_ready(cluster)
    assert await count(cluster, 3) == (10, "Person.age")
    assert len(entries(cluster)) == 100


def entries(cluster: KotobaCluster) -> list[bytes]:
    assert cluster.engine is not None
    prefixes = [keys.table_prefix(group, keys.PROPERTY) for group in range(1, 5)]
    return [
        key
        for prefix in prefixes
        for key, _ in cluster.engine.scan(DATA, prefix, keys.after(prefix))
    ]


async def test_dropping_what_is_not_there_is_not_found(cluster: KotobaCluster) -> None:
    with pytest.raises(NotFound):
        await cluster.drop_index("Person", "age")


@pytest.mark.parametrize(
    ("label", "name", "where"),
    [("", "age", "label"), ("Person", "a\0b", "property"), ("x" * 300, "age", "label")],
)
async def test_names_that_no_entity_has_are_refused(
    cluster: KotobaCluster, label: str, name: str, where: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await cluster.declare_index(label, name)
    assert [problem["where"] for problem in refused.value.extra["errors"]] == [where]


async def test_there_is_a_bound_on_how_many(
    cluster: KotobaCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_table, "INDEXES_MAX", 2)
    await cluster.declare_index("A", "p")
    await cluster.declare_index("B", "p")
    with pytest.raises(TooLarge):
        await cluster.declare_index("C", "p")
    await cluster.declare_index("B", "p")
