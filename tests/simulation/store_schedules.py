"""Schedules of nodes that come back, or begin, with another store than before.

Each plays one run from a seed, and raises an AssertionError where a promise is broken. They are
played by ``mutants/``: with the rule broken, where they have to say so, and without, where they
have to hold.
"""

from __future__ import annotations

import asyncio
from typing import Final

from tests.simulation.director import Director, leading, set_links
from tests.simulation.schedules import at_home, hang_syncs, of, read, write
from tests.simulation.world import SimNode, World

__all__ = ["come_back_with_a_new_disk", "crash_while_others_agree"]

ELECTION_S: Final = 10.0
"""Long enough for whoever can elect a leader."""


async def come_back_with_a_new_disk(world: World) -> None:
    """A leader and one follower have acknowledged a write, and the power fails. The follower comes
    back with an empty disk, and before the leader: it meets the third node, which has nothing of
    the write."""
    vertices = await at_home(world)
    group, vertex = next(iter(vertices.items()))
    leader, _ = leading(world, group)
    witness, third = (node for node in world.nodes if node is not leader)
    for node in (leader, witness):
        set_links(world, node, third, cut=True)
    await write(leader, vertex)
    for node in world.nodes:
        await node.crash()
    world.network.heal_all()
    witness.replace_disk()
    for node in (witness, third):
        node.start()
    await asyncio.sleep(ELECTION_S)
    if of(third, group).evaluation is not None:
        assert await read(third, vertex) == [1], "an acknowledged write is lost"
    leader.start()
    await world.until(lambda: leader.founded is not None, 5, "it is back")
    await world.until(
        lambda: any(of(one, group).evaluation for one in (leader, third)), 20, "a leader"
    )
    assert await read(third, vertex) == [1], "an acknowledged write is lost"
    assert witness.founded is None, "a node that has forgotten its votes is let in"


async def crash_while_others_agree(world: World) -> None:
    """The power of an empty node with a slow disk fails when the others have agreed to found a
    cluster with it."""
    director = Director(world)
    *others, slow = world.nodes
    hang_syncs(slow)
    world.start_all()
    await director.when(lambda: all(map(_has_proposed, others)), lambda: None)
    await slow.crash(and_all_unsynced=True)
    slow.disk.sync_delay = slow.normal_sync_delay
    slow.start()
    await world.until_ready()


def _has_proposed(node: SimNode) -> bool:
    formation = node.cluster._formation
    return formation is not None and formation.report().proposed is not None
