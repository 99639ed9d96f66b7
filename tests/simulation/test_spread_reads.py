"""Strong reads are served by the replica of the node that is asked: work spreads over the nodes."""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial
from typing import Any, Final

import pytest

from cluster_core.cluster import KotobaCluster
from cluster_core.graph.operations import CreateNode
from cluster_core.query.plan import Get
from cluster_core.storage import keys
from cluster_core.storage.memory import MemoryEngine
from cluster_core.types import Digest, group_of, partition_of
from tests.simulation.world import SIM_CONFIG, World, simulate

pytestmark = pytest.mark.simulation

VERTICES: Final = 24


class ReadEntities:
    """Which store looked up or scanned entities of a set, and how often."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.by_store: Counter[int] = Counter()
        self._prefixes: tuple[bytes, ...] = ()
        look_up = MemoryEngine.first

        def first(engine: MemoryEngine, family: int, begin: bytes, end: bytes) -> Any:
            if begin.startswith(self._prefixes):
                self.by_store[id(engine)] += 1
            return look_up(engine, family, begin, end)

        monkeypatch.setattr(MemoryEngine, "first", first)

    def watch(self, digests: list[Digest]) -> None:
        partitions = SIM_CONFIG.partition_count
        self._prefixes = tuple(
            keys.entity(group_of(partition_of(one, partitions)), one) for one in digests
        )


def test_each_node_reads_its_own_replica_for_who_asks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    read = ReadEntities(monkeypatch)

    async def create(cluster: KotobaCluster) -> Digest:
        return (await cluster.execute_operation(CreateNode(("Thing",)))).digest

    async def get(digest: Digest, cluster: KotobaCluster) -> int:
        return len((await cluster.execute_query(Get(cids=(digest,)))).rows)

    async def scenario(world: World) -> None:
        world.start_all()
        await world.until_ready()
        made = [await world.nodes[n % 3].ask(create) for n in range(VERTICES)]
        await asyncio.sleep(1)
        read.watch(made)
        for node in world.nodes:
            read.by_store.clear()
            for digest in made:
                assert await node.ask(partial(get, digest)) == 1
            assert read.by_store == {id(node.engine): VERTICES}

    assert not simulate(7, scenario).failures
