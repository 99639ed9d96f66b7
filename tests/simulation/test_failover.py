"""A node dies: its groups elect one other leader each, at once, and nobody else does anything."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace

import pytest

from cluster_core.node.leaderships import PREFER_AFTER_S
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


def fail_over(seed: int, *, sync_s: float | None = None, within_s: float = 0.5) -> Counter[int]:
    """Crash the node that leads most, while a sync of the others takes ``sync_s``; how many
    elections each of its groups then had."""
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
        if sync_s is not None:
            for node in survivors:
                node.disk.sync_delay = lambda: sync_s
        await victim.crash()
        await world.until(lambda: not leaderless(survivors, orphans), within_s, "new leaders", 0.01)
        await asyncio.gather(*work)
        after = terms(survivors[0])
        assert all(after[group] == before[group] for group in before if group not in orphans)
        elections.update(after[group] - before[group] for group in orphans)
        assert victim.name not in {node.name for node in survivors}
        for node in survivors:
            node.disk.sync_delay = node.normal_sync_delay
        victim.start()
        await world.until_ready()
        await world.until(watch.is_level, 30.0, "replicas level, no intent left")
        watch.at_rest(history)

    world = simulate(seed, scenario, config=CONFIG)
    assert not world.failures, f"seed {seed}: " + "\n".join(world.failures)
    return elections


def longest_without_leader(seed: int) -> float:
    """Stop the nodes gracefully, one after the other, while the others look for leaderships to send
    home all the time; for how long at most a group then had nobody who takes writes, in seconds."""
    longest = 0.0

    async def stop(world: World, leaver: SimNode) -> None:
        nonlocal longest
        stopping = asyncio.ensure_future(leaver.stop())
        led = world.loop.time()
        until = led + 2.0
        while (now := world.loop.time()) < until or not stopping.done():
            running = [node for node in world.nodes if node.alive]
            if not out_of_work(running, list(terms(running[0]))):
                led = now
            longest = max(longest, now - led)
            for node in running:
                node.cluster.node.leaderships.send_home(now, ())
            await asyncio.sleep(0.005)

    async def scenario(world: World) -> None:
        world.start_all()
        await world.until_ready()
        for node in world.nodes:
            await asyncio.sleep(1.1 * PREFER_AFTER_S)  # now leaderships go home to it
            await stop(world, node)
            node.start()
            await world.until_ready()

    world = simulate(seed, scenario, config=CONFIG)
    assert not world.failures, f"seed {seed}: " + "\n".join(world.failures)
    return longest


def out_of_work(nodes: list[SimNode], groups: list[GroupId]) -> bool:
    """Whether one of ``groups`` has no leader among ``nodes`` that would take a write now."""
    replicas = [node.cluster.node.host.replicas for node in nodes]
    return not all(
        any(
            of[group].evaluation is not None and of[group].raft.refusal() is None for of in replicas
        )
        for group in groups
    )


@pytest.mark.parametrize("seed", range(3))
def test_a_graceful_stop_leaves_no_group_without_leader(seed: int) -> None:
    """Not even one whose leadership is going home to the node that stops."""
    assert longest_without_leader(seed) < 0.15


def test_one_election_a_group_and_all_within_half_a_second() -> None:
    elections = sum((fail_over(seed) for seed in range(3)), Counter[int]())
    assert elections[1] >= 0.95 * elections.total(), elections
    assert max(elections) <= 3, elections


def test_one_election_a_group_where_votes_wait_for_slow_disks() -> None:
    """A replica that waits for its votes does not begin anew."""
    elections = sum((fail_over(seed, sync_s=0.15, within_s=2) for seed in range(3)), Counter[int]())
    assert elections[1] >= 0.95 * elections.total(), elections


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
