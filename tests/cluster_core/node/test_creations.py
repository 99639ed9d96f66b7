"""Where creations without a key go."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from random import Random
from typing import cast

import pytest

from cluster_core.graph.operations import CreateNode, Creation, create
from cluster_core.node.creations import MOMENT_S, WINDOW, StickyPlacement
from cluster_core.replication.router import Router
from cluster_core.types import GroupId, group_of
from tests.simulation.loop import SimLoop

PARTITIONS = 64
NODES = ("node1", "node2", "node3")
VERTEX = CreateNode(("Person",), {"name": "Ann"})


class Leaders:
    """As much of a router as the placement asks: three nodes lead in turn."""

    node_id = "node1"

    def __init__(self) -> None:
        self.lost: set[GroupId] = set()

    def ready_leader(self, group: GroupId) -> str | None:
        return None if group in self.lost else NODES[group % len(NODES)]

    def led_here(self) -> list[GroupId]:
        groups = map(group_of, range(PARTITIONS))
        return [group for group in groups if self.ready_leader(group) == self.node_id]


@pytest.fixture
def loop() -> Iterator[SimLoop]:
    loop = SimLoop()
    yield loop
    loop.close()


def placement_of(leaders: Leaders) -> StickyPlacement:
    return StickyPlacement(cast("Router", leaders), PARTITIONS, Random(1))


def placed_over(
    loop: SimLoop, place: Callable[[CreateNode], Creation | None], moments: int, times: int
) -> list[list[int]]:
    """The partitions of ``times`` creations in each of ``moments``."""

    async def run() -> list[list[int]]:
        seen = []
        for _ in range(moments):
            made = [place(VERTEX) for _ in range(times)]
            seen.append([one.partition for one in made if one is not None])
            await asyncio.sleep(MOMENT_S)
        return seen

    return loop.run_until_complete(run())


def test_a_creation_is_the_one_of_its_nonce(loop: SimLoop) -> None:
    async def run() -> None:
        made = placement_of(Leaders()).place(VERTEX)
        assert made is not None
        assert made == create(VERTEX, made.nonce, PARTITIONS)

    loop.run_until_complete(run())


def test_a_single_creation_goes_to_a_partition_led_here(loop: SimLoop) -> None:
    leaders = Leaders()
    moments = placed_over(loop, placement_of(leaders).place, 20, 40)
    assert all(len(set(moment)) <= WINDOW for moment in moments)
    used = {partition for moment in moments for partition in moment}
    led = {one for one in range(PARTITIONS) if leaders.ready_leader(group_of(one)) == "node1"}
    assert used == led


def test_creations_of_batches_share_partitions_and_reach_all_of_them_alike(loop: SimLoop) -> None:
    moments = placed_over(loop, placement_of(Leaders()).place_in_batch, 64, 100)
    assert all(len(set(moment)) <= WINDOW for moment in moments)
    counts = Counter(partition for moment in moments for partition in moment)
    assert set(counts) == set(range(PARTITIONS))
    mean = 64 * 100 / PARTITIONS
    assert all(mean / 2 < count < 2 * mean for count in counts.values()), counts


def test_what_batches_create_in_one_moment_goes_to_one_node_or_two(loop: SimLoop) -> None:
    leaders = Leaders()
    moments = placed_over(loop, placement_of(leaders).place_in_batch, 12, 100)
    nodes = [{leaders.ready_leader(group_of(one)) for one in moment} for moment in moments]
    assert all(len(node) <= 2 for node in nodes)
    assert all({node} in nodes for node in NODES)


def test_partitions_without_a_leader_are_left_out(loop: SimLoop) -> None:
    leaders = Leaders()
    leaders.lost = {group_of(partition) for partition in range(0, PARTITIONS, 2)}
    placement = placement_of(leaders)
    moments = placed_over(loop, placement.place_in_batch, 20, 40)
    assert all(partition % 2 for moment in moments for partition in moment)
    leaders.lost = {group_of(partition) for partition in range(PARTITIONS)}
    assert placed_over(loop, placement.place_in_batch, 1, 1) == [[]]
    assert placed_over(loop, placement.place, 1, 1) == [[]]
