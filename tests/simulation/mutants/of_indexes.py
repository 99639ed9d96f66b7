"""Rules of indexes, each broken on purpose."""

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
from tests.simulation.mutants.hunt import Mutant, Whole
from tests.simulation.runs import Plan

__all__ = ["MUTANTS"]

AREA = "Indexes"
MIXED = Whole(Plan(seconds=15))


def keeps_old_entries(patch: pytest.MonkeyPatch) -> None:
    """A change adds the new entry of an index and leaves the old one."""

    def only_new(before: Iterable[bytes], after: Iterable[bytes]) -> list[tuple[bytes, bytes]]:
        return [(key, indexes.PRESENT) for key in after if key not in before]

    patch.setattr(evaluate, "entry_changes", only_new)


def maintains_only_ready_indexes(patch: pytest.MonkeyPatch) -> None:
    """What changes while an index is built is not in it."""

    def only_ready(definitions: Iterable[IndexDefinition]) -> Indexes:
        return indexes.maintained(one for one in definitions if one.state is IndexState.READY)

    patch.setattr(evaluation, "maintained", only_ready)


def learns_of_an_index_in_its_next_term(patch: pytest.MonkeyPatch) -> None:
    """What is evaluated behind BUILDING, and in this term, does not obey it."""

    def later(self: Evaluation, definition: IndexDefinition) -> None:
        self.definitions[definition.id] = definition

    patch.setattr(Evaluation, "_define", later)


def fills_nothing_in(patch: pytest.MonkeyPatch) -> None:
    """An index is ready without what there was before it."""

    def nothing(
        self: IndexBuilder, group: GroupId, kind: int, label: str, after: Digest
    ) -> list[Digest]:
        return []

    patch.setattr(IndexBuilder, "_labelled", nothing)


def waits_for_no_earlier_transaction(patch: pytest.MonkeyPatch) -> None:
    """The backfill begins while intents that know nothing of the index are undecided."""

    async def at_once(self: IndexBuilder, replica: Replica, since: Timestamp) -> None:
        return None

    patch.setattr(IndexBuilder, "_wait_for_earlier", at_once)


MUTANTS = [
    Mutant(
        broken=keeps_old_entries,
        area=AREA,
        rule="an index has what the entities ask for, no more",
        scenario=MIXED,
        first=5000,
        within=10,
        quick=False,
    ),
    Mutant(
        broken=maintains_only_ready_indexes,
        area=AREA,
        rule="all behind BUILDING maintains the index",
        scenario=MIXED,
        first=5000,
        within=10,
        quick=False,
    ),
    Mutant(
        broken=learns_of_an_index_in_its_next_term,
        area=AREA,
        rule="so does what is in flight in that term",
        scenario=MIXED,
        first=5000,
        within=10,
        quick=False,
    ),
    Mutant(
        broken=fills_nothing_in,
        area=AREA,
        rule="READY follows a backfill",
        scenario=MIXED,
        first=5000,
        within=10,
        quick=False,
    ),
    Mutant(
        broken=waits_for_no_earlier_transaction,
        area=AREA,
        rule="the backfill waits for intents from before BUILDING",
        # One seed in six, where faults are few and transactions many.
        scenario=Whole(Plan(seconds=15, pace=3.0)),
        first=5016,
        within=30,
        quick=False,
    ),
]
