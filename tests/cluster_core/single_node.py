"""A whole node that is a cluster of one, in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Literal, cast

from cluster_core.cluster import KotobaCluster
from cluster_core.config import ClusterConfig
from cluster_core.errors import KotobaError
from cluster_core.graph.operations import BatchOperation, Operation, OperationResult
from cluster_core.query.plan import Count
from cluster_core.query.results import CountRow
from cluster_core.types import Digest

__all__ = ["count", "digests", "execute", "single_node"]


@asynccontextmanager
async def single_node(config: ClusterConfig) -> AsyncIterator[KotobaCluster]:
    """A node that is ready, and is stopped in the end."""
    node = KotobaCluster("node1", config)
    await node.start("node1:1")
    try:
        await node.ready()
        yield node
    finally:
        await node.stop()


async def execute(cluster: KotobaCluster, operations: Sequence[Operation]) -> list[Digest]:
    """As a batch, of which nothing may fail, however slow the machine."""
    batch = [BatchOperation(one) for one in operations]
    return digests(await cluster.execute_batch(batch, timeout_ms=60_000))


def digests(outcomes: Sequence[OperationResult | KotobaError]) -> list[Digest]:
    assert all(isinstance(outcome, OperationResult) for outcome in outcomes), outcomes
    return [cast("OperationResult", outcome).digest for outcome in outcomes]


async def count(cluster: KotobaCluster, of: Literal["nodes", "edges"]) -> int:
    result = await cluster.execute_query(Count(of=of))
    return cast("CountRow", result.rows[0]).count
