"""Rules of strict reads, each broken on purpose and played step by step, or told by a history.
What histories find in seconds is in ``test_strict.py``."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from cluster_core.node.snapshot_rounds import SnapshotRounds
from cluster_core.replication.holds import Holds, Reader
from cluster_core.replication.replica import Replica
from cluster_core.types import Timestamp
from tests.simulation.mutants.hunt import Everywhere, Mutant, Same
from tests.simulation.mutants.of_transactions import reads_at_its_moment
from tests.simulation.schedules import TWO_PARTITIONS, change_leaders_under_a_snapshot
from tests.simulation.strict import run_strict
from tests.simulation.test_moments import (
    test_a_read_waits_for_what_its_leader_promised_to_a_snapshot as read_what_was_promised,
)
from tests.simulation.test_snapshot_rounds import (
    test_a_read_that_sees_what_is_above_a_snapshot_is_answered_behind_it as read_above,
)
from tests.simulation.test_snapshot_rounds import (
    test_a_snapshot_whose_holds_ended_by_themselves_does_not_stand as dawdle,
)
from tests.simulation.test_snapshot_rounds import (
    test_a_write_above_a_snapshot_is_answered_behind_it as write_above,
)

__all__ = ["MUTANTS"]

AREA = "Clocks and reads"


def answers_writes_above_a_snapshot(patch: pytest.MonkeyPatch) -> None:
    """Though the snapshot does not have them and is not told yet."""

    def at_once(_: Holds, future: asyncio.Future[Timestamp], timestamp: Timestamp) -> None:
        if not future.done():
            future.set_result(timestamp)

    patch.setattr(Holds, "answer", at_once)


def tells_readers_what_is_above_a_snapshot(patch: pytest.MonkeyPatch) -> None:
    """A write that is held may be seen, and acted upon, before it is acknowledged."""

    async def at_once(_: Holds, timestamp: Timestamp) -> None:
        return None

    patch.setattr(Holds, "passed", at_once)


def tells_a_snapshot_whose_holds_have_ended(patch: pytest.MonkeyPatch) -> None:
    """A hold that ended by itself is taken for one that was on."""
    end = Holds.end

    def pretend(holds: Holds, reader: Reader) -> bool:
        end(holds, reader)
        return True

    patch.setattr(Holds, "end", pretend)


def tells_a_snapshot_whose_leaders_have_changed(patch: pytest.MonkeyPatch) -> None:
    """Nobody looks at the end whether the leaders are those who held."""

    def whoever_leads(rounds: SnapshotRounds, reader: Reader, _: int) -> bool:
        return rounds._host.holds.end(reader)

    patch.setattr(SnapshotRounds, "_release_here", whoever_leads)


def forgets_what_was_promised(patch: pytest.MonkeyPatch) -> None:
    """A leader answers from what it has applied, though a snapshot has seen more."""
    patch.setattr(Replica, "has_reached_read_floor", True)


def forgets_it_under_load(patch: pytest.MonkeyPatch) -> None:
    """The same, told by a history alone."""
    forgets_what_was_promised(patch)


def misses_what_is_resolved_meanwhile(patch: pytest.MonkeyPatch) -> None:
    """Of an acknowledged transaction the moment may have the intent only, the reading neither."""
    reads_at_its_moment(patch)


MUTANTS = [
    Mutant(
        broken=answers_writes_above_a_snapshot,
        area=AREA,
        rule="a write above a snapshot is answered behind it",
        scenario=Same(write_above),
        within=1,
    ),
    Mutant(
        broken=tells_readers_what_is_above_a_snapshot,
        area=AREA,
        rule="so is a read that sees one",
        scenario=Same(read_above),
        within=1,
    ),
    Mutant(
        broken=tells_a_snapshot_whose_holds_have_ended,
        area=AREA,
        rule="a snapshot is told if every hold was on until the end",
        scenario=Same(dawdle),
        within=1,
    ),
    Mutant(
        broken=tells_a_snapshot_whose_leaders_have_changed,
        area=AREA,
        rule="a snapshot is told if nobody has led in another term",
        scenario=Everywhere(change_leaders_under_a_snapshot, TWO_PARTITIONS, nodes=5),
        within=3,
    ),
    Mutant(
        broken=forgets_what_was_promised,
        area=AREA,
        rule="a read covers what its leader promised to a snapshot",
        scenario=Same(read_what_was_promised),
        within=1,
    ),
    Mutant(
        broken=forgets_it_under_load,
        area=AREA,
        rule="the same, under load and told by a history",
        scenario=partial(run_strict, walkers=4, glances=1.0, seconds=2.0),
        quick=False,
    ),
    Mutant(
        broken=misses_what_is_resolved_meanwhile,
        area=AREA,
        rule="a strong read looks at what is newer than its moment",
        scenario=run_strict,
        quick=False,
    ),
]
