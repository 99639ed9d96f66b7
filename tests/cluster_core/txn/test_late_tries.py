"""A node that lost the connection to a leader tries again; its first try may come late."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from cluster_core.cluster import KotobaCluster
from cluster_core.config import ClusterConfig
from cluster_core.graph.operations import (
    CreateEdge,
    CreateNode,
    DeleteEdge,
    OperationResult,
)
from cluster_core.query.plan import Get, Neighbours
from cluster_core.types import Digest, partition_of
from tests.cluster_core.single_node import single_node

PARTITIONS = 4


@pytest.fixture
async def cluster() -> AsyncIterator[KotobaCluster]:
    async with single_node(ClusterConfig(partition_count=PARTITIONS)) as node:
        yield node


async def vertex_in(cluster: KotobaCluster, partition: int) -> Digest:
    while True:
        made = await cluster.execute_operation(CreateNode())
        if partition_of(made.digest, PARTITIONS) == partition:
            return made.digest


@pytest.mark.parametrize("target_partition", [1, 2])
async def test_an_edge_that_was_made_and_deleted_meanwhile_is_not_made_again(
    cluster: KotobaCluster, target_partition: int
) -> None:
    writes, executor = cluster.node.writes, cluster.node.executor
    source, target = await vertex_in(cluster, 1), await vertex_in(cluster, target_partition)
    item = writes._item(CreateEdge("KNOWS", source, target), None, "", 0, None)
    assert item is not None
    deadline = asyncio.get_running_loop().time() + 10
    (second,) = await executor.execute([item], deadline)
    assert isinstance(second, OperationResult)
    await cluster.execute_operation(DeleteEdge(second.digest, source))
    (first,) = await executor.execute([item], deadline)
    assert isinstance(first, OperationResult)
    assert first.digest == second.digest
    assert not (await cluster.execute_query(Get(cids=(second.digest,), source=source))).rows
    for vertex in (source, target):
        found = await cluster.execute_query(Neighbours(vertex=vertex, direction="both"))
        assert not found.rows
