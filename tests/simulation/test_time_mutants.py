"""The rules of closed timestamps and of history, each broken on purpose: a run must say so."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterable
from functools import partial

import pytest

from cluster_core.node.feed import Feed
from cluster_core.replication import closed
from cluster_core.replication.closed import ClosedTimestamps
from cluster_core.replication.evaluation import Evaluation
from cluster_core.types import GroupId, Timestamp
from tests.simulation.runs import run
from tests.simulation.test_feed import follow_through_trouble
from tests.simulation.world import simulate

pytestmark = [
    pytest.mark.simulation,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
]


def found_within(seeds: Iterable[int]) -> bool:
    for seed in seeds:
        try:
            run(seed)
        except AssertionError:
            return True
        finally:
            gc.collect()
    return False


def feed_fails_within(seeds: Iterable[int]) -> bool:
    for seed in seeds:
        try:
            world = simulate(seed, partial(follow_through_trouble, seconds=10, chaos=True))
            if world.failures:
                return True
        except AssertionError:
            return True
        finally:
            gc.collect()
    return False


def test_closing_above_undecided_intents_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Evaluation, "lowest_prepared", None)
    assert found_within(range(700, 720))


def test_closing_before_the_log_is_committed_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def at_once(self: ClosedTimestamps, promise: closed._Promise, _: asyncio.Future[int]) -> None:
        if promise.stands:
            self._complete(promise)

    monkeypatch.setattr(ClosedTimestamps, "_acknowledged", at_once)
    assert found_within(range(700, 740)) or feed_fails_within(range(700, 720))


def test_closing_without_the_index_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica takes what is closed for applied."""

    def of(self: ClosedTimestamps, group: GroupId) -> closed.Point:
        return self.newest(group)

    monkeypatch.setattr(ClosedTimestamps, "of", of)
    assert feed_fails_within(range(700, 720))


def test_a_feed_that_reads_up_to_the_clock_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def now(self: Feed) -> Timestamp:
        return self._clock.latest

    monkeypatch.setattr(Feed, "_closed_everywhere", now)
    monkeypatch.setattr(ClosedTimestamps, "of", lambda self, group: closed.Point(1 << 63, 0))
    assert feed_fails_within(range(700, 720))
