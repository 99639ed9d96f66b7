"""Schedules of readers: of what is to come, of what is just being given up, and of the feed.

Each plays one run from a seed, and raises an AssertionError where a promise is broken. They are
played by ``mutants/``: with the rule broken, where they have to say so, and without, where they
have to hold.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from itertools import pairwise
from typing import Final

import pytest

from cluster_core.cluster import KotobaCluster
from cluster_core.errors import ClockCeiling, HistoryCollected, InvalidRequest, OutcomeUnknown
from cluster_core.events import Change, Resolved
from cluster_core.graph.entities import Vertex
from cluster_core.graph.operations import BatchOperation, CreateNode, OperationResult, UpdateNode
from cluster_core.hlc import COUNTER_BITS, wall_of
from cluster_core.node import feed
from cluster_core.query.plan import Count, FindNodes
from cluster_core.query.work import Work
from cluster_core.types import Timestamp
from tests.simulation.schedules import at_home
from tests.simulation.world import SimNode, World

__all__ = [
    "ask_for_what_is_to_come",
    "catch_up_piece_by_piece",
    "read_while_it_is_given_up",
    "resume_below_the_horizon",
]

VERTICES: Final = 100
PAUSE_S: Final = 1.5
"""Between two pieces of a read at a node that has a lot to do."""

TRANSACTIONS: Final = 12


async def create(node: SimNode, count: int) -> list[OperationResult]:
    steps = [BatchOperation(CreateNode(("Thing",), {"n": 0})) for _ in range(count)]
    results = await node.ask(lambda cluster: cluster.execute_batch(steps))
    return [one for one in results if isinstance(one, OperationResult)]


async def change(node: SimNode, steps: list[BatchOperation]) -> None:
    """All at one time."""
    await node.ask(lambda cluster: cluster.execute_transaction(steps))


async def ask_for_what_is_to_come(world: World) -> None:
    """A client that waits for nothing asks for half a second more again and again, and another one
    for an hour."""
    world.start_all()
    await world.until_ready()

    async def ask_ahead(cluster: KotobaCluster) -> None:
        ahead = cluster.now() + (400 << COUNTER_BITS)
        answered = False
        with suppress(OutcomeUnknown):
            await cluster.execute_query(Count(), as_of=ahead, timeout_ms=1)
            answered = True
        assert not answered, "a time to come is read"

    async def ask_far_ahead(cluster: KotobaCluster) -> None:
        ahead = cluster.now() + (3_600_000 << COUNTER_BITS)
        answered = False
        with suppress(InvalidRequest):
            await cluster.execute_query(Count(), as_of=ahead)
            answered = True
        assert not answered, "a time to come is read"

    with suppress(ClockCeiling):  # which is three seconds ahead
        for _ in range(20):
            await world.nodes[0].ask(ask_ahead)
    for node in world.nodes:
        ahead_ms = wall_of(node.cluster.node.clock.latest) - node.clock.wall_ms()
        assert ahead_ms < 1_000, "a client moves the clocks"
    await world.nodes[0].ask(ask_far_ahead)


async def read_while_it_is_given_up(world: World) -> None:
    """A node that has a lot to do reads the past for so long that it is collected meanwhile."""
    await at_home(world)
    node = world.nodes[0]
    made = await create(node, VERTICES)
    digests = [one.digest for one in made]
    query = FindNodes(labels=("Thing",), limit=VERTICES)
    past = max(one.timestamp for one in made)
    await change(node, [BatchOperation(UpdateNode(digest, {"n": 1})) for digest in digests])
    await asyncio.sleep(0.5)  # all of it is closed everywhere

    async def read(cluster: KotobaCluster) -> list[object] | None:
        try:
            found = await cluster.execute_query(query, as_of=past, timeout_ms=20_000)
        except HistoryCollected:
            return None
        return [row.properties["n"] for row in found.rows if isinstance(row, Vertex)]

    assert await node.ask(read) == [0] * VERTICES
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Work, "breathe", lambda work: asyncio.sleep(PAUSE_S))
        found = await node.ask(read)
    assert found is None or found == [0] * VERTICES, "a read of the past lacks a part of it"


async def follow(node: SimNode, since: Timestamp, count: int) -> list[Change]:
    """The first changes behind ``since``, to the end of a Resolved; each must cover them."""

    async def read(cluster: KotobaCluster) -> list[Change]:
        subscription = cluster.subscribe_events({"Change"}, since=since)
        changes: list[Change] = []
        resolved = since
        with suppress(TimeoutError):
            async with asyncio.timeout(5):
                async for event in subscription:
                    if isinstance(event, Change):
                        assert event.timestamp > resolved, "a change comes behind its Resolved"
                        changes.append(event)
                    elif isinstance(event, Resolved):
                        resolved = event.timestamp
                        if len(changes) >= count:
                            break
        subscription.close()
        return changes

    return await node.ask(read)


async def catch_up_piece_by_piece(world: World) -> None:
    """A feed reads a few changes at a time, of transactions over all partitions."""
    await at_home(world)
    first, *_ = await create(world.nodes[0], 1)
    made = [one for node in world.nodes for one in await create(node, TRANSACTIONS)]
    digests = sorted(one.digest for one in made)
    for number in range(1, TRANSACTIONS + 1):
        changes = [BatchOperation(UpdateNode(digest, {"n": number})) for digest in digests]
        await change(world.random.choice(world.nodes), changes)
    count = len(made) + TRANSACTIONS * len(digests)
    await asyncio.sleep(0.5)  # all of it is closed everywhere
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feed, "TIMESTAMP_CHANGES", 16)
        for node in world.nodes:
            patch.setattr(node.cluster.node.feed, "_limit", 16)
        for node in world.nodes:
            seen = await follow(node, first.timestamp, count)
            times = [change.timestamp for change in seen]
            assert len(seen) == len({(one.cid, one.version) for one in seen}), "a feed repeats"
            assert len(seen) == count, "a feed lacks changes"
            assert all(one <= other for one, other in pairwise(times)), "a feed goes back"


async def resume_below_the_horizon(world: World) -> None:
    """A reader of the feed comes back when what it missed is not kept any more."""
    await at_home(world)
    first, *_ = await create(world.nodes[0], 1)
    await create(world.nodes[1], 5)
    await asyncio.sleep(8)
    for node in world.nodes:
        refused = False
        try:
            await follow(node, first.timestamp, 1)
        except HistoryCollected:
            refused = True
        assert refused, "a reader of the feed misses changes and is not told"
