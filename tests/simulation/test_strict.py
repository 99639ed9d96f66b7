"""Strict serializability: kept by what is shipped, and missed where its rules are broken."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterable
from typing import Any

import pytest

from cluster_core.replication.holds import Holds, Reader
from cluster_core.replication.replica import Replica
from cluster_core.types import Timestamp
from tests.simulation.mutants.of_transactions import reads_at_its_moment
from tests.simulation.strict import run_strict

pytestmark = [
    pytest.mark.simulation,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
]


def found_within(seeds: Iterable[int], **how: Any) -> bool:
    for seed in seeds:
        try:
            run_strict(seed, **how)
        except AssertionError as error:
            if "a cycle" not in str(error):
                raise
            return True
        finally:
            gc.collect()
    return False


@pytest.mark.parametrize("seed", [2, 6])
def test_snapshots_respect_real_time(seed: int) -> None:
    run_strict(seed)


def test_answers_that_are_not_held_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def at_once(_: Holds, future: asyncio.Future[Timestamp], timestamp: Timestamp) -> None:
        if not future.done():
            future.set_result(timestamp)

    monkeypatch.setattr(Holds, "answer", at_once)
    assert found_within(range(4, 14))


def test_holds_that_end_early_and_unnoticed_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    begin, end = Holds.begin, Holds.end

    def shortly(holds: Holds, reader: Reader, timestamp: Timestamp, _: float) -> bool:
        return begin(holds, reader, timestamp, 0.001)

    def pretend(holds: Holds, reader: Reader) -> bool:
        end(holds, reader)
        return True

    monkeypatch.setattr(Holds, "begin", shortly)
    monkeypatch.setattr(Holds, "end", pretend)
    assert found_within(range(20))


def test_reads_that_lag_behind_a_snapshot_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a snapshot has seen in flight, a later read of that partition must see as well."""
    monkeypatch.setattr(Replica, "has_reached_read_floor", True)
    assert found_within(range(19, 60), walkers=4, glances=1.0, seconds=2.0)


def test_reads_that_miss_what_is_resolved_meanwhile_are_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of an acknowledged transaction the moment may have the intent only, the reading neither."""
    reads_at_its_moment(monkeypatch)
    assert found_within(range(2, 40))
