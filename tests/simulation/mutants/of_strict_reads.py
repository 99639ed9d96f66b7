"""Rules of snapshots in real time, each broken on purpose and played step by step. What whole
histories say of the like is in ``test_strict.py``."""

from __future__ import annotations

import asyncio

import pytest

from cluster_core.node.snapshot_rounds import SnapshotRounds
from cluster_core.replication.holds import Holds, Reader
from cluster_core.types import Timestamp
from tests.simulation.mutants.hunt import Everywhere, Mutant, Same
from tests.simulation.schedules import TWO_PARTITIONS, change_leaders_under_a_snapshot
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
]
