"""A replica that differs is found, quarantined and made anew; and nobody is accused in vain.

The ordinary runs of the simulation compare their replicas all the while, and an accusation is
logged as an error, which fails a run. Here a store is changed on purpose.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, Final

import pytest

from cluster_core.cluster import KotobaCluster
from cluster_core.config import ClusterConfig
from cluster_core.events import ClusterEvent
from cluster_core.ports import DATA, Engine
from cluster_core.storage import keys
from tests.simulation.watch import Watch
from tests.simulation.workload import Client, History
from tests.simulation.world import SIM_CONFIG, SimNode, World, simulate

pytestmark = [pytest.mark.simulation, pytest.mark.timeout(120)]

CONFIG: Final = replace(
    SIM_CONFIG,
    partition_count=1,
    replication=replace(SIM_CONFIG.replication, full_sync_interval_ms=1_000),
)
GROUP: Final = 1
ACCUSATION: Final = "this replica differs from the others"

Damage = Callable[[Engine], tuple[bytes, bytes | None]]
"""What to put where, or to delete."""


def first_of(engine: Engine, table: bytes) -> tuple[bytes, bytes]:
    """The first pair that is no tombstone."""
    prefix = keys.table_prefix(GROUP, table)
    return next(pair for pair in engine.scan(DATA, prefix, keys.after(prefix)) if pair[1])


def a_changed_byte(engine: Engine) -> tuple[bytes, bytes | None]:
    key, value = first_of(engine, keys.ENTITY)
    return key, value[:-1] + bytes([value[-1] ^ 1])


def a_lost_pair(engine: Engine) -> tuple[bytes, bytes | None]:
    return first_of(engine, keys.LABEL)[0], None


def a_surplus_pair(engine: Engine) -> tuple[bytes, bytes | None]:
    return keys.versioned(keys.entity(GROUP, b"\7" * 32), 1 << 60), b""


def damage(node: SimNode, what: Damage) -> None:
    key, value = what(node.engine)
    batch = node.engine.batch()
    if value is None:
        batch.delete(DATA, key)
    else:
        batch.put(DATA, key, value)
    node.engine.write(batch)


class Events:
    def __init__(self, cluster: KotobaCluster) -> None:
        self._subscription = cluster.subscribe_events({"ReplicaDiverged", "ReplicaRebuilt"})
        self.seen: list[tuple[str, str, int | None]] = []
        self._task = asyncio.ensure_future(self._gather())

    async def _gather(self) -> None:
        async for event in self._subscription:
            assert isinstance(event, ClusterEvent)
            self.seen.append((event.type, event.node_id, event.partition))


def leader(world: World) -> SimNode:
    return next(
        node
        for node in world.nodes
        if node.founded is not None
        and GROUP in node.founded.host.replicas
        and node.founded.host.replicas[GROUP].is_leader
    )


def serves(node: SimNode) -> bool:
    return node.founded is not None and GROUP in node.founded.host.replicas


def distrusted(world: World) -> set[str]:
    """By those that know."""
    return {
        name
        for node in world.nodes
        if node.founded is not None
        for name, groups in node.founded.comparison.distrusted().items()
        if GROUP in groups
    }


def run(
    scenario: Callable[[World], Coroutine[Any, Any, None]],
    seed: int,
    *,
    config: ClusterConfig = CONFIG,
    accused: bool = True,
) -> None:
    async def whole(world: World) -> None:
        watch = Watch(world)
        world.start_all()
        await world.until_ready()
        history = History()
        until = world.loop.time() + 6
        clients = [
            Client(world, history, f"client{number}", home=world.nodes[number]).run(until)
            for number in range(3)
        ]
        work = [asyncio.ensure_future(client) for client in clients]
        await asyncio.sleep(1)
        await scenario(world)
        await asyncio.gather(*work)
        await world.until(lambda: all(map(serves, world.nodes)), 30, "all serve")
        await world.until(lambda: not distrusted(world), 30, "nobody is distrusted")
        await world.until_ready()
        await world.until(watch.is_level, 30.0, "replicas level, no intent left")
        watch.at_rest(history)

    world = simulate(seed, whole, config=config)
    accusations = [one for one in world.failures if ACCUSATION in one]
    assert len(accusations) == accused
    others = [one for one in world.failures if one not in accusations]
    assert not others, "\n".join(others)


@pytest.mark.parametrize("what", [a_changed_byte, a_lost_pair, a_surplus_pair])
def test_a_follower_that_differs_is_quarantined_and_made_anew(what: Damage) -> None:
    async def scenario(world: World) -> None:
        victim = next(node for node in world.nodes if node is not leader(world))
        events = Events(leader(world).cluster)
        damage(victim, what)
        await world.until(lambda: not serves(victim), 10, "it is withdrawn")
        await world.until(lambda: distrusted(world) == {victim.name}, 5, "all know")
        health = await leader(world).ask(lambda cluster: cluster.check_health())
        assert health.reasons == [
            f"the replica of partition 0 at {victim.name} differs from the others, and is made anew"
        ]
        await world.until(lambda: serves(victim), 20, "it is back")
        await world.until(lambda: len(events.seen) == 2, 10, "all know")
        assert events.seen == [
            ("ReplicaDiverged", victim.name, 0),
            ("ReplicaRebuilt", victim.name, 0),
        ]

    run(scenario, 1)


@pytest.mark.parametrize("seed", [2, 3])
def test_a_leader_that_differs_hands_over_first(seed: int) -> None:
    async def scenario(world: World) -> None:
        victim = leader(world)
        damage(victim, a_lost_pair)
        await world.until(lambda: not serves(victim), 10, "it is withdrawn")
        assert leader(world) is not victim
        await world.until(lambda: serves(victim), 20, "it is back")

    run(scenario, seed)


def test_a_restart_does_not_make_it_forget() -> None:
    async def scenario(world: World) -> None:
        victim = next(node for node in world.nodes if node is not leader(world))
        damage(victim, a_changed_byte)
        await world.until(lambda: not serves(victim), 10, "it is withdrawn", every=0.001)
        await asyncio.sleep(0.05)
        await victim.crash()
        victim.start()
        await world.until(lambda: victim.founded is not None, 5, "it runs", every=0.001)
        assert not serves(victim)
        await world.until(lambda: serves(victim), 20, "it is back")

    run(scenario, 4)


def test_without_a_quorum_that_agrees_nobody_is_accused() -> None:
    """One of three is away: the two that are there differ, and nobody can know who is right."""

    async def scenario(world: World) -> None:
        away, other = (node for node in world.nodes if node is not leader(world))
        await away.crash()
        damage(other, a_changed_byte)
        await asyncio.sleep(4)
        assert serves(other)
        assert not distrusted(world)
        away.start()
        await world.until(lambda: not serves(other), 10, "now it is known who differs")

    run(scenario, 5)


def test_what_is_collected_here_and_not_yet_there_is_no_difference() -> None:
    async def scenario(world: World) -> None:
        await asyncio.sleep(6)
        for node in world.nodes:
            assert node.cluster.node.comparison.compared > 3
            assert node.cluster.node.host.replicas[GROUP].horizon > 0

    forgetful = replace(CONFIG.replication, history_retention_ms=1_000)
    run(scenario, 6, config=replace(CONFIG, replication=forgetful), accused=False)
