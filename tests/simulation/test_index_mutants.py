"""The rules of indexes, each broken on purpose: a run must say so."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from cluster_core.graph import evaluate, indexes
from cluster_core.graph.indexes import IndexDefinition, Indexes, IndexState
from cluster_core.node.index_building import IndexBuilder
from cluster_core.replication import evaluation
from cluster_core.replication.evaluation import Evaluation
from cluster_core.replication.replica import Replica
from cluster_core.types import Digest, GroupId, Timestamp
from tests.simulation.test_mutants import assert_found

pytestmark = [
    pytest.mark.simulation,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
]


def test_old_entries_that_stay_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_new(before: Iterable[bytes], after: Iterable[bytes]) -> list[tuple[bytes, bytes]]:
        return [(key, indexes.PRESENT) for key in after if key not in before]

    monkeypatch.setattr(evaluate, "entry_changes", only_new)
    assert_found(monkeypatch, range(5000, 5010))


def test_an_index_that_is_not_maintained_while_it_is_built_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def only_ready(definitions: Iterable[IndexDefinition]) -> Indexes:
        return indexes.maintained(one for one in definitions if one.state is IndexState.READY)

    monkeypatch.setattr(evaluation, "maintained", only_ready)
    assert_found(monkeypatch, range(5000, 5010))


def test_a_leader_that_learns_of_an_index_in_its_next_term_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def later(self: Evaluation, definition: IndexDefinition) -> None:
        self.definitions[definition.id] = definition

    monkeypatch.setattr(Evaluation, "_define", later)
    assert_found(monkeypatch, range(5000, 5010))


def test_an_index_that_is_ready_without_a_backfill_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nothing(
        self: IndexBuilder, group: GroupId, kind: int, label: str, after: Digest
    ) -> list[Digest]:
        return []

    monkeypatch.setattr(IndexBuilder, "_labelled", nothing)
    assert_found(monkeypatch, range(5000, 5010))


def test_a_backfill_that_does_not_wait_for_earlier_transactions_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def at_once(self: IndexBuilder, replica: Replica, since: Timestamp) -> None:
        return None

    monkeypatch.setattr(IndexBuilder, "_wait_for_earlier", at_once)
    # One seed in six, where faults are few and transactions many.
    assert_found(monkeypatch, range(5016, 5046), pace=3.0)
