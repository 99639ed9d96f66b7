"""Writes at the node that is asked, a cluster of one."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cluster_core.cluster import KotobaCluster
from cluster_core.config import ClusterConfig
from cluster_core.errors import NoLeader
from cluster_core.graph.operations import (
    BatchOperation,
    CreateEdge,
    CreateNode,
    OperationResult,
    UpdateEdge,
)
from cluster_core.query.plan import Count
from cluster_core.query.results import CountRow
from cluster_core.txn.executor import JOBS_PER_TURN, Executor
from tests.cluster_core.single_node import single_node


@pytest.fixture
async def cluster() -> AsyncIterator[KotobaCluster]:
    async with single_node(ClusterConfig(partition_count=4)) as node:
        yield node


async def test_a_batch_whose_edges_cannot_be_looked_for_says_what_was_executed_all_the_same(
    cluster: KotobaCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def in_vain(*_: Any) -> None:
        raise NoLeader("a partition has no leader")

    monkeypatch.setattr(cluster.node.writes, "_locate", in_vain)
    *created, updated = await cluster.execute_batch(
        [
            BatchOperation(CreateNode(), "a"),
            BatchOperation(CreateNode(), "b"),
            BatchOperation(
                CreateEdge("KNOWS", b"", b""), "e", {"source_cid": "a", "target_cid": "b"}
            ),
            BatchOperation(UpdateEdge(b"", {"since": 2020}), refs={"cid": "e"}),
        ]
    )
    assert all(isinstance(outcome, OperationResult) for outcome in created)
    assert isinstance(updated, NoLeader)
    found = await cluster.execute_query(Count(of="edges"))
    assert found.rows == [CountRow(count=1)]


async def test_a_large_batch_leaves_the_event_loop_to_others_now_and_then(
    cluster: KotobaCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn = 0
    evaluated: Counter[int] = Counter()
    begin_group = Executor._begin_group

    async def count_turns() -> None:
        nonlocal turn
        while True:
            await asyncio.sleep(0)
            turn += 1

    def counted(self: Executor, group: int, jobs: list[Any], *more: Any) -> Any:
        evaluated[turn] += len(jobs)
        return begin_group(self, group, jobs, *more)

    monkeypatch.setattr(Executor, "_begin_group", counted)
    counting = asyncio.ensure_future(count_turns())
    outcomes = await cluster.execute_batch([BatchOperation(CreateNode())] * 3_000)
    counting.cancel()
    assert all(isinstance(outcome, OperationResult) for outcome in outcomes)
    assert evaluated.total() == 3_000
    assert max(evaluated.values()) <= JOBS_PER_TURN


async def test_the_edges_of_a_large_batch_are_made_each_once(cluster: KotobaCluster) -> None:
    """They are transactions, begun in portions."""
    made = await cluster.execute_batch([BatchOperation(CreateNode())] * 50)
    people = [outcome.digest for outcome in made if isinstance(outcome, OperationResult)]
    edges = [
        BatchOperation(CreateEdge("KNOWS", source, target))
        for source in people
        for target in people[:45]
    ]
    assert len(edges) > 2 * JOBS_PER_TURN
    outcomes = await cluster.execute_batch(edges, timeout_ms=60_000)
    assert all(isinstance(outcome, OperationResult) for outcome in outcomes)
    found = await cluster.execute_query(Count(of="edges"))
    assert found.rows == [CountRow(count=len(edges))]
