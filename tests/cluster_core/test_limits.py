"""Every limit of size has an error that names it, and a line in the documentation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import fields, replace
from pathlib import Path

import pytest

from cluster_core.cluster import KotobaCluster
from cluster_core.config import ClusterConfig, LimitConfig
from cluster_core.errors import InvalidRequest, KotobaError, Overloaded, TooLarge
from cluster_core.graph.operations import (
    BatchOperation,
    CreateEdge,
    CreateNode,
    DeleteNode,
    Operation,
    UpdateNode,
)
from tests.cluster_core.single_node import single_node

DOCUMENT = Path(__file__).parents[2] / "docs" / "http-api.md"

LIMITS = LimitConfig(
    entity_bytes_max=2_000,
    property_count_max=3,
    property_name_bytes_max=8,
    label_count_max=2,
    label_bytes_max=8,
    batch_operations_max=4,
    transaction_operations_max=3,
    transaction_bytes_max=3_000,
    detach_edges_max=6,
    detach_step_edges_max=2,
    transaction_detach_edges_max=4,
    inflight_requests_max=8,
)


def check_bound(error: KotobaError, name: str) -> None:
    """The error says how much is allowed, and what that is called."""
    bound = getattr(LIMITS, name)
    assert (error.extra["limit"], error.extra["name"]) == (bound, name)
    assert str(bound) in error.detail
    assert error.detail.endswith(f"({name})")


@pytest.fixture
async def cluster() -> AsyncIterator[KotobaCluster]:
    async with single_node(replace(ClusterConfig(partition_count=4), limits=LIMITS)) as node:
        yield node


@pytest.mark.parametrize("limit", fields(LimitConfig), ids=lambda limit: limit.name)
def test_every_limit_is_documented(limit: object) -> None:
    assert f"`{limit.name}`" in DOCUMENT.read_text()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("operation", "where", "allowed"),
    [
        (CreateNode((), dict.fromkeys("abcd", 1)), "properties", "3"),
        (CreateNode((), {"a" * 9: 1}), "properties", "8"),
        (CreateNode((), {"ä" * 5: 1}), "properties", "8"),
        (CreateNode(("A", "B", "C")), "labels", "2"),
        (CreateNode(("A" * 9,)), "labels.0", "8"),
        (CreateEdge("L" * 9, b"s" * 32, b"t" * 32), "label", "8"),
    ],
)
async def test_what_is_too_much_says_where_and_how_much_is_allowed(
    cluster: KotobaCluster, operation: Operation, where: str, allowed: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await cluster.execute_operation(operation)
    (problem,) = caught.value.extra["errors"]
    assert problem["where"] == where
    assert allowed in problem["why"]


async def test_an_update_cannot_pass_the_limits_of_a_creation(cluster: KotobaCluster) -> None:
    made = await cluster.execute_operation(CreateNode((), {"a": "x" * 1_000, "b": 1}))
    with pytest.raises(TooLarge) as caught:
        await cluster.execute_operation(UpdateNode(made.digest, {"b": "x" * 1_000}))
    check_bound(caught.value, "entity_bytes_max")
    with pytest.raises(InvalidRequest, match="at most 3"):
        await cluster.execute_operation(UpdateNode(made.digest, {"c": 1, "d": 1}))


@pytest.mark.parametrize("operation", [CreateNode((), {"a": "x" * 2_000})])
async def test_an_entity_is_too_large(cluster: KotobaCluster, operation: Operation) -> None:
    with pytest.raises(TooLarge) as caught:
        await cluster.execute_operation(operation)
    check_bound(caught.value, "entity_bytes_max")


async def test_a_batch_or_a_transaction_has_too_many_operations(cluster: KotobaCluster) -> None:
    batch = [BatchOperation(CreateNode())] * 5
    with pytest.raises(TooLarge) as caught:
        await cluster.execute_batch(batch)
    check_bound(caught.value, "batch_operations_max")
    with pytest.raises(TooLarge) as caught:
        await cluster.execute_transaction(batch[:4])
    check_bound(caught.value, "transaction_operations_max")


async def test_a_transaction_writes_too_much_in_one_partition(cluster: KotobaCluster) -> None:
    large = BatchOperation(CreateNode((), {"a": "x" * 1_500}))
    with pytest.raises(TooLarge) as caught:
        await cluster.execute_transaction([large, large])
    check_bound(caught.value, "transaction_bytes_max")


async def test_a_vertex_has_too_many_edges_to_be_deleted_with_them(cluster: KotobaCluster) -> None:
    hub = await cluster.execute_operation(CreateNode())
    for _ in range(LIMITS.detach_edges_max + 1):
        leaf = await cluster.execute_operation(CreateNode())
        await cluster.execute_operation(CreateEdge("L", hub.digest, leaf.digest))
    deletion = DeleteNode(hub.digest, detach=True)
    with pytest.raises(TooLarge) as caught:
        await cluster.execute_operation(deletion)
    check_bound(caught.value, "detach_edges_max")
    with pytest.raises(TooLarge) as caught:
        await cluster.execute_transaction([BatchOperation(deletion), BatchOperation(CreateNode())])
    check_bound(caught.value, "transaction_detach_edges_max")


async def test_more_writes_wait_than_may(cluster: KotobaCluster) -> None:
    creations = [cluster.execute_operation(CreateNode()) for _ in range(20)]
    outcomes = await asyncio.gather(*creations, return_exceptions=True)
    refused = [one for one in outcomes if isinstance(one, Overloaded)]
    assert refused
    check_bound(refused[0], "inflight_requests_max")
