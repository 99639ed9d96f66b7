"""Clocks that are far ahead, and clients who ask for times that are, in a whole cluster."""

from __future__ import annotations

import asyncio

import pytest

from cluster_core.cluster import KotobaCluster
from cluster_core.hlc import COUNTER_BITS, wall_of
from cluster_core.node.observe import health_of, readiness_of
from cluster_core.query.plan import Count
from tests.simulation.clock import EPOCH_MS
from tests.simulation.reading_schedules import ask_for_what_is_to_come
from tests.simulation.watch import Watch
from tests.simulation.workload import Client, History
from tests.simulation.world import SimNode, World, simulate

pytestmark = pytest.mark.simulation

HOUR_MS = 3_600_000


def leads(node: SimNode) -> int:
    return sum(replica.is_leader for replica in node.cluster.node.host.replicas.values())


def blames_the_clock(node: SimNode) -> bool:
    reasons = health_of(node.cluster.observed).reasons
    return any("the clock of node1 is" in reason for reason in reasons)


async def write_for(world: World, history: History, seconds: float) -> None:
    until = world.loop.time() + seconds
    names = [f"client{number}-{until}" for number in range(3)]
    clients = [Client(world, history, name) for name in names]
    await asyncio.gather(*(client.run(until) for client in clients))


def test_a_clock_that_is_set_an_hour_ahead_is_not_followed() -> None:
    async def scenario(world: World) -> None:
        Watch(world)
        history = History()
        world.start_all()
        await world.until_ready()
        wrong = world.nodes[0]
        await world.until(lambda: leads(wrong) > 0, 10, "leaderships at home")
        wrong.clock.jump(HOUR_MS)
        await write_for(world, history, 0.5)
        await world.until(lambda: leads(wrong) == 0, 5, "leaderships given away")
        assert not readiness_of(wrong.cluster.observed).is_ready
        await world.until(lambda: all(map(blames_the_clock, world.nodes)), 3, "everybody says so")
        before = len(history.acknowledged)
        await write_for(world, history, 3)
        assert len(history.acknowledged) > before
        assert leads(wrong) == 0
        for node in world.nodes:
            true_ms = EPOCH_MS + world.loop.time() * 1000
            assert wall_of(node.cluster.now()) < true_ms + 10_000
        wrong.clock.jump(-HOUR_MS)
        await world.until_ready(10)
        await world.until(lambda: leads(wrong) > 0, 10, "leaderships at home again")

    world = simulate(1, scenario)
    assert not world.failures, "\n".join(world.failures)


def test_a_cluster_is_founded_beside_a_node_whose_clock_is_far_ahead() -> None:
    async def scenario(world: World) -> None:
        Watch(world)
        wrong, *others = world.nodes
        wrong.clock.jump(HOUR_MS)
        world.start_all()
        await world.until(
            lambda: all(readiness_of(node.cluster.observed).is_ready for node in others),
            20,
            "the others ready",
        )
        await world.until(lambda: leads(wrong) == 0, 5, "leaderships given away")
        assert not readiness_of(wrong.cluster.observed).is_ready
        history = History()
        await write_for(world, history, 2)
        assert history.acknowledged

    world = simulate(2, scenario)
    assert not world.failures, "\n".join(world.failures)


def test_reads_of_what_is_to_come_do_not_push_the_clocks_ahead() -> None:
    world = simulate(1, ask_for_what_is_to_come)
    assert not world.failures, "\n".join(world.failures)


def test_a_read_of_what_is_to_come_waits_until_it_has() -> None:
    async def scenario(world: World) -> None:
        world.start_all()
        await world.until_ready()

        async def ask_ahead(cluster: KotobaCluster) -> None:
            clock = cluster.node.clock
            clock.merge(cluster.now() + (300 << COUNTER_BITS))  # as a snapshot may have it
            ahead = cluster.now() + (300 << COUNTER_BITS)
            await cluster.execute_query(Count(), as_of=ahead)
            assert max(one.clock.wall_ms() for one in world.nodes) >= wall_of(ahead)

        node = world.nodes[0]
        await node.ask(ask_ahead)

    world = simulate(1, scenario)
    assert not world.failures, "\n".join(world.failures)
