"""Strict serializability: kept by what is shipped, and missed where its rules are broken.

Hunts that take a minute are in ``mutants/of_strict_reads.py``.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterable
from typing import Any

import pytest

from cluster_core.replication.holds import Holds, Reader
from cluster_core.types import Timestamp
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
