"""The past, asked for again: a read as of the time of a write sees that write, or is told that the
time is no longer kept."""

from __future__ import annotations

import random
from typing import Any, Final

from cluster_core.cluster import KotobaCluster
from cluster_core.errors import HistoryCollected
from cluster_core.graph.operations import OperationResult
from cluster_core.query.plan import Get
from cluster_core.types import Timestamp
from tests.simulation import models
from tests.simulation.workload import History
from tests.simulation.world import SimNode, World

__all__ = ["compare_past"]

_SAMPLES: Final = 40


async def compare_past(world: World, history: History) -> int:
    """Ask random nodes for random writes that were acknowledged; how many were still kept."""
    source = random.Random(f"{world.seed}/past")
    count = min(_SAMPLES, len(history.acknowledged))
    kept = 0
    for action, result in source.sample(history.acknowledged, count):
        kept += await _compare(source.choice(world.nodes), action, result)
    return kept


async def _compare(node: SimNode, action: Any, result: OperationResult) -> bool:
    async def ask(cluster: KotobaCluster) -> Any:
        return await cluster.execute_query(Get(cids=(result.digest,)), as_of=result.timestamp)

    name = f"{action} {result.digest[:4].hex()}, asked of {node.name} as of its time"
    try:
        rows = (await node.ask(ask)).rows
    except HistoryCollected:
        assert result.timestamp < _highest_horizon(node.world), f"{name}: refused, but kept"
        return False
    if isinstance(action, models.Delete):
        assert not rows, f"{name}: is still there"
    else:
        assert [row.version for row in rows] == [result.version], f"{name}: {rows}"
    return True


def _highest_horizon(world: World) -> Timestamp:
    """Of all replicas: whoever was asked may have asked another node."""
    founded = [node.founded for node in world.nodes]
    replicas = [one for node in founded if node for one in node.host.replicas.values()]
    return max(replica.horizon for replica in replicas)
