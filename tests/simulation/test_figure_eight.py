"""Figure 8 of the Raft paper, step by step, with whole nodes.

An entry of an old term is on a majority, and is replaced all the same. Random faults hardly ever
hit upon it, for a new leader's own entry travels in one message with the old ones; here each
travels alone.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from cluster_core.cluster import KotobaCluster
from cluster_core.replication.replica import Replica
from cluster_core.storage import keys
from cluster_core.types import GroupId
from tests.simulation.director import Director, set_links
from tests.simulation.watch import Watch
from tests.simulation.world import SIM_CONFIG, SimNode, World, simulate

pytestmark = pytest.mark.simulation

GROUP: GroupId = 1
CONFIG = replace(SIM_CONFIG, raft=replace(SIM_CONFIG.raft, append_bytes_max=1))


def of(node: SimNode) -> Replica:
    return node.cluster.node.host.replicas[GROUP]


def has(node: SimNode, index: int, term: int) -> bool:
    log = of(node).log
    return log.last_index() >= index and log.term(index) == term


async def propose(cluster: KotobaCluster) -> None:
    replica = cluster.node.host.replicas[GROUP]
    draft = replica.draft()
    draft.advance(cluster.now())
    draft.put(keys.state(GROUP, b"figure-8"), b"a")
    proposed = replica.propose(draft, asyncio.get_running_loop().time() + 60)
    proposed.add_done_callback(lambda outcome: outcome.exception())


async def play(world: World) -> None:
    watch = Watch(world)
    director = Director(world)
    world.start_all()
    await world.until_ready()
    await world.until(lambda: any(of(node).evaluation for node in world.nodes), 5, "a leader")
    await asyncio.sleep(1)
    first = next(node for node in world.nodes if of(node).is_leader)
    others = [node for node in world.nodes if node is not first]
    term, index = of(first).raft.term, of(first).log.last_index() + 1

    # (a) The first leader has an entry that nobody else gets.
    for other in others:
        set_links(world, first, other, cut=True)
    await first.ask(propose)

    # (b) Another leads the next term, and its entry reaches nobody either.
    await director.when(
        lambda: any(of(node).is_leader for node in others),
        lambda: set_links(world, *others, cut=True),
    )
    second, third = sorted(others, key=lambda node: not of(node).is_leader)
    later = of(second).raft.term
    assert later > term

    # (c) The first leads again. Its old entry, and nothing else, gets to a majority.
    set_links(world, first, third, cut=False)
    await director.when(
        lambda: of(first).is_leader and of(first).raft.term > later and has(third, index, term),
        lambda: world.network.cut(first.address, third.address),
    )
    assert of(third).log.last_index() == index
    await asyncio.sleep(0.3)  # the acknowledgement arrives

    # (d) The second leads once more, and replaces it.
    set_links(world, first, third, cut=True)
    set_links(world, second, third, cut=False)
    await world.until(lambda: has(third, index, later), 20, "the old entry is replaced", 0.01)
    await world.until(lambda: of(third).applied >= index, 20, "its replacement is applied", 0.01)
    world.network.heal_all()
    await world.until_ready()
    await world.until(watch.is_level, 30, "all level")


def figure_eight(seed: int) -> None:
    world = simulate(seed, play, config=CONFIG)
    assert not world.failures, "\n".join(world.failures)


@pytest.mark.parametrize("seed", range(3))
def test_an_entry_of_an_old_term_is_not_committed_by_counting(seed: int) -> None:
    figure_eight(seed)
