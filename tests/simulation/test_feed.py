"""The change feed under everything that goes wrong: all changes, once, in order."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from cluster_core.cluster import KotobaCluster
from cluster_core.errors import HistoryCollected, InvalidRequest
from cluster_core.events import Change, Event, Resolved, SlowReader
from cluster_core.graph.operations import (
    BatchOperation,
    CreateEdge,
    CreateNode,
    DeleteNode,
    OperationResult,
)
from cluster_core.node import feed
from cluster_core.types import Timestamp
from tests.simulation.chaos import Chaos
from tests.simulation.feed_reader import FeedReader
from tests.simulation.runs import FORGETFUL
from tests.simulation.watch import Watch
from tests.simulation.workload import Client, History
from tests.simulation.world import SIM_CONFIG, SimNode, World, simulate

pytestmark = pytest.mark.simulation


async def follow_through_trouble(world: World, seconds: float, *, chaos: bool) -> None:
    watch = Watch(world)
    history = History()
    world.start_all()
    await world.until_ready()
    until = world.loop.time() + seconds
    trouble = Chaos(world, pace=1.0)
    readers = [FeedReader(world, f"reader{number}") for number in range(1, 4)]
    following = [asyncio.ensure_future(reader.run()) for reader in readers]
    clients = [
        Client(world, history, f"client{number}", home=world.nodes[number % len(world.nodes)])
        for number in range(1, 5)
    ]
    busy: list[Any] = [client.run(until) for client in clients]
    if chaos:
        busy.append(trouble.run(until))
    await asyncio.gather(*busy)
    await trouble.end()
    await world.until_ready()
    assert watch.closed.changes
    for reader, task in zip(readers, following, strict=True):
        await reader.finish(task, watch.closed.changes)


def test_every_change_is_seen_once_and_in_order() -> None:
    async def scenario(world: World) -> None:
        await follow_through_trouble(world, 8, chaos=False)

    _run(1, scenario)


@pytest.mark.parametrize("seed", range(200, 206))
def test_a_reader_that_begins_again_misses_nothing_through_faults(seed: int) -> None:
    async def scenario(world: World) -> None:
        await follow_through_trouble(world, 12, chaos=True)

    _run(seed, scenario)


@pytest.mark.parametrize("seed", range(300, 303))
def test_nor_where_no_node_has_all_partitions(seed: int) -> None:
    async def scenario(world: World) -> None:
        await follow_through_trouble(world, 10, chaos=True)

    _run(seed, scenario, nodes=5)


@pytest.mark.parametrize("seed", range(400, 403))
def test_nor_while_the_past_is_collected(seed: int) -> None:
    async def scenario(world: World) -> None:
        await follow_through_trouble(world, 12, chaos=True)

    _run(seed, scenario, config=FORGETFUL)


def _run(seed: int, scenario: Any, **how: Any) -> None:
    world = simulate(seed, scenario, **how)
    assert not world.failures, "\n".join(world.failures)


async def _settled(world: World) -> None:
    world.start_all()
    await world.until_ready()
    await asyncio.sleep(0.5)


async def _create(node: SimNode, **properties: Any) -> OperationResult:
    operation = CreateNode(labels=("Thing",), properties=properties)
    return await node.ask(lambda cluster: cluster.execute_operation(operation))


async def _link(node: SimNode, source: OperationResult, target: OperationResult) -> None:
    operation = CreateEdge(label="LINKS", source=source.digest, target=target.digest, properties={})
    await node.ask(lambda cluster: cluster.execute_operation(operation))


async def _read(
    node: SimNode, count: int, *, types: set[str] | None = None, **how: Any
) -> list[Event]:
    """The first ``count`` changes of a subscription, and the Resolved among and behind them."""

    async def follow(cluster: KotobaCluster) -> list[Event]:
        subscription = cluster.subscribe_events(types or {"Change", "Resolved"}, **how)
        events: list[Event] = []
        async with asyncio.timeout(10):
            async for event in subscription:
                events.append(event)
                changes = sum(isinstance(one, Change) for one in events)
                if changes >= count and isinstance(event, Resolved):
                    break
        subscription.close()
        return events

    return await node.ask(follow)


def _cids(events: list[Event]) -> list[str]:
    return [event.cid for event in events if isinstance(event, Change)]


def test_since_gives_what_came_behind_it_at_any_node() -> None:
    async def scenario(world: World) -> None:
        await _settled(world)
        first = await _create(world.nodes[0], value=1)
        others = [await _create(world.nodes[0], value=value) for value in range(2, 30)]
        for node in world.nodes:
            events = await _read(node, len(others), since=first.timestamp)
            changes = [event for event in events if isinstance(event, Change)]
            assert [change.timestamp for change in changes] == [one.timestamp for one in others]
            last = events[-1]
            assert isinstance(last, Resolved)
            assert last.timestamp >= others[-1].timestamp

    _run(11, scenario)


def test_a_transaction_over_partitions_is_one_timestamp_and_whole() -> None:
    async def scenario(world: World) -> None:
        await _settled(world)
        ends = [await _create(world.nodes[0], value=value) for value in range(8)]
        begin = ends[-1].timestamp
        for source, target in pairwise(ends):
            await _link(world.nodes[1], source, target)
        events = await _read(world.nodes[2], len(ends) - 1, since=begin)
        changes = [event for event in events if isinstance(event, Change)]
        assert [change.op for change in changes] == ["create_edge"] * 7

    _run(12, scenario)


def test_a_subscription_without_since_begins_now_with_a_place_to_resume_from() -> None:
    async def scenario(world: World) -> None:
        await _settled(world)
        await _create(world.nodes[0], value=1)
        await asyncio.sleep(0.5)
        following = asyncio.ensure_future(_read(world.nodes[1], 1))
        await asyncio.sleep(0.5)
        made = await _create(world.nodes[0], value=2)
        events = await following
        assert isinstance(events[0], Resolved)
        assert events[0].timestamp < made.timestamp
        changes = [event for event in events if isinstance(event, Change)]
        assert [change.timestamp for change in changes] == [made.timestamp]

    _run(13, scenario)


def test_labels_narrow_what_is_caught_up_too() -> None:
    async def scenario(world: World) -> None:
        await _settled(world)
        first = await _create(world.nodes[0], value=1)
        await _create(world.nodes[0], value=2)
        other = CreateNode(labels=("Other",), properties={})
        made = await world.nodes[0].ask(lambda cluster: cluster.execute_operation(other))
        events = await _read(world.nodes[1], 1, since=first.timestamp, labels={"Other"})
        changes = [event for event in events if isinstance(event, Change)]
        assert [change.timestamp for change in changes] == [made.timestamp]

    _run(14, scenario)


def test_a_partition_without_a_leader_holds_the_feed_up_and_nothing_is_lost() -> None:
    async def scenario(world: World) -> None:
        await _settled(world)
        resolved: list[Timestamp] = []
        changes: list[Timestamp] = []

        async def follow(cluster: KotobaCluster) -> None:
            async for event in cluster.subscribe_events({"Change"}):
                if isinstance(event, Resolved):
                    resolved.append(event.timestamp)
                elif isinstance(event, Change):
                    changes.append(event.timestamp)

        reader = world.nodes[0]
        following = asyncio.ensure_future(reader.ask(follow))
        await asyncio.sleep(2)
        assert len(resolved) >= 2, "where nothing changes, Resolved comes all the same"
        for other in world.nodes[1:]:
            world.network.cut(reader.address, other.address)
            world.network.cut(other.address, reader.address)
        await asyncio.sleep(1)
        stuck = len(resolved)
        made = [await _create(world.nodes[1], value=value) for value in range(5)]
        await asyncio.sleep(5)
        assert len(resolved) == stuck
        for other in world.nodes[1:]:
            world.network.heal(reader.address, other.address)
            world.network.heal(other.address, reader.address)
        await world.until(lambda: len(changes) >= len(made), 20, "the feed goes on")
        assert changes == [one.timestamp for one in made]
        following.cancel()

    _run(15, scenario)


def test_what_is_not_kept_any_more_is_refused() -> None:
    async def scenario(world: World) -> None:
        await _settled(world)
        first = await _create(world.nodes[0], value=1)
        await _create(world.nodes[0], value=2)
        await asyncio.sleep(8)
        for node in world.nodes:
            with pytest.raises(HistoryCollected):
                await _read(node, 1, since=first.timestamp)
        with pytest.raises(InvalidRequest):
            await _read(world.nodes[0], 1, since=first.timestamp + (3_600_000 << 16))

    _run(16, scenario, config=FORGETFUL)


@pytest.mark.parametrize("nodes", [3, 5])
def test_a_hub_that_is_deleted_with_its_edges_goes_to_live_readers_in_pieces(
    nodes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All changes of the deletion have one timestamp: more than a queue holds."""
    monkeypatch.setattr(feed, "UNIT_CHANGES", 16)
    monkeypatch.setattr(feed, "TIMESTAMP_CHANGES", 4)
    monkeypatch.setattr(feed, "SLICE_CHANGES", 8)
    few = replace(SIM_CONFIG, limits=replace(SIM_CONFIG.limits, event_queue_max=20))

    async def scenario(world: World) -> None:
        await _settled(world)
        hub = await _create(world.nodes[0], value=0)
        ends = [await _create(world.nodes[0], value=value) for value in range(120)]
        for number, end in enumerate(ends):
            source, target = (hub, end) if number % 3 else (end, hub)
            await _link(world.nodes[0], source, target)
        await asyncio.sleep(0.5)
        live = asyncio.ensure_future(_read(world.nodes[-1], 123))
        await asyncio.sleep(0.5)
        before = await _create(world.nodes[0], value=200)
        deletion = DeleteNode(hub.digest, detach=True)
        deleted = await world.nodes[0].ask(lambda cluster: cluster.execute_operation(deletion))
        after = await _create(world.nodes[0], value=201)
        events = await live
        changes = [event for event in events if isinstance(event, Change)]
        assert [change.timestamp for change in changes] == [
            before.timestamp,
            *[deleted.timestamp] * 121,
            after.timestamp,
        ]
        assert len({change.cid for change in changes[1:-1]}) == 121
        for node in world.nodes:
            again = await _read(node, 122, since=before.timestamp)
            assert [event for event in again if isinstance(event, Change)] == changes[1:]

    _run(18, scenario, nodes=nodes, config=few)


def test_more_changes_at_one_time_than_a_queue_holds_can_be_caught_up() -> None:
    few = replace(SIM_CONFIG, limits=replace(SIM_CONFIG.limits, event_queue_max=20))

    async def scenario(world: World) -> None:
        await _settled(world)
        first = await _create(world.nodes[0], value=0)
        batch = [
            BatchOperation(CreateNode(labels=("Thing",), properties={"value": value}))
            for value in range(300)
        ]
        await world.nodes[0].ask(lambda cluster: cluster.execute_batch(batch))
        events = await _read(world.nodes[1], len(batch), since=first.timestamp)
        assert len(set(_cids(events))) == len(batch)

        async def sleep_over(cluster: KotobaCluster) -> Timestamp | None:
            subscription = cluster.subscribe_events({"Change"})
            async for event in subscription:
                if isinstance(event, Resolved):
                    break
            again = [
                BatchOperation(CreateNode(labels=("Thing",), properties={"value": value}))
                for value in range(300)
            ]
            await cluster.execute_batch(again)
            await asyncio.sleep(2)
            try:
                async for _ in subscription:
                    pass
            except SlowReader as slow:
                return slow.last_resolved
            finally:
                subscription.close()
            return None

        resume = await world.nodes[0].ask(sleep_over)
        assert resume is not None
        events = await _read(world.nodes[2], len(batch), since=resume)
        assert len(set(_cids(events))) == len(batch)

    _run(17, scenario, config=few)
