"""A vertex with more edges than go in one step, deleted on a node of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import cast

import pytest

from cluster_core.cluster import KotobaCluster
from cluster_core.config import ClusterConfig, LimitConfig
from cluster_core.errors import NotFound, PreconditionFailed, TooLarge
from cluster_core.graph.entities import Vertex
from cluster_core.graph.operations import (
    BatchOperation,
    CreateEdge,
    CreateNode,
    DeleteEdge,
    DeleteNode,
)
from cluster_core.query.plan import Count, FindNodes, Get, Traverse
from cluster_core.query.results import CountRow
from cluster_core.replication.command import decode_command
from cluster_core.replication.intents import Intent
from cluster_core.replication.replica import Replica
from cluster_core.storage import keys
from cluster_core.txn import detach, executor
from cluster_core.txn.detach import EdgeDeletion, EdgesRequest
from cluster_core.txn.records import RecordState, decode_record
from cluster_core.txn.settlement import Settlement
from cluster_core.types import Digest, group_of, partition_of
from cluster_core.wire.messages import CONFIGURATION
from tests.cluster_core.single_node import count, execute, single_node
from tests.held import hold_back

PARTITIONS = 8
EDGES = 2_000
LIMITS = LimitConfig(
    detach_edges_max=EDGES + 10,
    detach_step_edges_max=500,
    detach_chunk_keys_max=200,
    transaction_detach_edges_max=1_000,
)


@pytest.fixture
async def cluster() -> AsyncIterator[KotobaCluster]:
    async with single_node(
        replace(ClusterConfig(partition_count=PARTITIONS), limits=LIMITS)
    ) as node:
        yield node


async def hub_with(cluster: KotobaCluster, edges: int) -> tuple[Digest, list[Digest]]:
    """A hub, and its neighbours: half of the edges lead to it, half from it."""
    hub, *others = await execute(cluster, [CreateNode()] * 51)
    ends = [(hub, others[n % 50]) if n % 2 else (others[n % 50], hub) for n in range(edges)]
    await execute(cluster, [CreateEdge("SPOKE", source, target) for source, target in ends])
    return hub, others


def deletion_of(cluster: KotobaCluster) -> EdgeDeletion:
    return cluster.node.executor._transactions._deletion


def unfinished(replica: Replica) -> bool:
    """Whether a transaction begun here is undecided, or committed and not resolved everywhere."""
    records = [decode_record(value) for _, value in replica.table(keys.RECORD)]
    return any(record.state is not RecordState.ABORTED for record in records)


def last_indexes(cluster: KotobaCluster) -> dict[int, int]:
    replicas = cluster.node.host.replicas
    return {group: replica.log.last_index() for group, replica in replicas.items() if group}


def keys_of_entries(cluster: KotobaCluster, since: dict[int, int]) -> list[int]:
    """How many keys each entry behind ``since`` writes."""
    logs = [(cluster.node.host.replicas[group].log, last) for group, last in since.items()]
    return [
        len(decode_command(entry.data).puts) // 2
        for log, last in logs
        for entry in log.entries(last + 1, log.last_index() + 1, 1 << 30)
        if entry.data and entry.kind != CONFIGURATION
    ]


async def test_all_edges_go_with_it_and_no_entry_is_large(cluster: KotobaCluster) -> None:
    hub, others = await hub_with(cluster, EDGES)
    assert await count(cluster, "edges") == EDGES
    before, logged = cluster.now(), last_indexes(cluster)
    result = await cluster.execute_operation(DeleteNode(hub, detach=True), timeout_ms=60_000)
    assert result.digest == hub
    assert await count(cluster, "edges") == 0
    assert await count(cluster, "nodes") == 50
    around = Traverse(start=tuple(others), direction="both", limit=10)
    assert not (await cluster.execute_query(around)).rows
    past = await cluster.execute_query(Count(of="edges"), as_of=before)
    assert cast("CountRow", past.rows[0]).count == EDGES
    assert max(keys_of_entries(cluster, logged)) <= 200 + 4
    # The record goes behind the answer, once all intents are resolved. On a slow machine creations
    # of edges were aborted, and tried again: that they were is kept for longer.
    replicas = cluster.node.host.replicas.values()
    async with asyncio.timeout(30):
        while any(map(unfinished, replicas)):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    assert not any(replica.intents or replica.table(keys.INTENT) for replica in replicas)


async def test_while_edges_go_only_who_looks_for_edges_waits(
    cluster: KotobaCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, others = await hub_with(cluster, EDGES)
    go_on = hold_back(monkeypatch, EdgeDeletion, "_delete_listed")
    await cluster.execute_operation(DeleteNode(hub, detach=True), timeout_ms=200)
    async with asyncio.timeout(5):
        assert await count(cluster, "nodes") == 50
        found = await cluster.execute_query(FindNodes(limit=100))
        assert {row.digest for row in found.rows if isinstance(row, Vertex)} == set(others)
        assert not (await cluster.execute_query(Get(cids=(b"n" * 32,)))).rows
    counting = asyncio.ensure_future(count(cluster, "edges"))
    looking = asyncio.ensure_future(cluster.execute_query(Get(cids=(hub,))))
    await asyncio.wait([counting, looking], timeout=0.2)
    assert not counting.done()
    assert not looking.done()
    go_on.set()
    assert await counting == 0
    assert not (await looking).rows


async def nodes_once_deleted(cluster: KotobaCluster, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many are counted when the deletion of a hub is answered: certain, and not carried out."""
    hub, _ = await hub_with(cluster, EDGES)
    go_on = hold_back(monkeypatch, Settlement, "_finish")
    await cluster.execute_operation(DeleteNode(hub, detach=True), timeout_ms=200)
    counting = asyncio.ensure_future(count(cluster, "nodes"))
    await asyncio.wait([counting], timeout=0.2)
    go_on.set()
    return await counting


async def test_who_looks_for_nodes_waits_until_it_is_carried_out(
    cluster: KotobaCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await nodes_once_deleted(cluster, monkeypatch) == 50


async def test_looking_past_the_intent_of_its_home_is_found(
    cluster: KotobaCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Intent, "only_holds", property(lambda intent: bool(intent.detach)))
    assert await nodes_once_deleted(cluster, monkeypatch) == 51


async def test_what_cannot_be_deleted_keeps_its_edges(cluster: KotobaCluster) -> None:
    hub, _ = await hub_with(cluster, 600)
    with pytest.raises(PreconditionFailed):
        await cluster.execute_operation(DeleteNode(hub, detach=True, if_version=b"v" * 32))
    assert await count(cluster, "edges") == 600
    with pytest.raises(NotFound):
        await cluster.execute_operation(DeleteNode(b"n" * 32, detach=True))


async def test_a_retry_under_the_same_key_gives_the_first_answer(cluster: KotobaCluster) -> None:
    hub, _ = await hub_with(cluster, 600)
    operation = DeleteNode(hub, detach=True)
    first = await cluster.execute_operation(operation, idempotency_key="once")
    assert await cluster.execute_operation(operation, idempotency_key="once") == first


async def test_too_many_edges_are_refused_by_name(cluster: KotobaCluster) -> None:
    hub, _ = await hub_with(cluster, EDGES + 11)
    with pytest.raises(TooLarge, match="detach_edges_max") as caught:
        await cluster.execute_operation(DeleteNode(hub, detach=True))
    assert caught.value.extra["limit"] == EDGES + 10
    operations = [BatchOperation(DeleteNode(hub, detach=True)), BatchOperation(CreateNode())]
    with pytest.raises(TooLarge, match="transaction_detach_edges_max") as caught:
        await cluster.execute_transaction(operations)
    name = "transaction_detach_edges_max"
    assert caught.value.extra == {"limit": 1_000, "name": name, "index": 0}
    assert await count(cluster, "edges") == EDGES + 11


async def test_in_a_batch_it_is_one_of_many(cluster: KotobaCluster) -> None:
    first, _ = await hub_with(cluster, 600)
    second, _ = await hub_with(cluster, 600)
    deletions = [DeleteNode(first, detach=True), DeleteNode(second, detach=True)]
    await execute(cluster, [*deletions, CreateNode(("Last",))])
    assert await count(cluster, "edges") == 0
    found = await cluster.execute_query(Get(cids=(first, second)))
    assert not found.rows


async def test_edges_that_were_deleted_before_hold_nobody_up(
    cluster: KotobaCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their entries are passed over in bounded looks, however many lie before a live one."""
    monkeypatch.setattr(detach, "LOOK_ENTRIES", 50)
    hub, *others = await execute(cluster, [CreateNode()] * 9)
    edges = await execute(cluster, [CreateEdge("SPOKE", hub, others[n % 8]) for n in range(500)])
    await execute(cluster, [DeleteEdge(edge, hub) for edge in sorted(edges)[:-1]])
    deletion, turns = deletion_of(cluster), 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    home = group_of(partition_of(hub, PARTITIONS))
    prefix = keys.out_prefix(home, hub)
    await deletion.require_countable(home, hub)  # all is applied then
    counting = asyncio.ensure_future(count_turns())
    page = await deletion._page(prefix, b"", 10)
    counting.cancel()
    assert [key[-32:] for key, _ in page] == sorted(edges)[-1:]
    assert turns >= 500 // 50 - 1  # it begins with the first pause
    assert not await deletion._page(prefix, page[-1][0], 10)


@pytest.mark.parametrize("with_detach", [False, True])
async def test_a_deletion_evaluates_behind_the_edges_that_were_deleted_before(
    cluster: KotobaCluster, monkeypatch: pytest.MonkeyPatch, with_detach: bool
) -> None:
    monkeypatch.setattr(executor, "PASS_ENTRIES", 50)
    hub, *others = await execute(cluster, [CreateNode()] * 9)
    edges = await execute(cluster, [CreateEdge("SPOKE", hub, others[n % 8]) for n in range(500)])
    await execute(cluster, [DeleteEdge(edge, hub) for edge in edges])
    home = group_of(partition_of(hub, PARTITIONS))
    await deletion_of(cluster).require_countable(home, hub)  # all is applied then
    evaluation = cluster.node.host.replicas[home].evaluation
    assert evaluation is not None
    look, portions = evaluation.pass_dead, 0

    def passing(prefix: bytes, most: int) -> bool:
        nonlocal portions
        portions += 1
        return look(prefix, most)

    monkeypatch.setattr(evaluation, "pass_dead", passing)
    await cluster.execute_operation(DeleteNode(hub, detach=with_detach))
    assert portions >= 500 // 50
    out = keys.out_prefix(home, hub)
    assert not list(evaluation._scan_engine(out))
    assert evaluation._passed[out] > max(keys.out_edge(home, hub, "SPOKE", edge) for edge in edges)
    assert await count(cluster, "nodes") == 8


async def test_who_tries_again_goes_on_where_the_last_try_failed(
    cluster: KotobaCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, _ = await hub_with(cluster, EDGES)
    deletion = deletion_of(cluster)
    begins: list[bytes] = []
    pages_at_home = failed_at = 0
    look, delete = deletion._page, deletion._delete_here

    async def looking(prefix: bytes, after: bytes, size: int) -> list[tuple[bytes, bytes]]:
        begins.append(after)
        return await look(prefix, after, size)

    async def failing(request: EdgesRequest) -> None:
        nonlocal pages_at_home, failed_at
        if request.group == group_of(partition_of(hub, PARTITIONS)):
            pages_at_home += 1
            if pages_at_home == 2:
                failed_at = len(begins)
                raise TooLarge("on purpose")
        await delete(request)

    monkeypatch.setattr(deletion, "_page", looking)
    monkeypatch.setattr(deletion, "_delete_here", failing)
    await cluster.execute_operation(DeleteNode(hub, detach=True), timeout_ms=60_000)
    assert await count(cluster, "edges") == 0
    assert begins[failed_at] == begins[failed_at - 1] != b""
    assert not deletion._reached


async def test_what_fails_on_the_way_is_finished_by_the_sweep(
    cluster: KotobaCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, _ = await hub_with(cluster, 600)
    listed = EdgeDeletion._delete_listed
    failures: list[object] = []

    async def failing(self: EdgeDeletion, *args: object) -> None:
        if not failures:
            failures.append(args)
            raise TooLarge("on purpose")
        await listed(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(EdgeDeletion, "_delete_listed", failing)
    await cluster.execute_operation(DeleteNode(hub, detach=True), timeout_ms=10_000)
    assert await count(cluster, "edges") == 0
    assert failures
