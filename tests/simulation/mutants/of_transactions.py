"""Rules of transactions, each broken on purpose."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable
from contextvars import ContextVar
from typing import Any

import pytest

from cluster_core.errors import Conflict
from cluster_core.graph import evaluate as evaluation
from cluster_core.graph.parts import ChangeVertex, Lock, LockKind, Part, locks_of
from cluster_core.graph.several import locks_of_several
from cluster_core.hlc import TIMESTAMP_MAX
from cluster_core.node import reads
from cluster_core.node.reads import Reads
from cluster_core.ports import Engine
from cluster_core.query.host import ReadPoint
from cluster_core.replication.evaluation import Draft
from cluster_core.replication.intents import IntentIndex
from cluster_core.replication.locks import LockTable
from cluster_core.replication.replica import Replica
from cluster_core.storage import keys
from cluster_core.storage.mvcc import read_at
from cluster_core.txn import executor, participant, recovery, transactions
from cluster_core.txn.attempt import Transaction
from cluster_core.txn.records import TransactionRecord, decode_record
from cluster_core.txn.recovery import Recovery
from cluster_core.txn.settlement import Committed, Settlement, _delete_record
from cluster_core.txn.transactions import Transactions
from cluster_core.types import Digest, Timestamp
from tests.simulation.mutants.hunt import Everywhere, Mutant, Whole
from tests.simulation.runs import Plan
from tests.simulation.schedules import (
    FIVE_PARTITIONS,
    IMPATIENT,
    OBLIVIOUS,
    abort_what_nobody_staged,
    lose_again_and_again,
    read_what_is_being_resolved,
    stage_what_was_forgotten,
)
from tests.simulation.test_transactions import hammer_in_every_order

__all__ = ["MUTANTS", "reads_at_its_moment"]

AREA = "Transactions"
BANK = Whole(Plan(seconds=6, clients=0, tellers=5))
"""Transfers and nothing else: they meet all the time."""

MUTED = Whole(Plan(seconds=6, clients=0, tellers=6, only=("mute",), pace=0.5))
"""Leaders answer that they have prepared, and nobody else has it when another is elected."""

DYING = Whole(
    Plan(seconds=6, clients=0, tellers=6, only=("crash", "slow_disk"), pace=0.3, impatient=True)
)
"""Coordinators die, slow disks leave much undecided when they do, and others decide it at once."""


def locks_nothing(patch: pytest.MonkeyPatch) -> None:
    """No lock is ever in the way."""

    def never(table: LockTable, locks: object, transaction: bytes) -> None:
        pass

    patch.setattr(LockTable, "conflict", never)


def locks_no_reads(patch: pytest.MonkeyPatch) -> None:
    """What a transaction reads and does not change may change before it is decided."""

    def writes_only(parts: Iterable[Part]) -> list[Lock]:
        return locks_of_several(
            part for part in parts if not (isinstance(part, ChangeVertex) and not part.properties)
        )

    patch.setattr(participant, "locks_of_several", writes_only)


def drops_shared_locks(patch: pytest.MonkeyPatch) -> None:
    """Who creates an edge holds nothing of its ends."""

    def own(locks: list[Lock]) -> list[Lock]:
        return [lock for lock in locks if lock[1] is not LockKind.SHARED]

    patch.setattr(participant, "locks_of_several", lambda parts: own(locks_of_several(parts)))
    patch.setattr(executor, "locks_of", lambda part: own(locks_of(part)))


def writes_past_locks(patch: pytest.MonkeyPatch) -> None:
    """A write of a single partition does not look for the locks of transactions."""
    patch.setattr(executor, "_require_unlocked", lambda evaluation, parts: None)


def ignores_preconditions(patch: pytest.MonkeyPatch) -> None:
    """``if_version`` is not looked at."""
    require_live = evaluation._require_live
    patch.setattr(
        evaluation,
        "_require_live",
        lambda view, kind, digest, _if_version: require_live(view, kind, digest, None),
    )


def passes_over_intents(patch: pytest.MonkeyPatch) -> None:
    """A read at T does not wait for what was prepared below T."""

    def nothing(
        index: IntentIndex, timestamp: Timestamp, digests: Collection[Digest] | None
    ) -> None:
        pass

    patch.setattr(IntentIndex, "undecided", nothing)


def forgets_intents_in_a_restart(patch: pytest.MonkeyPatch) -> None:
    """They are on the disk, and nobody looks."""
    patch.setattr(Replica, "_load_intents", lambda self: None)


def commits_before_all_are_prepared(patch: pytest.MonkeyPatch) -> None:
    """A prepare counts when it is proposed, not when it is applied."""
    patch.setattr(transactions, "_prepared", lambda transaction: True)
    staged = Transactions._staged

    async def hasty(self: Transactions, ones: Any, *rest: Any) -> None:
        for one in ones:
            one.applied = []
        await staged(self, ones, *rest)

    patch.setattr(Transactions, "_staged", hasty)


def aborts_what_is_prepared(patch: pytest.MonkeyPatch) -> None:
    """Recovery aborts a staged transaction without asking its participants."""

    async def gloomy(
        self: Recovery, transaction: bytes, record: TransactionRecord, deadline: float
    ) -> bool:
        return False

    patch.setattr(Recovery, "_check_participants", gloomy)


def leaves_no_trace_of_an_abort(patch: pytest.MonkeyPatch) -> None:
    """A missing record is not created as ABORTED: a late staging is accepted."""

    async def forgetful(
        self: Recovery, replica: Replica, transaction: bytes, begin: Timestamp, deadline: float
    ) -> Timestamp:
        return 0

    patch.setattr(Recovery, "_abort_missing", forgetful)


def goes_on_after_its_abort_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    """Refusals and ABORTED records go at a horizon; what began before it is prepared and staged all
    the same."""
    patch.setattr(transactions, "read_horizon", lambda evaluation: 0)
    patch.setattr(participant, "read_horizon", lambda evaluation: 0)
    patch.setattr(recovery, "read_horizon", lambda evaluation: 0)


def deletes_records_too_early(patch: pytest.MonkeyPatch) -> None:
    """Before every participant has applied its resolve."""

    async def hasty(self: Settlement, committed: list[Committed]) -> None:
        settled = await self._change_records(committed, self._commit_record)
        await self._change_records(settled, _delete_record)
        decided = [
            (group, transaction, record.begin, record.commit)
            for _, transaction, record in (
                (home, transaction, decode_record(value)) for home, transaction, value in settled
            )
            for group in record.participants
        ]
        await self.resolve(decided)

    patch.setattr(Settlement, "finish", hasty)


def waits_in_a_circle(patch: pytest.MonkeyPatch) -> None:
    """Who finds a lock waits for it, old or young, for as long as it takes."""
    make = participant.make_intent

    def patient(*args: Any, **how: Any) -> Any:
        how["begin"], begin = 0, how["begin"]
        intent, answers = make(*args, **how)
        intent.begin = begin
        return intent, answers

    patch.setattr(participant, "make_intent", patient)
    patch.setattr(transactions, "make_intent", patient)
    patch.setattr(participant, "LOCK_WAIT_S", 60.0)


def grows_young_again(patch: pytest.MonkeyPatch) -> None:
    """Each attempt begins anew, so whoever loses is the younger the next time as well."""
    begin = Transactions.begin

    def anew(self: Transactions, request: Any, parts: Any, _: Timestamp) -> Transaction:
        return begin(self, request, parts, self._clock.now())

    patch.setattr(Transactions, "begin", anew)


def reads_at_its_moment(patch: pytest.MonkeyPatch) -> None:
    """A read of one entity shows what was written by the time it was given, and does not look at
    what has come since."""
    strong, given = Reads.strong, ContextVar("given", default=TIMESTAMP_MAX)

    async def noting(self: Reads, partition: int, deadline: float) -> ReadPoint:
        point = await strong(self, partition, deadline)
        given.set(point.timestamp)
        return point

    def by_then(engine: Engine, user_key: bytes) -> tuple[Timestamp, bytes] | None:
        return read_at(engine, user_key, given.get())

    patch.setattr(Reads, "strong", noting)
    patch.setattr(reads, "newest", by_then)


def reads_on_at_an_old_moment(patch: pytest.MonkeyPatch) -> None:
    """Nor does a read that waited for a transaction begin again above its commit."""
    reads_at_its_moment(patch)
    decided = IntentIndex.decided

    def below(self: IntentIndex, transaction: bytes) -> asyncio.Future[Timestamp]:
        late: asyncio.Future[Timestamp] = asyncio.get_running_loop().create_future()

        def hand_over(future: asyncio.Future[Timestamp]) -> None:
            if late.done():
                return
            if future.exception() is not None:
                late.set_exception(future.exception())  # type: ignore[arg-type]
            else:
                late.set_result(0)

        decided(self, transaction).add_done_callback(hand_over)
        return late

    patch.setattr(IntentIndex, "decided", below)


def keeps_the_answer_of_an_abort(patch: pytest.MonkeyPatch) -> None:
    """A request whose transaction was aborted is answered from its dedupe entry."""
    delete = Draft.delete

    def spare(draft: Draft, key: bytes) -> None:
        if key[2:3] != keys.DEDUPE:
            delete(draft, key)

    patch.setattr(Draft, "delete", spare)


def believes_an_undecided_attempt(patch: pytest.MonkeyPatch) -> None:
    """A retry is answered from the dedupe entry of an attempt that may still be aborted."""
    patch.setattr(Transactions, "undecided", lambda self, evaluation, transaction: False)


def all_end_in_time(seed: int) -> None:
    """Transactions that write the same vertices in every order."""
    try:
        hammer_in_every_order(seed)
    except (Conflict, TimeoutError):
        raise AssertionError("transactions block each other") from None


MUTANTS = [
    Mutant(broken=locks_nothing, area=AREA, rule="conflicting transactions exclude", scenario=BANK),
    Mutant(
        broken=locks_no_reads,
        area=AREA,
        rule="what is read stays locked until the decision",
        scenario=BANK,
        first=2,
    ),
    Mutant(
        broken=drops_shared_locks,
        area=AREA,
        rule="who creates an edge holds both its ends",
        scenario=Whole(Plan(seconds=6, clients=12, tellers=0, chaos=False)),
        first=1,
        quick=False,
    ),
    Mutant(
        broken=writes_past_locks,
        area=AREA,
        rule="a write of one partition obeys locks as well",
        scenario=Whole(Plan(seconds=6, clients=12, tellers=0, chaos=False)),
        quick=False,
    ),
    Mutant(
        broken=ignores_preconditions, area=AREA, rule="preconditions are looked at", scenario=BANK
    ),
    Mutant(
        broken=passes_over_intents,
        area=AREA,
        rule="a read waits for intents at or below it",
        scenario=BANK,
    ),
    Mutant(
        broken=forgets_intents_in_a_restart,
        area=AREA,
        rule="intents are state, and survive a restart",
        scenario=Whole(Plan(seconds=6, clients=0, tellers=5, only=("crash",), pace=0.5)),
        first=2,
    ),
    Mutant(
        broken=commits_before_all_are_prepared,
        area=AREA,
        rule="committed is what every participant has prepared, durably",
        scenario=MUTED,
        first=13,
    ),
    Mutant(
        broken=aborts_what_is_prepared,
        area=AREA,
        rule="abort only what a participant refused",
        scenario=DYING,
        first=2,
        quick=False,
    ),
    Mutant(
        broken=leaves_no_trace_of_an_abort,
        area=AREA,
        rule="a missing record is created as ABORTED",
        scenario=Everywhere(abort_what_nobody_staged, IMPATIENT),
        within=3,
    ),
    Mutant(
        broken=goes_on_after_its_abort_is_forgotten,
        area=AREA,
        rule="what began before the horizon of a group is refused there",
        scenario=Everywhere(stage_what_was_forgotten, OBLIVIOUS),
        within=3,
        quick=False,
    ),
    Mutant(
        broken=deletes_records_too_early,
        area=AREA,
        rule="a record goes when all intents are resolved",
        scenario=DYING,
    ),
    Mutant(
        broken=reads_on_at_an_old_moment,
        area=AREA,
        rule="a strong read begins again at C > T, and looks at what is newer than T",
        scenario=Everywhere(read_what_is_being_resolved, FIVE_PARTITIONS),
        within=3,
    ),
    Mutant(
        broken=keeps_the_answer_of_an_abort,
        area=AREA,
        rule="an abort takes its dedupe entry away",
        scenario=Whole(Plan(seconds=6, clients=10, tellers=0, only=("mute",), pace=0.5)),
        quick=False,
    ),
    Mutant(
        broken=believes_an_undecided_attempt,
        area=AREA,
        rule="a retry decides the earlier attempt first",
        scenario=Whole(Plan(seconds=6, clients=10, tellers=0, only=("mute",), pace=0.5)),
        quick=False,
    ),
    Mutant(
        broken=waits_in_a_circle,
        area=AREA,
        rule="the older waits, the younger is refused",
        scenario=all_end_in_time,
        within=3,
    ),
    Mutant(
        broken=grows_young_again,
        area=AREA,
        rule="a transaction keeps its age over retries",
        scenario=Everywhere(lose_again_and_again, FIVE_PARTITIONS),
        first=1,
        within=10,
    ),
]
