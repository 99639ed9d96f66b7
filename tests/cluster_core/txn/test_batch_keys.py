"""Batches under an Idempotency-Key: exactly once, and next to nothing to remember."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import pytest

from cluster_core.cluster import KotobaCluster
from cluster_core.config import ClusterConfig
from cluster_core.errors import IdempotencyKeyReused, KotobaError, Overloaded
from cluster_core.graph.operations import (
    BatchOperation,
    CreateEdge,
    CreateNode,
    DeleteNode,
    Operation,
    OperationResult,
    UpdateNode,
)
from cluster_core.storage import keys
from tests.cluster_core.single_node import count, digests, single_node

PARTITIONS = 4
PEOPLE = [CreateNode(("Person",), {"number": number}) for number in range(200)]


@pytest.fixture
async def cluster() -> AsyncIterator[KotobaCluster]:
    async with single_node(ClusterConfig(partition_count=PARTITIONS)) as node:
        yield node


async def send(
    cluster: KotobaCluster, operations: Sequence[Operation], key: str
) -> list[OperationResult | KotobaError]:
    batch = [BatchOperation(one) for one in operations]
    return await cluster.execute_batch(batch, idempotency_key=key)


def remembered(cluster: KotobaCluster) -> int:
    replicas = cluster.node.host.replicas.values()
    return sum(len(replica.table(keys.DEDUPE)) for replica in replicas)


async def chain(cluster: KotobaCluster) -> list[CreateEdge]:
    people = digests(await send(cluster, PEOPLE, "people"))
    ends = zip(people, people[1:] + people[:1], strict=True)
    return [CreateEdge("KNOWS", source, target) for source, target in ends]


async def test_creations_of_a_batch_share_one_entry_in_each_partition(
    cluster: KotobaCluster,
) -> None:
    edges = await chain(cluster)
    assert remembered(cluster) == PARTITIONS
    digests(await send(cluster, edges, "edges"))
    assert await count(cluster, "edges") == len(edges)
    assert remembered(cluster) == 2 * PARTITIONS


async def test_a_batch_sent_again_makes_nothing_twice_and_gets_the_first_answers(
    cluster: KotobaCluster,
) -> None:
    edges = await chain(cluster)
    first = await send(cluster, edges, "edges")
    assert await send(cluster, edges, "edges") == first
    assert await count(cluster, "nodes") == len(PEOPLE)
    assert await count(cluster, "edges") == len(edges)


async def test_what_was_deleted_meanwhile_is_not_made_again(cluster: KotobaCluster) -> None:
    people = digests(await send(cluster, PEOPLE, "people"))
    await cluster.execute_operation(DeleteNode(people[0]))
    assert digests(await send(cluster, PEOPLE, "people")) == people
    assert await count(cluster, "nodes") == len(PEOPLE) - 1


async def test_another_batch_under_the_same_key_is_refused(cluster: KotobaCluster) -> None:
    await send(cluster, PEOPLE, "people")
    changed = [CreateNode(("Person",), {"number": -1}), *PEOPLE[1:]]
    outcomes = await send(cluster, changed, "people")
    assert all(isinstance(outcome, IdempotencyKeyReused) for outcome in outcomes)
    assert await count(cluster, "nodes") == len(PEOPLE)


async def test_what_is_no_creation_has_an_entry_of_its_own(cluster: KotobaCluster) -> None:
    people = digests(await send(cluster, PEOPLE, "people"))
    updates = [UpdateNode(digest, {"seen": True}) for digest in people]
    first = await send(cluster, updates, "updates")
    assert remembered(cluster) == PARTITIONS + len(updates)
    digests(await send(cluster, [UpdateNode(people[0], {"seen": False})], "again"))
    assert await send(cluster, updates, "updates") == first


async def test_where_no_more_is_remembered_new_batches_wait_and_known_ones_go_on(
    cluster: KotobaCluster,
) -> None:
    first = await send(cluster, PEOPLE, "people")
    for replica in cluster.node.host.replicas.values():
        replica.dedupe_full = True
    assert await send(cluster, PEOPLE, "people") == first
    for outcome in await send(cluster, PEOPLE, "more people"):
        assert isinstance(outcome, Overloaded)
        assert "dedupe_entries_max" in outcome.detail
