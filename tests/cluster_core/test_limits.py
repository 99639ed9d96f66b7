"""Every limit of size has an error that names it, and a line in the documentation."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import fields, replace
from pathlib import Path

import pytest

from cluster_core.cluster import KotobaCluster
from cluster_core.config import ClusterConfig, LimitConfig
from cluster_core.errors import InvalidRequest, TooLarge
from cluster_core.graph.operations import (
    BatchOperation,
    CreateEdge,
    CreateNode,
    Operation,
    UpdateNode,
)

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
)


@pytest.fixture
async def cluster() -> AsyncIterator[KotobaCluster]:
    node = KotobaCluster("node1", replace(ClusterConfig(partition_count=4), limits=LIMITS))
    await node.start("node1:1")
    await node.ready()
    yield node
    await node.stop()


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
    assert caught.value.extra["limit"] == 2_000
    with pytest.raises(InvalidRequest, match="at most 3"):
        await cluster.execute_operation(UpdateNode(made.digest, {"c": 1, "d": 1}))


@pytest.mark.parametrize("operation", [CreateNode((), {"a": "x" * 2_000})])
async def test_an_entity_is_too_large(cluster: KotobaCluster, operation: Operation) -> None:
    with pytest.raises(TooLarge, match="2000") as caught:
        await cluster.execute_operation(operation)
    assert caught.value.extra["limit"] == 2_000


async def test_a_batch_or_a_transaction_has_too_many_operations(cluster: KotobaCluster) -> None:
    batch = [BatchOperation(CreateNode())] * 5
    with pytest.raises(TooLarge) as caught:
        await cluster.execute_batch(batch)
    assert caught.value.extra["limit"] == 4
    with pytest.raises(TooLarge) as caught:
        await cluster.execute_transaction(batch[:4])
    assert caught.value.extra["limit"] == 3


async def test_a_transaction_writes_too_much_in_one_partition(cluster: KotobaCluster) -> None:
    large = BatchOperation(CreateNode((), {"a": "x" * 1_500}))
    with pytest.raises(TooLarge) as caught:
        await cluster.execute_transaction([large, large])
    assert caught.value.extra["limit"] == 3_000
