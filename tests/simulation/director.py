"""For schedules that are played step by step: what they do, and in which turn of the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from cluster_core.graph.operations import CreateNode
from cluster_core.replication.replica import Replica
from cluster_core.types import Digest, GroupId, group_of
from tests.simulation.world import SimNode, World

__all__ = ["Director", "leading", "one_in_each_partition", "set_links"]


class Director:
    """Does something in the very turn of the event loop after which a condition holds."""

    def __init__(self, world: World) -> None:
        self._loop = world.loop
        self._before = world.loop.after_turn
        self._condition: Callable[[], bool] = bool
        self._action: Callable[[], None] = lambda: None
        world.loop.after_turn = self._after_turn

    def _after_turn(self) -> None:
        if self._before is not None:
            self._before()
        if self._condition():
            self._condition = bool
            self._action()

    async def when(self, condition: Callable[[], bool], action: Callable[[], None]) -> None:
        done: asyncio.Future[None] = self._loop.create_future()

        def act() -> None:
            action()
            done.set_result(None)

        self._condition, self._action = condition, act
        async with asyncio.timeout(20):
            await done


def set_links(world: World, one: SimNode, other: SimNode, *, cut: bool) -> None:
    for way in ((one.address, other.address), (other.address, one.address)):
        (world.network.cut if cut else world.network.heal)(*way)


def leading(world: World, group: GroupId) -> tuple[SimNode, Replica]:
    """Who leads ``group`` and is ready to; the first of them, where an old leader does not know."""
    for node in world.nodes:
        replica = node.cluster.node.host.replicas.get(group)
        if replica is not None and replica.evaluation is not None:
            return node, replica
    raise AssertionError("no leader")


async def one_in_each_partition(world: World) -> dict[GroupId, Digest]:
    """A new vertex in each group, whose property ``n`` is 0. A node makes vertices in partitions
    that it leads."""
    made: dict[GroupId, Digest] = {}
    operation = CreateNode((), {"n": 0})
    number = 0
    while len(made) < world.config.partition_count:
        node = world.nodes[number % len(world.nodes)]
        number += 1
        result = await node.ask(lambda cluster: cluster.execute_operation(operation))
        made.setdefault(group_of(result.partition), result.digest)
    return made
