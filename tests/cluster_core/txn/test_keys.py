"""How far an Idempotency-Key of a single operation, or of a transaction, reaches."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import cast

import pytest

from cluster_core.cluster import KotobaCluster
from cluster_core.config import ClusterConfig
from cluster_core.errors import IdempotencyKeyReused, PreconditionFailed
from cluster_core.graph.entities import Vertex
from cluster_core.graph.operations import (
    BatchOperation,
    CreateEdge,
    CreateNode,
    DeleteEdge,
    Operation,
    UpdateNode,
)
from cluster_core.query.plan import Get
from cluster_core.storage import keys
from cluster_core.types import Digest, partition_of
from tests.cluster_core.single_node import execute, single_node

CONFIG = replace(ClusterConfig(), partition_count=4)


@pytest.fixture
async def cluster() -> AsyncIterator[KotobaCluster]:
    async with single_node(CONFIG) as node:
        yield node


async def three(cluster: KotobaCluster) -> tuple[Digest, Digest, Digest]:
    """Two vertices of one partition, and one of another."""
    vertices = await execute(cluster, [CreateNode()] * 20)
    first = home(vertices[0])
    vertex, neighbour, *_ = (each for each in vertices if home(each) == first)
    return vertex, neighbour, next(each for each in vertices if home(each) != first)


def home(vertex: Digest) -> int:
    return partition_of(vertex, CONFIG.partition_count)


async def n_of(cluster: KotobaCluster, vertex: Digest) -> object:
    (row,) = (await cluster.execute_query(Get(cids=(vertex,)))).rows
    return cast("Vertex", row).properties.get("n")


def remembered(cluster: KotobaCluster) -> int:
    replicas = cluster.node.host.replicas.values()
    return sum(len(replica.table(keys.DEDUPE)) for replica in replicas)


async def test_another_request_is_found_out_where_it_goes_to_the_same_partition(
    cluster: KotobaCluster,
) -> None:
    vertex, neighbour, _ = await three(cluster)
    request = UpdateNode(vertex, {"n": 1})
    first = await cluster.execute_operation(request, idempotency_key="key")
    others: list[Operation] = [UpdateNode(vertex, {"n": 2}), UpdateNode(neighbour, {"n": 1})]
    for other in others:
        with pytest.raises(IdempotencyKeyReused):
            await cluster.execute_operation(other, idempotency_key="key")
    assert await cluster.execute_operation(request, idempotency_key="key") == first
    assert [await n_of(cluster, each) for each in (vertex, neighbour)] == [1, None]


async def test_another_request_is_executed_where_it_goes_to_another_partition(
    cluster: KotobaCluster,
) -> None:
    vertex, _, stranger = await three(cluster)
    requests = [UpdateNode(vertex, {"n": 1}), UpdateNode(stranger, {"n": 2})]
    first = [await cluster.execute_operation(each, idempotency_key="key") for each in requests]
    again = [await cluster.execute_operation(each, idempotency_key="key") for each in requests]
    assert again == first
    assert [await n_of(cluster, each) for each in (vertex, stranger)] == [1, 2]


async def test_what_failed_or_changed_nothing_is_not_remembered(cluster: KotobaCluster) -> None:
    vertex, _, _ = await three(cluster)
    await cluster.execute_operation(UpdateNode(vertex, {"n": 1}))
    before = remembered(cluster)
    idle = UpdateNode(vertex, {"n": 1})
    await cluster.execute_operation(idle, idempotency_key="idle")
    refused = UpdateNode(vertex, {"n": 7}, if_version=b"v" * 32)
    with pytest.raises(PreconditionFailed):
        await cluster.execute_operation(refused, idempotency_key="refused")
    assert remembered(cluster) == before
    await cluster.execute_operation(UpdateNode(vertex, {"n": 2}))
    await cluster.execute_operation(idle, idempotency_key="idle")
    assert await n_of(cluster, vertex) == 1


async def test_a_deletion_sent_again_finds_its_answer_though_the_edge_is_gone(
    cluster: KotobaCluster,
) -> None:
    vertex, neighbour, stranger = await three(cluster)
    for number, target in enumerate((neighbour, stranger)):
        edge = await cluster.execute_operation(CreateEdge("K", vertex, target))
        deletion, key = DeleteEdge(edge.digest), f"deletion {number}"
        first = await cluster.execute_operation(deletion, idempotency_key=key)
        assert await cluster.execute_operation(deletion, idempotency_key=key) == first


async def test_a_transaction_is_remembered_in_the_partition_of_its_first_operation(
    cluster: KotobaCluster,
) -> None:
    vertex, neighbour, stranger = await three(cluster)

    async def send(operations: Sequence[Operation]) -> object:
        several = [BatchOperation(one) for one in operations]
        return await cluster.execute_transaction(several, idempotency_key="key")

    both = [UpdateNode(vertex, {"n": 1}), UpdateNode(stranger, {"n": 1})]
    first = await send(both)
    with pytest.raises(IdempotencyKeyReused):
        await send([UpdateNode(neighbour, {"n": 2})])
    await send([UpdateNode(stranger, {"n": 2})])
    assert await send(both) == first
    found = [await n_of(cluster, each) for each in (vertex, neighbour, stranger)]
    assert found == [1, None, 2]
