"""Rules of Raft, broken where it is wired into a node. The chaos of the core has more of them
(``tests/cluster_core/raft/test_raft_chaos.py``)."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from cluster_core.raft import Raft, Ready
from cluster_core.raft.leadership import Leadership
from cluster_core.replication.log_store import LogStore
from cluster_core.replication.replica import Replica
from cluster_core.storage.memory import MemoryBatch, MemoryEngine
from cluster_core.wire.messages import Entry, HardState
from tests.simulation.mutants.hunt import Everywhere, Mutant, Whole
from tests.simulation.runs import Plan
from tests.simulation.schedules import elect_without_a_witness
from tests.simulation.test_figure_eight import figure_eight

__all__ = ["MUTANTS"]


def answers_before_the_sync(patch: pytest.MonkeyPatch) -> None:
    """Votes and acknowledgements leave before the disk has what they promise."""
    ready = Raft.ready

    def hasty(raft: Raft) -> Ready:
        taken = ready(raft)
        late = taken.messages_after_persist
        return msgspec.structs.replace(
            taken,
            messages=taken.messages + tuple(one for one in late if one.target != raft.replica),
            messages_after_persist=tuple(one for one in late if one.target == raft.replica),
        )

    patch.setattr(Raft, "ready", hasty)


def forgets_its_vote(patch: pytest.MonkeyPatch) -> None:
    """Term and vote are not written."""

    def forget(store: LogStore, batch: MemoryBatch, hard_state: HardState) -> None:
        pass

    patch.setattr(LogStore, "save_hard_state", forget)


def reads_unconfirmed(patch: pytest.MonkeyPatch) -> None:
    """A leader believes itself that it still leads."""

    def unconfirmed(replica: Replica) -> asyncio.Future[int]:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        future.set_result(replica.applied)
        return future

    patch.setattr(Replica, "read_barrier", unconfirmed)


def takes_a_failed_sync_for_done(patch: pytest.MonkeyPatch) -> None:
    """What a sync that failed should have saved is reported as persisted, and work goes on."""
    sync, check = MemoryEngine.sync, MemoryEngine._check_fault

    async def careless(engine: MemoryEngine) -> None:
        if engine.disk.fail_writes is None:
            await sync(engine)

    def deaf(engine: MemoryEngine, size: int) -> None:
        if engine.disk.fail_writes is None:
            check(engine, size)

    patch.setattr(MemoryEngine, "sync", careless)
    patch.setattr(MemoryEngine, "_check_fault", deaf)


def loses_an_entry_of_the_log(patch: pytest.MonkeyPatch) -> None:
    """The first of several entries of a flush is not written."""
    append = LogStore.append

    def holey(store: LogStore, batch: MemoryBatch, entries: tuple[Entry, ...]) -> None:
        append(store, batch, entries[1:] if len(entries) > 1 else entries)

    patch.setattr(LogStore, "append", holey)


def counts_what_is_not_durable(patch: pytest.MonkeyPatch) -> None:
    """A leader takes what it has appended for durable."""
    committed = Leadership._try_commit

    def eager(leader: Leadership, acked: int) -> None:
        leader._peers.own.acked(leader._log.last_index)
        committed(leader, acked)

    patch.setattr(Leadership, "_try_commit", eager)


def counts_old_terms(patch: pytest.MonkeyPatch) -> None:
    """An entry of any term is committed when a majority has it."""

    def careless(self: Leadership, acked: int) -> None:
        index = self._peers.committed()
        if index > self._log.committed:
            self._log.commit_to(index)
            self.commit_untold = True

    patch.setattr(Leadership, "_try_commit", careless)


MUTANTS = [
    Mutant(
        broken=counts_old_terms,
        area="Raft",
        rule="only entries of the leader's own term are committed by counting",
        scenario=figure_eight,
        within=3,
    ),
    Mutant(
        broken=answers_before_the_sync,
        area="Raft",
        rule="one vote a term, and an acknowledgement, on the disk before it is told",
        scenario=Whole(Plan(seconds=8, only=("crash_all",), pace=1.0)),
        first=1,
    ),
    Mutant(
        broken=forgets_its_vote,
        area="Raft",
        rule="term and vote survive a crash",
        scenario=Whole(Plan(seconds=6, only=("crash",), pace=0.5)),
    ),
    Mutant(
        broken=reads_unconfirmed,
        area="Raft",
        rule="a read waits for a majority that was asked after it",
        scenario=Whole(Plan(seconds=10, only=("pause",), pace=1.0)),
    ),
    Mutant(
        broken=takes_a_failed_sync_for_done,
        area="Raft",
        rule="after the first failed sync nothing is reported as persisted again",
        scenario=Whole(Plan(seconds=10, only=("break_disk",), pace=0.5)),
    ),
    Mutant(
        broken=loses_an_entry_of_the_log,
        area="Raft",
        rule="never entry n+1 without n",
        scenario=Whole(Plan(seconds=4)),
    ),
    Mutant(
        broken=counts_what_is_not_durable,
        area="Raft",
        rule="a leader's own entry counts when it is durable",
        scenario=Everywhere(elect_without_a_witness),
        first=2,
        within=3,
    ),
]
