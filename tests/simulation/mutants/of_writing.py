"""Rules of writing, each broken on purpose."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any

import msgspec
import pytest

from cluster_core.errors import KotobaError, NoLeader
from cluster_core.graph.parts import Outcome
from cluster_core.replication import mesh, replica
from cluster_core.replication.evaluation import Draft, Evaluation
from cluster_core.replication.replica import Replica
from cluster_core.replication.router import confirm
from cluster_core.storage import keys
from cluster_core.txn.executor import Executor, _Job
from cluster_core.txn.items import DedupeEntry, encode_dedupe
from cluster_core.types import group_of
from cluster_core.wire.messages import Entry
from tests.simulation.mutants.hunt import Mutant, Whole
from tests.simulation.runs import Plan

__all__ = ["MUTANTS"]

AREA = "Writing"
STRANDED = Whole(Plan(seconds=6, only=("strand",), pace=0.5))
"""Leaders are cut off until others are elected, and come back with all they had in flight."""


def keeps_its_overlay(patch: pytest.MonkeyPatch) -> None:
    """What a leader had in flight when it lost its term is seen by its next term."""
    update = Replica._update_evaluation

    def reluctant(self: Replica) -> None:
        before = self.evaluation
        update(self)
        if before is not None and self.evaluation is None:
            self.kept = before  # type: ignore[attr-defined]
        elif before is None and self.evaluation is not None:
            kept: Evaluation | None = getattr(self, "kept", None)
            if kept is not None:
                self.evaluation._versions.update(kept._versions)
                self.evaluation._plain.update(kept._plain)

    patch.setattr(Replica, "_update_evaluation", reluctant)


def succeeds_whatever_the_term(patch: pytest.MonkeyPatch) -> None:
    """A proposal counts as executed when any entry is applied at its index."""

    def careless(self: Replica, entry: Entry) -> None:
        proposal = self._proposals.pop(entry.index, None)
        if proposal is not None and not proposal[1].done():
            self._outcomes.append((proposal[1], self.applied_timestamp))

    patch.setattr(Replica, "_settle_proposal", careless)


def answers_what_writes_nothing_at_once(patch: pytest.MonkeyPatch) -> None:
    """A refusal, or a repeated answer, of a leader that may be deposed."""

    def trusting(self: confirm) -> Generator[Any, None, None]:
        return
        yield

    patch.setattr(confirm, "__await__", trusting)


def takes_unknown_for_not_executed(patch: pytest.MonkeyPatch) -> None:
    """What was asked over a connection that broke, or not decided in time, is asked again."""
    patch.setattr(mesh, "OutcomeUnknown", NoLeader)
    patch.setattr(replica, "OutcomeUnknown", NoLeader)


def remembers_requests_later(patch: pytest.MonkeyPatch) -> None:
    """The dedupe entry follows its write in an entry of its own."""
    write = Executor._write

    def late(self: Executor, job: _Job, draft: Draft, outcomes: list[Outcome]) -> bool:
        item = job.item
        job.item = msgspec.structs.replace(item, dedupe=b"")
        wrote = write(self, job, draft, outcomes)
        job.item = item
        if wrote and item.dedupe:
            asyncio.get_running_loop().call_later(0.02, remember, self, job)
        return wrote

    def remember(self: Executor, job: _Job) -> None:
        assert job.result is not None
        item, group = job.item, group_of(job.item.partition)
        entry = DedupeEntry(item.fingerprint, [job.result], job.result.timestamp)
        try:
            leading = self._router.leading(group)
            draft = leading.draft()
            draft.advance(self._clock.now())
        except KotobaError:
            return
        draft.put(keys.dedupe(group, item.dedupe), encode_dedupe(entry))
        leading.propose(draft, asyncio.get_running_loop().time() + 1).add_done_callback(
            lambda future: future.cancelled() or future.exception()
        )

    patch.setattr(Executor, "_write", late)


def executes_retries_again(patch: pytest.MonkeyPatch) -> None:
    """Nobody looks whether a request was answered before."""

    def never(executor: Executor, job: object, evaluation: object) -> bool:
        return False

    patch.setattr(Executor, "_repeated", never)


def forgets_what_is_in_flight(patch: pytest.MonkeyPatch) -> None:
    """Operations are evaluated against what is applied, without those before them."""
    patch.setattr(Evaluation, "newest", _newest_applied)


def _newest_applied(self: Evaluation, user_key: bytes) -> Any:
    from cluster_core.storage import mvcc

    return mvcc.newest(self._engine, user_key)


MUTANTS = [
    Mutant(
        broken=keeps_its_overlay,
        area=AREA,
        rule="the overlay goes with the term",
        scenario=Whole(Plan(seconds=6, only=("mute", "strand"), pace=0.4)),
        quick=False,
    ),
    Mutant(
        broken=succeeds_whatever_the_term,
        area=AREA,
        rule="executed is what is applied with the term it was proposed in",
        scenario=STRANDED,
        first=9,
    ),
    Mutant(
        broken=answers_what_writes_nothing_at_once,
        area=AREA,
        rule="an answer that writes nothing is given like a strong read",
        scenario=STRANDED,
        quick=False,
    ),
    Mutant(
        broken=takes_unknown_for_not_executed,
        area=AREA,
        rule="once proposed, an undecided outcome is unknown",
        scenario=Whole(Plan(seconds=6, only=("break_streams", "cut_one_way"), pace=0.3)),
        quick=False,
    ),
    Mutant(
        broken=remembers_requests_later,
        area=AREA,
        rule="a dedupe entry is in the entry of its write",
        quick=False,
        scenario=Whole(Plan(seconds=8, only=("crash", "break_streams"), pace=0.5)),
    ),
    Mutant(
        broken=executes_retries_again,
        area=AREA,
        rule="a request takes effect at most once under its key",
        scenario=Whole(Plan(seconds=6, only=("crash", "break_streams"), pace=0.5)),
    ),
    Mutant(
        broken=forgets_what_is_in_flight,
        area=AREA,
        rule="an evaluation sees all that was proposed before it",
        scenario=Whole(Plan(seconds=4)),
    ),
]
