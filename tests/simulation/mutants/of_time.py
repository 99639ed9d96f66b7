"""Rules of clocks, closed timestamps and history, each broken on purpose."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from cluster_core.hlc import HybridClock
from cluster_core.node import confirmed_leaders
from cluster_core.node.clock_watch import ClockWatch, Reading
from cluster_core.node.identity import Identity
from cluster_core.node.reads import Reads
from cluster_core.node.snapshot_rounds import SnapshotRounds
from cluster_core.ports import Clock
from cluster_core.query import gather, local
from cluster_core.query.host import QueryHost, ReadPoint
from cluster_core.query.tasks import Budget, Result, Task
from cluster_core.query.work import Work
from cluster_core.replication import closed, history
from cluster_core.replication.closed import ClosedTimestamps
from cluster_core.replication.evaluation import Evaluation
from cluster_core.replication.holds import Reader
from cluster_core.replication.mesh import RAFT, Mesh
from cluster_core.replication.replica import Replica
from cluster_core.types import GroupId, Timestamp
from tests.simulation.mutants.hunt import Everywhere, Mutant, Whole
from tests.simulation.reading_schedules import ask_for_what_is_to_come, read_while_it_is_given_up
from tests.simulation.runs import FORGETFUL, Plan
from tests.simulation.schedules import (
    FIVE_PARTITIONS,
    IDLE,
    TWO_PARTITIONS,
    lose_what_was_closed,
    promise_what_a_crash_forgets,
    read_by_an_old_leader,
    read_own_writes_elsewhere,
)

__all__ = ["MUTANTS"]

AREA = "Clocks and reads"


def begins_again_in_a_restart(patch: pytest.MonkeyPatch) -> None:
    """The clock's ceiling is not read from the disk."""

    def without_a_ceiling(identity: Identity, wall: Clock, ahead_ms: int) -> HybridClock:
        return HybridClock(wall, ceiling=0, ahead_ms=ahead_ms)

    patch.setattr(Identity, "clock", without_a_ceiling)


def promises_above_its_ceiling(patch: pytest.MonkeyPatch) -> None:
    """A node whose clock is above its ceiling answers, though a crash would forget that."""

    def always(self: HybridClock, timestamp: Timestamp) -> bool:
        return True

    patch.setattr(HybridClock, "is_covered", always)


def believes_its_wall_clock(patch: pytest.MonkeyPatch) -> None:
    """However far it is ahead of everybody else's."""

    def trusting(self: ClockWatch, reading: Reading, offsets: list[int]) -> None:
        self._wall.believe(reading)

    patch.setattr(ClockWatch, "_judge", trusting)


def takes_no_note_of_clocks(patch: pytest.MonkeyPatch) -> None:
    """A follower acknowledges a round without raising its clock to the one that it carried."""
    on_frames, merge = Mesh.on_frames, HybridClock.merge
    deaf = False

    def listen(self: Mesh, peer: str, frames: list[bytes]) -> None:
        nonlocal deaf
        for frame in frames:
            deaf = frame[1] == RAFT
            on_frames(self, peer, [frame])
        deaf = False

    def take_note(self: HybridClock, timestamp: Timestamp) -> None:
        if not deaf:
            merge(self, timestamp)

    patch.setattr(Mesh, "on_frames", listen)
    patch.setattr(HybridClock, "merge", take_note)


def reads_snapshots_unconfirmed(patch: pytest.MonkeyPatch) -> None:
    """Who says that it leads is believed, though no quorum in its term has raised its clock."""
    patch.setattr(confirmed_leaders, "_is_followed", lambda *_: True)


def _applied_here(replica: Replica) -> asyncio.Future[int]:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    future.set_result(replica.applied)
    return future


def reads_snapshots_too_early(patch: pytest.MonkeyPatch) -> None:
    """A replica reads T without all that its leader had proposed before."""

    def at_once(self: SnapshotRounds, round_: Any, verdict: Any) -> ReadPoint:
        return ReadPoint(round_.timestamp)

    patch.setattr(SnapshotRounds, "_point", at_once)


def names_what_is_applied(patch: pytest.MonkeyPatch) -> None:
    """A leader that is asked for a snapshot names what it has applied, not what is in flight."""
    answer = SnapshotRounds._answer_here

    def short(self: SnapshotRounds, reader: Reader, timestamp: Timestamp, hold_s: float) -> Any:
        given = answer(self, reader, timestamp, hold_s)
        if given is None or not given.indexes:
            return given
        applied = [replica.applied for replica in self._leaders.led]
        return msgspec.structs.replace(given, indexes=applied)

    patch.setattr(SnapshotRounds, "_answer_here", short)


def reads_what_is_not_applied_yet(patch: pytest.MonkeyPatch) -> None:
    """A replica does not wait for the index that the leader named."""
    patch.setattr(Replica, "reached", lambda replica, index: _applied_here(replica))


def closes_above_undecided_intents(patch: pytest.MonkeyPatch) -> None:
    """What a transaction will write at or below it is not complete."""
    patch.setattr(Evaluation, "lowest_prepared", None)


def closes_unconfirmed(patch: pytest.MonkeyPatch) -> None:
    """A leader closes the present though no majority has acknowledged its clock."""
    close_led, barrier = ClosedTimestamps.close_led, Replica.read_barrier
    closing = False

    def hasty(self: ClosedTimestamps) -> None:
        nonlocal closing
        closing = True
        close_led(self)
        closing = False

    def trusting(replica: Replica) -> asyncio.Future[int]:
        return _applied_here(replica) if closing else barrier(replica)

    patch.setattr(ClosedTimestamps, "close_led", hasty)
    patch.setattr(Replica, "read_barrier", trusting)


def closes_before_it_is_committed(patch: pytest.MonkeyPatch) -> None:
    """Before the entries up to its index are: a resolve among them may be lost, and come again."""

    def at_once(
        self: ClosedTimestamps, promise: closed._Promise, confirmed: asyncio.Future[int]
    ) -> None:
        confirmed.cancelled() or confirmed.exception()
        if promise.stands:
            self._complete(promise)

    patch.setattr(ClosedTimestamps, "_acknowledged", at_once)


def takes_closed_for_applied(patch: pytest.MonkeyPatch) -> None:
    """A replica serves what is closed without having the entries."""

    def of(self: ClosedTimestamps, group: GroupId) -> closed.Point:
        return self.newest(group)

    patch.setattr(ClosedTimestamps, "of", of)


def reads_below_the_horizon(patch: pytest.MonkeyPatch) -> None:
    """A read of what is no longer kept is answered with what is left."""
    patch.setattr(Reads, "require_history", lambda *_: None)


def looks_at_the_horizon_once(patch: pytest.MonkeyPatch) -> None:
    """Before a read, and not again when all is read."""

    async def run_task(task: Task, host: QueryHost, point: ReadPoint, budget: Budget) -> Result:
        for partition in local.partitions_of(task):
            host.require_history(partition, point.timestamp)
            index = point.applied.get(partition)
            if index is not None:
                await host.wait_applied(partition, index)
        return await local._run(task, Work(host, point, budget))

    patch.setattr(local, "run_task", run_task)
    patch.setattr(gather, "run_task", run_task)


def reads_what_is_to_come(patch: pytest.MonkeyPatch) -> None:
    """A time ahead of the clock is not waited for: the read takes the clocks there."""

    async def at_once(self: Reads, timestamp: Timestamp, deadline: float) -> None:
        pass

    patch.setattr(Reads, "_wait_for_clock", at_once)


def follows_its_clients_clocks(patch: pytest.MonkeyPatch) -> None:
    """A client's timestamp counts like a peer's."""
    wait = Reads._wait_for_clock

    async def merge(self: Reads, timestamp: Timestamp, deadline: float) -> None:
        self._clock.merge(timestamp)
        await wait(self, timestamp, deadline)

    patch.setattr(Reads, "_wait_for_clock", merge)


def collects_above_the_horizon(patch: pytest.MonkeyPatch) -> None:
    """Each replica up to its own clock, not up to a horizon of the log."""
    collection = history.Collection

    def greedy(engine: Any, group: GroupId, horizon: Timestamp) -> Any:
        return collection(engine, group, horizon + (60_000 << 16))

    patch.setattr(history, "Collection", greedy)


def keeps_a_horizon_of_its_own(patch: pytest.MonkeyPatch) -> None:
    """It is no entry of the log: each replica gives up what is old enough by its own clock."""

    def by_itself(self: history.Retention, replica: Replica) -> None:
        closed_here = self._closed.of(replica.group).timestamp
        wanted = min(self._clock.latest - self._retention, closed_here)
        if wanted > replica.horizon + self._retention // history.ADVANCES:
            replica.horizon = wanted

    patch.setattr(history.Retention, "_advance", by_itself)


def keeps_every_version_but_the_newest(patch: pytest.MonkeyPatch) -> None:
    """The newest version below the horizon is given up with the others."""
    keeps = history.Sieve.keeps

    def drops(self: history.Sieve, key: bytes, value: bytes) -> bool:
        first = key[:-8] != self._done
        return keeps(self, key, value) and not (first and key[:-8] == self._done)

    patch.setattr(history.Sieve, "keeps", drops)


MUTANTS = [
    Mutant(
        broken=begins_again_in_a_restart,
        area=AREA,
        rule="a restart begins above the durable ceiling",
        scenario=Whole(Plan(seconds=4, only=("crash",), pace=0.5)),
    ),
    Mutant(
        broken=promises_above_its_ceiling,
        area=AREA,
        rule="nothing is promised above the durable ceiling",
        scenario=Everywhere(promise_what_a_crash_forgets, IDLE),
        within=3,
    ),
    Mutant(
        broken=believes_its_wall_clock,
        area=AREA,
        rule="a clock far ahead of the peers' is not believed",
        scenario=Whole(Plan(seconds=4, only=("wrong_clock",), pace=0.5)),
        quick=False,
    ),
    Mutant(
        broken=reads_what_is_to_come,
        area=AREA,
        rule="a time that is ahead is waited for, or refused",
        scenario=Everywhere(ask_for_what_is_to_come),
        within=3,
    ),
    Mutant(
        broken=follows_its_clients_clocks,
        area=AREA,
        rule="a client's timestamp does not move the clock",
        scenario=Everywhere(ask_for_what_is_to_come),
        within=3,
    ),
    Mutant(
        broken=reads_snapshots_unconfirmed,
        area=AREA,
        rule="a quorum raises its clock to T before T is read",
        scenario=Everywhere(read_by_an_old_leader, TWO_PARTITIONS),
        within=3,
    ),
    Mutant(
        broken=reads_snapshots_too_early,
        area=AREA,
        rule="T is read where all that was proposed before is applied",
        scenario=Whole(
            Plan(seconds=5, clients=0, tellers=6, only=("slow_disk", "slow_network"), pace=0.3)
        ),
    ),
    Mutant(
        broken=names_what_is_applied,
        area=AREA,
        rule="a snapshot sees what was in flight at its leaders",
        scenario=Whole(
            Plan(seconds=5, clients=0, tellers=6, only=("slow_disk", "slow_network"), pace=0.3)
        ),
        first=9,
        quick=False,
    ),
    Mutant(
        broken=reads_what_is_not_applied_yet,
        area=AREA,
        rule="a replica serves a read when it has applied what the leader named",
        scenario=Whole(Plan(seconds=5, tellers=0, only=("slow_disk", "slow_network"), pace=0.3)),
        quick=False,
    ),
    Mutant(
        broken=takes_no_note_of_clocks,
        area=AREA,
        rule="a receiver takes note of the clock before it reads on",
        scenario=Whole(Plan(seconds=6, only=("crash", "depose_leaders"), pace=0.5)),
        first=2,
    ),
    Mutant(
        broken=closes_above_undecided_intents,
        area=AREA,
        rule="closed is below every undecided intent",
        scenario=Whole(Plan(seconds=15)),
        first=700,
        quick=False,
    ),
    Mutant(
        broken=closes_unconfirmed,
        area=AREA,
        rule="closed is what a majority has acknowledged",
        scenario=Whole(Plan(seconds=10, only=("pause",), pace=1.0)),
    ),
    Mutant(
        broken=closes_before_it_is_committed,
        area=AREA,
        rule="closed is with an index that is committed",
        scenario=Everywhere(lose_what_was_closed, FIVE_PARTITIONS),
        within=3,
    ),
    Mutant(
        broken=takes_closed_for_applied,
        area=AREA,
        rule="closed is served where its index is applied",
        scenario=Everywhere(read_own_writes_elsewhere),
        within=3,
    ),
    Mutant(
        broken=reads_below_the_horizon,
        area=AREA,
        rule="a read below the horizon is refused",
        scenario=Whole(Plan(seconds=12)),
        first=2,
        quick=False,
    ),
    Mutant(
        broken=looks_at_the_horizon_once,
        area=AREA,
        rule="a read looks at the horizon again when it has read all",
        scenario=Everywhere(read_while_it_is_given_up, FORGETFUL),
        within=3,
    ),
    Mutant(
        broken=collects_above_the_horizon,
        area=AREA,
        rule="collection stays below an applied horizon",
        scenario=Whole(Plan(seconds=12)),
        first=2,
        quick=False,
    ),
    Mutant(
        broken=keeps_a_horizon_of_its_own,
        area=AREA,
        rule="a horizon is an entry of the log",
        scenario=Whole(Plan(seconds=8)),
        first=2,
        quick=False,
    ),
    Mutant(
        broken=keeps_every_version_but_the_newest,
        area=AREA,
        rule="the newest version at or below the horizon is kept",
        scenario=Whole(Plan(seconds=8)),
        first=2,
        quick=False,
    ),
]
