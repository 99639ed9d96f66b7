"""Virtual time, and killing one process among several."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.simulation.loop import Deadlock, Process, ProcessDied, SimLoop


def in_loop(main: Callable[[SimLoop], Coroutine[Any, Any, None]]) -> SimLoop:
    loop = SimLoop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(main(loop))
    gc.collect()  # asyncio notices an exception that nobody awaited when its task is collected
    return loop


def test_an_hour_passes_at_once() -> None:
    async def main(loop: SimLoop) -> None:
        await asyncio.sleep(3600)
        assert loop.time() == 3600

    in_loop(main)


def test_timeouts_and_timers_keep_virtual_time() -> None:
    async def main(loop: SimLoop) -> None:
        rung = []
        loop.call_later(2.5, lambda: rung.append(loop.time()))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2):
                await asyncio.sleep(10)
        assert loop.time() == 2
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 1)
        assert loop.time() == 3
        assert rung == [2.5]

    in_loop(main)


def test_timers_apart_by_less_than_any_clock_shows_run_in_order() -> None:
    async def main(loop: SimLoop) -> None:
        rung: list[int] = []
        for place in reversed(range(5)):
            loop.call_at(1 + place * 1e-12, rung.append, place)
        await asyncio.sleep(2)
        assert rung == [0, 1, 2, 3, 4]

    in_loop(main)


def test_waiting_for_nothing_is_a_deadlock() -> None:
    async def main(loop: SimLoop) -> None:
        await loop.create_future()

    with pytest.raises(Deadlock):
        in_loop(main)


def test_threads_are_refused() -> None:
    async def main(_: SimLoop) -> None:
        with pytest.raises(AssertionError, match="threads"):
            await asyncio.to_thread(print)

    in_loop(main)


async def _tick(ticks: list[str], name: str) -> None:
    while True:
        ticks.append(name)
        await asyncio.sleep(1)


def test_a_kill_ends_the_tasks_and_timers_of_one_process_only() -> None:
    async def main(loop: SimLoop) -> None:
        ticks: list[str] = []
        doomed, other = Process("doomed", loop), Process("other", loop)

        async def parent(name: str) -> None:
            loop.call_later(100, ticks.append, f"{name} timer")
            child = asyncio.create_task(_tick(ticks, name))
            await asyncio.gather(child, _tick(ticks, f"{name} two"))

        waiting = doomed.run(parent("doomed"))
        doomed.call(loop.call_later, 100, ticks.append, "doomed callback")
        other.run(parent("other"))
        await asyncio.sleep(0.5)
        assert sorted(ticks) == ["doomed", "doomed two", "other", "other two"]
        await doomed.kill()
        assert loop.time() == 0.5
        with pytest.raises(ProcessDied):
            await waiting
        await asyncio.sleep(100)
        assert not [tick for tick in ticks[4:] if tick.startswith("doomed")]
        assert ticks.count("other") == 101
        assert ticks.count("other timer") == 1
        await other.kill()

    assert in_loop(main).failures == []


def test_a_task_that_swallows_its_cancellation_is_ended_nevertheless() -> None:
    async def main(loop: SimLoop) -> None:
        process = Process("stubborn", loop)
        ended: list[str] = []

        async def stubborn() -> None:
            for _ in range(5):
                try:
                    await asyncio.sleep(1)
                except asyncio.CancelledError:
                    loop.call_later(1, ended.append, "late")
            ended.append("ended")

        answer = process.run(stubborn())
        await asyncio.sleep(0)
        await process.kill()
        assert ended == ["ended"]
        await asyncio.sleep(10)
        assert ended == ["ended"]
        with pytest.raises(ProcessDied):
            await answer

    in_loop(main)


def test_a_frozen_process_does_later_what_it_slept_through() -> None:
    async def main(loop: SimLoop) -> None:
        ticks: list[tuple[str, float]] = []
        frozen, other = Process("frozen", loop), Process("other", loop)

        async def tick(name: str) -> None:
            while True:
                ticks.append((name, loop.time()))
                await asyncio.sleep(1)

        frozen.run(tick("frozen"))
        other.run(tick("other"))
        await asyncio.sleep(0.5)
        frozen.freeze()
        frozen.call(loop.call_later, 1, ticks.append, ("timer", 1.5))
        await asyncio.sleep(4)
        assert [name for name, _ in ticks[2:]] == ["other"] * 4
        loop.thaw(frozen)
        await asyncio.sleep(1.6)
        assert ticks[6:] == [
            ("timer", 1.5),
            ("frozen", 4.5),
            ("other", 5),
            ("frozen", 5.5),
            ("other", 6),
        ]
        frozen.freeze()
        await asyncio.sleep(3)
        await frozen.kill()
        await other.kill()
        assert not [name for name, moment in ticks if name == "frozen" and moment > 6]

    in_loop(main)


def test_the_dead_answer_nobody() -> None:
    async def main(loop: SimLoop) -> None:
        process = Process("dead", loop)
        await process.kill()
        with pytest.raises(ProcessDied):
            await process.run(asyncio.sleep(1))

    in_loop(main)


def test_a_caller_who_gives_up_cancels_what_it_asked_for() -> None:
    async def main(loop: SimLoop) -> None:
        process = Process("node", loop)
        cancelled = []

        async def serve() -> None:
            try:
                await asyncio.sleep(10)
            except asyncio.CancelledError:
                cancelled.append(loop.time())
                raise

        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3):
                await process.run(serve())
        await asyncio.sleep(1)
        assert cancelled == [3]

    in_loop(main)


def test_a_failure_that_nobody_awaits_is_noted_unless_its_process_was_killed() -> None:
    async def main(loop: SimLoop) -> None:
        async def fail() -> None:
            await asyncio.sleep(1)
            raise ValueError("nobody looks")

        async def fail_when_killed() -> None:
            try:
                await asyncio.sleep(10)
            finally:
                raise ValueError("killed")

        living, killed = Process("living", loop), Process("killed", loop)
        living.call(lambda: asyncio.create_task(fail()))
        killed.call(lambda: asyncio.create_task(fail_when_killed()))
        await asyncio.sleep(2)
        await killed.kill()

    failures = in_loop(main).failures
    assert len(failures) == 1
    assert failures[0].startswith("living: ")
    assert "nobody looks" in failures[0]
