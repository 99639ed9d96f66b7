from __future__ import annotations

import asyncio

import pytest

from cluster_core.events import Change, ClusterEvent, Event, Resolved, SlowReader
from cluster_core.node.bus import EventBus, Subscription

FAILED = ClusterEvent(type="NodeFailed", node_id="node3", at="", id="e1")


def change(timestamp: int, *, partition: int = 0, label: str = "Person") -> Change:
    return Change(
        op="create_node",
        cid=f"cid{timestamp}",
        version=None,
        partition=partition,
        timestamp=timestamp,
        labels=(label,),
    )


def resolved(timestamp: int) -> Resolved:
    return Resolved(timestamp=timestamp)


@pytest.fixture
def bus() -> EventBus:
    return EventBus(4)


async def events_of(subscription: Subscription) -> list[Event]:
    subscription.close()
    return [event async for event in subscription]


async def test_a_subscription_begins_where_the_others_are(bus: EventBus) -> None:
    first = bus.subscribe()
    bus.resolved = 10
    bus.publish_changes([change(11)], 12)
    second = bus.subscribe()
    bus.publish_changes([change(13)], 14)
    assert await events_of(first) == [change(11), change(13)]
    assert await events_of(second) == [resolved(12), change(13)]


async def test_who_catches_up_gets_nothing_twice_and_misses_nothing() -> None:
    bus = EventBus(10)
    bus.subscribe()
    bus.resolved = 10
    late = bus.subscribe(since=5)
    assert bus.behind == [late]
    bus.publish_changes([change(11)], 12)
    late.catch_up([change(7)], 9)
    late.catch_up([change(11)], 12)
    late.join()
    bus.publish_changes([change(13)], 14)
    expected = [change(7), resolved(9), change(11), resolved(12), change(13)]
    assert [await anext(late) for _ in expected] == expected


async def test_since_ahead_of_the_others_waits_for_its_time(bus: EventBus) -> None:
    bus.subscribe()
    bus.resolved = 10
    ahead = bus.subscribe(since=12)
    ahead.join()
    bus.publish_changes([change(11), change(13)], 14)
    assert await events_of(ahead) == [change(13)]


async def test_cluster_events_do_not_wait_for_the_past(bus: EventBus) -> None:
    late = bus.subscribe(since=5)
    bus.publish(FAILED)
    assert await events_of(late) == [FAILED]


async def test_resolved_goes_along_with_changes_only(bus: EventBus) -> None:
    changes = bus.subscribe({"Change"}, labels={"Person"}, partitions={1})
    others = bus.subscribe({"NodeFailed"})
    for event in (change(1, partition=1), change(2), change(3, partition=1, label="X")):
        bus.publish(event)
    bus.publish(resolved(3))
    bus.publish(FAILED)
    assert await events_of(changes) == [change(1, partition=1), resolved(3)]
    assert await events_of(others) == [FAILED]
    assert bus.change_listeners == 0


async def test_a_slow_reader_is_told_how_far_it_came(bus: EventBus) -> None:
    slow = bus.subscribe()
    bus.publish(resolved(1))
    assert await anext(slow) == resolved(1)
    for timestamp in range(2, 8):
        bus.publish(change(timestamp))
    with pytest.raises(SlowReader) as dropped:
        await anext(slow)
    assert dropped.value.last_resolved == 1


async def test_catching_up_waits_for_the_reader_and_passes_what_is_larger_than_a_queue(
    bus: EventBus,
) -> None:
    late = bus.subscribe(since=0)
    late.catch_up([change(7) for _ in range(20)], 7)
    waiting = asyncio.ensure_future(late.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    for _ in range(19):
        await anext(late)
    await waiting
    assert late.open


async def test_what_is_too_much_to_be_published_is_caught_up_by_everybody_who_listens() -> None:
    bus = EventBus(10)
    live, ahead, other = bus.subscribe(), bus.subscribe(since=30), bus.subscribe({"NodeFailed"})
    bus.resolved = 10
    bus.publish_changes([change(11)], 12)
    assert bus.fall_behind(20) == [live]
    assert live.behind == 12
    bus.publish_changes([change(21)], 22)
    late = bus.subscribe()
    live.catch_up([change(20)] * 3)
    live.catch_up([change(20)], 20)
    live.catch_up([change(21)], 22)
    live.join()
    bus.publish_changes([change(23)], 24)
    expected = [change(11), *[change(20)] * 4, resolved(20), change(21), resolved(22), change(23)]
    assert await events_of(live) == expected
    assert await events_of(late) == [resolved(22), change(23)]
    assert await events_of(ahead) == await events_of(other) == []


async def test_who_joined_ahead_of_the_others_falls_behind_to_where_it_was() -> None:
    bus = EventBus(10)
    bus.subscribe()
    bus.resolved = 10
    ahead = bus.subscribe(since=15)
    ahead.join()
    bus.fall_behind(20)
    assert ahead.behind == 15


async def test_nobody_waits_for_a_reader_that_left(bus: EventBus) -> None:
    late = bus.subscribe(since=0)
    late.catch_up([change(7) for _ in range(20)], 7)
    waiting = asyncio.ensure_future(late.room())
    await asyncio.sleep(0)
    late.close()
    await asyncio.wait_for(waiting, 1)
    assert bus.behind == []


async def test_an_error_comes_after_what_was_given(bus: EventBus) -> None:
    broken, other = bus.subscribe(), bus.subscribe({"NodeFailed"})
    bus.resolved = 1
    bus.publish(change(2))
    bus.fail_changes(KeyError("gone"))
    assert await anext(broken) == change(2)
    with pytest.raises(KeyError):
        await anext(broken)
    bus.publish(FAILED)
    assert await events_of(other) == [FAILED]
    assert bus.resolved is None
