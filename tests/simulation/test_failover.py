"""A node dies: its groups elect one other leader each, at once, and nobody else does anything."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace

import pytest

from cluster_core.types import GroupId
from tests.simulation.watch import Watch
from tests.simulation.workload import Client, History
from tests.simulation.world import SIM_CONFIG, SimNode, World, simulate

pytestmark = pytest.mark.simulation

CONFIG = replace(SIM_CONFIG, partition_count=16)


def terms(node: SimNode) -> dict[GroupId, int]:
    return {group: replica.raft.term for group, replica in node.cluster.node.host.replicas.items()}


def led_by(node: SimNode) -> list[GroupId]:
    replicas = node.cluster.node.host.replicas
    return [group for group, replica in replicas.items() if replica.is_leader]


def leaderless(nodes: list[SimNode], groups: list[GroupId]) -> bool:
    """Whether one of ``groups`` has no leader among ``nodes`` that is ready to write."""
    return not all(
        any(node.cluster.node.host.replicas[group].evaluation is not None for node in nodes)
        for group in groups
    )


def fail_over(seed: int) -> Counter[int]:
    """Crash the node that leads most; how many elections each of its groups then had."""
    elections: Counter[int] = Counter()

    async def scenario(world: World) -> None:
        watch = Watch(world)
        world.start_all()
        await world.until_ready()
        history = History()
        clients = [Client(world, history, f"client{number}") for number in range(4)]
        until = world.loop.time() + 3.0
        work = [asyncio.ensure_future(client.run(until)) for client in clients]
        await asyncio.sleep(2.0)
        victim = max(world.nodes, key=lambda node: len(led_by(node)))
        orphans = led_by(victim)
        survivors = [node for node in world.nodes if node is not victim]
        before = terms(survivors[0])
        await victim.crash()
        await world.until(lambda: not leaderless(survivors, orphans), 0.5, "new leaders", 0.01)
        await asyncio.gather(*work)
        after = terms(survivors[0])
        assert all(after[group] == before[group] for group in before if group not in orphans)
        elections.update(after[group] - before[group] for group in orphans)
        assert victim.name not in {node.name for node in survivors}
        victim.start()
        await world.until_ready()
        await world.until(watch.is_level, 30.0, "replicas level, no intent left")
        watch.at_rest(history)

    world = simulate(seed, scenario, config=CONFIG)
    assert not world.failures, f"seed {seed}: " + "\n".join(world.failures)
    return elections


def test_one_election_a_group_and_all_within_half_a_second() -> None:
    elections = sum((fail_over(seed) for seed in range(3)), Counter[int]())
    assert elections[1] >= 0.95 * elections.total(), elections
    assert max(elections) <= 3, elections


def test_no_election_without_a_fault_where_nodes_are_slow() -> None:
    """A saturated machine: everything takes up to 0.3 s longer, and nobody is given up for it."""

    async def scenario(world: World) -> None:
        world.start_all()
        await world.until_ready()
        await asyncio.sleep(5.0)
        before = [terms(node) for node in world.nodes]
        world.network.faults.slow_rate, world.network.faults.slow = 0.3, 150.0
        for node in world.nodes:
            node.disk.sync_delay = lambda: world.random.uniform(0.05, 0.3)
        history = History()
        until = world.loop.time() + 6.0
        clients = [Client(world, history, f"client{number}") for number in range(4)]
        await asyncio.gather(*(client.run(until) for client in clients))
        assert [terms(node) for node in world.nodes] == before

    world = simulate(1, scenario, config=CONFIG)
    assert not world.failures, "\n".join(world.failures)
