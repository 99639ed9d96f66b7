"""Strong reads of one partition: whose word is taken for the present, and who waits for whom."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

from cluster_core.cluster import KotobaCluster
from cluster_core.graph.entities import Vertex
from cluster_core.graph.operations import CreateNode, OperationResult, UpdateNode
from cluster_core.node import confirmed_leaders
from cluster_core.node.moments import Moments
from cluster_core.query.plan import Get
from cluster_core.types import Digest
from tests.simulation.director import leading
from tests.simulation.test_snapshot_rounds import in_a_cluster
from tests.simulation.world import SimNode, World

pytestmark = pytest.mark.simulation


async def create(cluster: KotobaCluster) -> OperationResult:
    return await cluster.execute_operation(CreateNode(properties={"count": 1}))


async def increase(digest: Digest, cluster: KotobaCluster) -> None:
    await cluster.execute_operation(UpdateNode(digest, {"count": 2}))


async def count(digest: Digest, cluster: KotobaCluster) -> Any:
    (vertex,) = (await cluster.execute_query(Get(cids=(digest,)))).rows
    assert isinstance(vertex, Vertex)
    return vertex.properties["count"]


async def promise_more_than_is_applied(world: World) -> tuple[SimNode, Digest]:
    """The leader that has promised a snapshot one entry more than it has, and what it leads."""
    made = await world.nodes[0].ask(create)
    leader, replica = leading(world, made.partition + 1)
    assert replica.evaluation is not None
    replica.evaluation.read_floor = replica.raft.last_index + 1
    return leader, made.digest


async def read_at_a_leader_that_stood_still(world: World) -> Any:
    """It was asked before it could hear that another node leads now."""
    made = await world.nodes[0].ask(create)
    group = made.partition + 1
    leader, _ = leading(world, group)
    others = [node for node in world.nodes if node is not leader]
    standing_still = asyncio.ensure_future(leader.pause(8))

    def another_leads() -> bool:
        replicas = [node.cluster.node.host.replicas[group] for node in others]
        return any(replica.evaluation is not None for replica in replicas)

    await world.until(another_leads, 6, "another leader")
    await others[0].ask(partial(increase, made.digest))
    reading = asyncio.ensure_future(leader.ask(partial(count, made.digest)))
    await standing_still
    return await reading


def test_a_leader_that_stood_still_is_not_believed() -> None:
    async def scenario(world: World) -> None:
        assert await read_at_a_leader_that_stood_still(world) == 2

    in_a_cluster(scenario)


def test_believing_whoever_says_that_it_leads_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        assert await read_at_a_leader_that_stood_still(world) == 1

    monkeypatch.setattr(confirmed_leaders, "_is_followed", lambda *_: True)
    in_a_cluster(scenario)


def test_a_read_waits_for_what_its_leader_promised_to_a_snapshot() -> None:
    async def scenario(world: World) -> None:
        leader, digest = await promise_more_than_is_applied(world)
        read = partial(count, digest)
        reading = [asyncio.ensure_future(node.ask(read)) for node in world.nodes]
        await asyncio.sleep(0.2)
        assert not any(one.done() for one in reading), "a read lacks what a snapshot has"
        await leader.ask(partial(increase, digest))
        assert await asyncio.gather(*reading) == [2] * len(reading)

    in_a_cluster(scenario)


def test_readers_of_one_moment_share_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Moments] = []
    begin = Moments._begin

    def counted(self: Moments) -> None:
        begun.append(self)
        begin(self)

    async def scenario(world: World) -> None:
        made = [(await node.ask(create)).digest for node in world.nodes for _ in range(4)]

        async def read_all(cluster: KotobaCluster) -> list[Any]:
            return await asyncio.gather(*(count(digest, cluster) for digest in made))

        monkeypatch.setattr(Moments, "_begin", counted)
        assert await world.nodes[0].ask(read_all) == [1] * len(made)
        assert len(begun) == 1

    in_a_cluster(scenario)


def test_a_node_that_stands_still_holds_up_only_reads_of_what_it_leads() -> None:
    async def scenario(world: World) -> None:
        made = [await node.ask(create) for node in world.nodes]
        still, _ = leading(world, made[0].partition + 1)
        reader = next(node for node in world.nodes if node is not still)
        led = [one for one in made if leading(world, one.partition + 1)[0] is still]
        others = [one for one in made if one not in led]
        assert others

        standing_still = asyncio.ensure_future(still.pause(0.4))
        began = world.loop.time()
        waiting = [asyncio.ensure_future(reader.ask(partial(count, one.digest))) for one in led]
        for _ in range(5):
            for one in others:
                assert await reader.ask(partial(count, one.digest)) == 1
        assert world.loop.time() - began < 0.4
        assert not any(reading.done() for reading in waiting)
        await standing_still
        assert [await reading for reading in waiting] == [1] * len(led)

    in_a_cluster(scenario)
