"""Answers wait for the snapshots that they are not part of."""

from __future__ import annotations

import asyncio

from cluster_core.hlc import COUNTER_BITS, HybridClock
from cluster_core.replication.holds import Holds


class Wall:
    def wall_ms(self) -> int:
        return 1_000

    def steady_s(self) -> float:
        return 0.0


def holds_at(timestamp: int) -> tuple[Holds, HybridClock]:
    clock = HybridClock(Wall())
    clock.ceiling_persisted(1 << 60)
    clock.merge(timestamp)
    return Holds(clock), clock


NOW = 1_000 << COUNTER_BITS


async def test_what_is_above_waits_and_what_is_not_passes() -> None:
    holds, clock = holds_at(NOW)
    assert holds.begin(("reader", 1), NOW + 10, 1.0)
    assert clock.latest == NOW + 10
    await holds.passed(NOW + 10)
    answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    holds.answer(answer, clock.now())
    await asyncio.sleep(0)
    assert not answer.done()
    assert holds.end(("reader", 1))
    assert await answer == NOW + 11


async def test_a_clock_that_is_above_refuses_the_reader() -> None:
    holds, clock = holds_at(NOW)
    assert not holds.begin(("reader", 1), NOW - 1, 1.0)
    assert clock.latest == NOW
    assert not holds.end(("reader", 1))


async def test_an_answer_waits_for_all_that_hold_it_and_for_none_that_came_later() -> None:
    holds, clock = holds_at(NOW)
    assert holds.begin(("one", 1), NOW, 1.0)
    assert holds.begin(("other", 1), NOW + 1, 1.0)
    answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    holds.answer(answer, clock.now())
    assert holds.end(("one", 1))
    assert not answer.done()
    assert holds.begin(("third", 1), clock.latest, 1.0)
    assert holds.end(("other", 1))
    assert answer.done()


async def test_a_hold_ends_by_itself_and_its_reader_is_told() -> None:
    holds, clock = holds_at(NOW)
    assert holds.begin(("reader", 1), NOW, 0.001)
    await holds.passed(clock.now())
    assert not holds.end(("reader", 1))


async def test_readers_of_a_lost_node_hold_nothing() -> None:
    holds, clock = holds_at(NOW)
    assert holds.begin(("lost", 1), NOW, 60.0)
    assert holds.begin(("lost", 2), NOW, 60.0)
    holds.end_all_of("lost")
    await holds.passed(clock.now())
    assert not holds.end(("lost", 1))
