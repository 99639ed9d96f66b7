"""The bank is worth what it finds: rules of transactions, broken on purpose, are noticed."""

from __future__ import annotations

import gc
from collections.abc import Iterable

import pytest

from cluster_core.graph import evaluate as evaluation
from cluster_core.graph.parts import ChangeVertex, Lock, Part
from cluster_core.graph.several import locks_of_several
from cluster_core.replication.intents import IntentIndex
from cluster_core.txn import participant
from tests.simulation.runs import run

pytestmark = [
    pytest.mark.simulation,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
]

SEEDS = range(1, 11)
VERDICTS = ("the sum is", "is on call", "a cycle", "lost update", "half an edge")


def finding() -> str:
    """What the first run that fails says; it has to be about transactions."""
    for seed in SEEDS:
        found = verdict(seed)
        if found:
            assert any(known in found for known in VERDICTS), found
            return found
    raise AssertionError("nothing was found")


def verdict(seed: int) -> str:
    try:
        run(seed, seconds=6, clients=0, tellers=5)
    except AssertionError as error:
        return str(error)
    finally:
        gc.collect()
    return ""


def test_transactions_without_locks_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(parts: Iterable[Part]) -> list[Lock]:
        return []

    monkeypatch.setattr(participant, "locks_of_several", none)
    assert finding()


def test_reads_that_are_not_locked_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """An update that changes nothing depends on what it read, until the transaction is decided."""

    def writes_only(parts: Iterable[Part]) -> list[Lock]:
        return locks_of_several(
            part for part in parts if not (isinstance(part, ChangeVertex) and not part.properties)
        )

    monkeypatch.setattr(participant, "locks_of_several", writes_only)
    found = finding()
    assert "a cycle" in found or "is on call" in found


def test_preconditions_that_are_not_looked_at_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    require_live = evaluation._require_live
    monkeypatch.setattr(
        evaluation,
        "_require_live",
        lambda view, kind, digest, _if_version: require_live(view, kind, digest, None),
    )
    assert finding()


def test_snapshots_that_pass_over_intents_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(IntentIndex, "undecided", lambda *_: None)
    assert "the sum is" in finding()
