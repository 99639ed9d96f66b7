from __future__ import annotations

import asyncio
from random import Random

import pytest

from cluster_core.txn.backoff import PAUSE_S, PAUSE_S_MAX, Backoff


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long each pause would take; none does."""
    pauses: list[float] = []
    yielding = asyncio.sleep

    async def sleep(delay: float) -> None:
        pauses.append(delay)
        await yielding(0)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return pauses


def in_s(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds


async def test_pauses_grow_up_to_a_bound_and_are_drawn(slept: list[float]) -> None:
    one = Backoff(Random(1), in_s(1_000))
    for _ in range(10):
        assert await one.pause(None)
    most = [min(PAUSE_S * 2**n, PAUSE_S_MAX) for n in range(10)]
    assert all(low / 2 <= pause <= low for pause, low in zip(slept, most, strict=True))
    assert len(set(slept)) == 10


async def test_two_that_lost_at_the_same_moment_do_not_keep_step(slept: list[float]) -> None:
    for seed in (1, 2):
        await Backoff(Random(seed), in_s(1_000)).pause(None)
    assert slept[0] != slept[1]


async def test_a_pause_of_a_seed_is_always_the_same(slept: list[float]) -> None:
    for _ in range(2):
        await Backoff(Random(7), in_s(1_000)).pause(None)
    assert slept[0] == slept[1]


async def test_no_pause_goes_beyond_the_deadline(slept: list[float]) -> None:
    late = Backoff(Random(1), in_s(0.0))
    assert not await late.pause(None)
    assert slept == [0.0]


async def test_a_lock_that_is_released_ends_the_pause_at_once(slept: list[float]) -> None:
    loop = asyncio.get_running_loop()
    one = Backoff(Random(1), in_s(1_000))
    released: asyncio.Future[None] = loop.create_future()
    loop.call_soon(released.set_result, None)
    assert await one.pause(released)
    assert not slept


async def test_a_lock_that_is_never_released_is_waited_for_until_the_deadline() -> None:
    kept: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    assert not await Backoff(Random(1), in_s(0.01)).pause(kept)
    assert kept.cancelled(), "nobody waits there any more"
