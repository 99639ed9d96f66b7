"""Replicas that move between nodes, step by step: what clients see, and what is left behind."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from cluster_core.errors import AlreadyExists, InvalidRequest, NotFound
from cluster_core.events import ClusterEvent
from cluster_core.graph.operations import CreateNode
from cluster_core.node.residence import read_resident
from cluster_core.placement.table import GroupTable
from cluster_core.query.plan import Count
from cluster_core.query.results import CountRow
from tests.simulation.runs import run
from tests.simulation.watch import Watch
from tests.simulation.world import SimNode, World, simulate

pytestmark = [pytest.mark.simulation, pytest.mark.timeout(300)]

GROUP = 1
VERTICES = 40


def with_five_nodes(
    seed: int, scenario: Callable[[World, Watch], Coroutine[Any, Any, None]]
) -> None:
    async def run(world: World) -> None:
        watch = Watch(world)
        world.start_all()
        await world.until_ready()
        for number in range(VERTICES):
            await create(world.nodes[number % 5], number)
        await scenario(world, watch)

    world = simulate(seed, run, nodes=5)
    assert not world.failures, world.failures


async def create(node: SimNode, number: int) -> None:
    await node.ask(lambda cluster: cluster.execute_operation(CreateNode(("Thing",), {"n": number})))


async def count(node: SimNode) -> int:
    query = Count(of="nodes", labels=("Thing",))
    (row,) = (await node.ask(lambda cluster: cluster.execute_query(query))).rows
    assert isinstance(row, CountRow)
    return row.count


def table(node: SimNode) -> GroupTable:
    return node.cluster.node.tables[GROUP]


def outsiders(world: World) -> list[SimNode]:
    return [node for node in world.nodes if node.name not in table(node).nodes]


def insiders(world: World) -> list[SimNode]:
    return [node for node in world.nodes if node.name in table(node).nodes]


async def move(via: SimNode, source: SimNode, target: SimNode) -> None:
    await via.ask(lambda cluster: cluster.move_partition(0, source.name, target.name))


async def until_settled(world: World, watch: Watch, nodes: set[str]) -> None:
    """The partition is at ``nodes``, everybody knows, and what has left is gone."""

    def settled() -> bool:
        known = all(set(table(node).nodes) == nodes for node in world.nodes)
        return known and watch.moves_are_settled()

    await world.until(settled, 10, f"settled at {sorted(nodes)}")
    await world.until(watch.is_level, 10, "level")


def test_a_replica_moves_and_nothing_of_it_stays_behind() -> None:
    async def scenario(world: World, watch: Watch) -> None:
        source, target = insiders(world)[0], outsiders(world)[0]
        assert source.cluster.node.leaderships.preferred(GROUP) == source.name  # so it hands over
        subscription = target.cluster.subscribe_events(["PartitionMoved"])
        nodes = {node.name for node in insiders(world)} - {source.name} | {target.name}
        await move(world.nodes[0], source, target)
        await world.until(lambda: not table(target).settled, 1, "everybody knows")
        assert (await target.cluster.get_status()).partitions.moving == 1
        await until_settled(world, watch, nodes)
        event = await anext(subscription)
        assert isinstance(event, ClusterEvent)
        assert (event.partition, event.node_id) == (0, target.name)
        assert target.cluster.node.host.replicas[GROUP].id == 4
        assert target.cluster.node.host.replicas[GROUP].room == "enough"
        assert GROUP not in source.cluster.node.host.replicas
        resident = read_resident(source.engine, GROUP)
        assert resident is not None
        assert (resident.here, resident.removed) == (0, 1)
        for number, node in enumerate(world.nodes):
            assert await count(node) == VERTICES + number
            await create(node, VERTICES)
        assert (await source.cluster.get_status()).partitions.moving == 0

    with_five_nodes(1, scenario)


def test_who_comes_back_is_another_replica() -> None:
    async def scenario(world: World, watch: Watch) -> None:
        source, target = insiders(world)[1], outsiders(world)[0]
        for old, new in ((source, target), (target, source), (source, target)):
            nodes = {node.name for node in insiders(world)} - {old.name} | {new.name}
            await move(world.nodes[2], old, new)
            await until_settled(world, watch, nodes)
        assert target.cluster.node.host.replicas[GROUP].id == 6
        for node in world.nodes:
            assert await count(node) == VERTICES

    with_five_nodes(2, scenario)


def test_a_move_to_a_dead_node_is_taken_back() -> None:
    async def scenario(world: World, watch: Watch) -> None:
        source, target = insiders(world)[1], outsiders(world)[0]
        await target.crash()
        await move(source, source, target)
        await world.until(lambda: not table(source).settled, 10, "it wants to move")
        before = source.cluster.node.host.replicas[GROUP].id
        nodes = [source.name if node == target.name else node for node in table(source).nodes]
        await source.ask(lambda cluster: cluster.change_replicas(0, nodes))
        await world.until(lambda: table(source).settled, 10, "it stays")
        assert source.cluster.node.host.replicas[GROUP].id == before
        target.start()
        await world.until_ready()
        await until_settled(world, watch, set(nodes))

    with_five_nodes(3, scenario)


def test_all_replicas_move_at_once_while_their_nodes_crash() -> None:
    async def scenario(world: World, watch: Watch) -> None:
        others = outsiders(world)
        nodes = [others[0].name, insiders(world)[2].name, others[1].name]
        await world.nodes[0].ask(lambda cluster: cluster.change_replicas(0, nodes))
        for node in world.nodes:
            await node.crash()
            node.start()
        await world.until_ready()
        await until_settled(world, watch, set(nodes))
        assert table(world.nodes[0]).nodes == nodes
        for node in world.nodes:
            assert await count(node) == VERTICES

    with_five_nodes(4, scenario)


def test_a_leader_is_chosen_and_stays() -> None:
    async def scenario(world: World, watch: Watch) -> None:
        chosen = insiders(world)[2]
        status = await world.nodes[0].ask(
            lambda cluster: cluster.transfer_leadership(0, chosen.name)
        )
        assert status.leader == chosen.name
        await world.until(lambda: table(chosen).voters[0] == 3, 10, "it is preferred")
        assert table(chosen).settled

    with_five_nodes(5, scenario)


def test_what_cannot_be_is_refused() -> None:
    async def scenario(world: World, watch: Watch) -> None:
        here, there = insiders(world)[0], outsiders(world)[0]
        with pytest.raises(AlreadyExists):
            await move(there, here, insiders(world)[1])
        with pytest.raises(NotFound):
            await move(here, there, outsiders(world)[1])
        with pytest.raises(NotFound):
            await here.ask(lambda cluster: cluster.move_partition(0, here.name, "nobody"))
        with pytest.raises(NotFound):
            await here.ask(lambda cluster: cluster.move_partition(99, here.name, there.name))
        with pytest.raises(InvalidRequest):
            await here.ask(lambda cluster: cluster.change_replicas(0, [here.name, there.name]))
        with pytest.raises(InvalidRequest):
            await here.ask(lambda cluster: cluster.transfer_leadership(0, there.name))
        assert table(here).version == 0

    with_five_nodes(6, scenario)


@pytest.mark.parametrize("seed", range(300, 303))
def test_promises_hold_while_replicas_move(seed: int) -> None:
    """Moves under faults; the runs of the campaign have all of them."""
    faults = ("crash", "crash_all", "isolate", "lose_frames", "move_replicas", "prefer_leader")
    made = run(seed, nodes=5, seconds=8, pace=0.3, clients=4, tellers=1, only=faults)
    assert made.configurations > 0
