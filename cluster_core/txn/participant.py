"""A transaction's participant: prepares its parts, and resolves them when it is decided.

Everything here runs at the leader of the participating group, through that group's log. Prepare is
idempotent; a refusal, once in the log, makes a later prepare of that transaction fail for ever, so
that recovery may abort (``records.py``).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from cluster_core.config import ClusterConfig, LimitConfig
from cluster_core.errors import Conflict, KotobaError, RetryError
from cluster_core.graph.parts import (
    Answer,
    DropVertex,
    HoldEdges,
    Part,
    encode_change,
    guards_of,
)
from cluster_core.graph.several import Shown, Wanted, evaluate_several, locks_of_several, show
from cluster_core.graph.values import encode_message, message_decoder
from cluster_core.hlc import HybridClock
from cluster_core.replication.evaluation import Draft, Evaluation
from cluster_core.replication.intents import Intent
from cluster_core.replication.replica import Replica
from cluster_core.replication.router import Router, confirm
from cluster_core.storage import keys
from cluster_core.txn.records import (
    CheckRequest,
    Decision,
    Prepared,
    PrepareItem,
    PrepareRequest,
    ResolveRequest,
)
from cluster_core.types import Digest, GroupId, NodeId, Timestamp

__all__ = ["LocksHeld", "Participant", "find_leaders", "make_intent", "read_horizon"]

log = logging.getLogger("kotoba.txn")

LOCK_WAIT_S: Final = 0.05
"""How long a prepare waits for a lock before it answers Conflict and is tried again. All prepares
of a request are answered together, so a long wait of one would hold up, or even block, others."""

FIND_LEADER_S: Final = 0.5
"""How long a transaction waits for a participant's leader before it is tried again as a whole."""

_encode = encode_message
_decode_prepare = message_decoder(PrepareRequest)
_decode_resolve = msgspec.msgpack.Decoder(ResolveRequest).decode
_decode_wanted = msgspec.msgpack.Decoder(Wanted).decode
_decode_check = msgspec.msgpack.Decoder(CheckRequest).decode


class LocksHeld(Exception):
    """A lock is in the way, and the one who wants it may wait for ``digest``."""

    def __init__(self, digest: Digest) -> None:
        super().__init__(digest.hex())
        self.digest = digest


async def find_leaders(
    router: Router, groups: Iterable[GroupId], deadline: float
) -> dict[GroupId, NodeId | None]:
    """The leaders of participants, at once; None where none is found soon."""
    soon = min(deadline, asyncio.get_running_loop().time() + FIND_LEADER_S)
    return await router.leaders(sorted(groups), soon)


def read_horizon(evaluation: Evaluation) -> Timestamp:
    """Transactions that began at or before this can be refused without a trace of them."""
    value = evaluation.plain(keys.state(evaluation.group, b"horizon"))
    return 0 if value is None else int.from_bytes(value, "big")


def make_intent(
    evaluation: Evaluation,
    parts: Sequence[Part],
    *,
    transaction: bytes,
    begin: Timestamp,
    home: GroupId,
    prepared: Timestamp,
    limits: LimitConfig,
    operations: Sequence[int] = (),
) -> tuple[Intent, list[tuple[int, Answer]]]:
    """Evaluate ``parts`` and hold what they will write, and what they read: a part that changes
    nothing is locked as well, until the transaction is decided. Raises what the evaluation raises;
    LocksHeld when this transaction is older than the one in its way, Conflict when it is younger
    (wait-die: so nobody waits in a circle)."""
    locks = locks_of_several(parts) + guards_of(parts, evaluation)
    conflict = evaluation.locks.conflict(locks, transaction)
    if conflict is not None:
        digest, holder = conflict
        if (begin, transaction) < holder:
            raise LocksHeld(digest)
        raise Conflict("another transaction holds what this one needs; try again")
    evaluated = evaluate_several(parts, evaluation, limits, operations)
    intent = Intent(
        transaction=transaction,
        begin=begin,
        prepared=prepared,
        record_group=home,
        locks=locks,
        writes=evaluated.writes,
        pointers=evaluated.pointers,
        changes=[(change.entity, encode_change(change)) for change in evaluated.changes],
        detach=_detached(parts),
    )
    return intent, evaluated.answers


def _detached(parts: Sequence[Part]) -> Digest:
    """The vertex whose edges are to be deleted in chunks, if there is one."""
    match parts[0]:
        case DropVertex(digest, chunked=True) | HoldEdges(digest):
            return digest
    return b""


@dataclass
class _Round:
    """One pass over the items of a request: answers so far, and what is still to be applied."""

    answers: list[Prepared | None]
    applied: list[Awaitable[object]] = field(default_factory=list)
    waiting: dict[int, asyncio.Future[None]] = field(default_factory=dict)


class Participant:
    """See the module."""

    def __init__(self, router: Router, clock: HybridClock, config: ClusterConfig) -> None:
        self._router = router
        self._clock = clock
        self._config = config
        self._tasks: set[asyncio.Task[None]] = set()
        router.mesh.handle("txn.prepare", self._serve_prepare)
        router.mesh.handle("txn.resolve", self._serve_resolve)
        router.mesh.handle("txn.check", self._serve_check)
        router.mesh.handle("txn.show", self._serve_show)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # Prepare.

    async def prepare(
        self, items: Sequence[PrepareItem], deadline: float
    ) -> tuple[list[Prepared], list[Awaitable[object]]]:
        """Propose the intents of ``items``. The answers say what was proposed; the awaitables are
        done when it is applied, and fail when that is uncertain or did not happen."""
        round_ = _Round(answers=[None] * len(items))
        todo = list(range(len(items)))
        while todo:
            by_group: dict[GroupId, list[int]] = {}
            for position in todo:
                by_group.setdefault(items[position].group, []).append(position)
            for group, positions in by_group.items():
                await self._prepare_group(group, positions, items, round_, deadline)
            todo = await self._locks_released(round_, deadline)
        answers = [answer for answer in round_.answers if answer is not None]
        assert len(answers) == len(items)
        return answers, round_.applied

    async def _prepare_group(
        self,
        group: GroupId,
        positions: list[int],
        items: Sequence[PrepareItem],
        round_: _Round,
        deadline: float,
    ) -> None:
        failed: dict[int, KotobaError] = {}
        try:
            replica = self._router.leading(group)
            draft = replica.draft()
            for position in positions:
                try:
                    round_.answers[position] = self._prepare_item(replica, draft, items[position])
                except LocksHeld as held:
                    evaluation = self._router.leading(group).evaluation
                    assert evaluation is not None
                    round_.waiting[position] = evaluation.locks.released(held.digest)
                except KotobaError as error:
                    failed[position] = error
            if draft:
                round_.applied.append(replica.propose(draft, deadline))
            else:
                round_.applied.append(confirm(replica))
            if failed:
                await confirm(replica)
        except RetryError as error:
            # Also what seemed to be the operation's own fault was seen by a leader that may be
            # deposed, so it counts for nothing.
            for position in positions:
                waiter = round_.waiting.pop(position, None)
                if waiter is not None:
                    waiter.cancel()
                failed[position] = error
        for position, failure in failed.items():
            round_.answers[position] = Prepared(0, failure.fields())

    def _prepare_item(self, replica: Replica, draft: Draft, item: PrepareItem) -> Prepared:
        evaluation = replica.evaluation
        assert evaluation is not None
        known = evaluation.intent(item.transaction)
        if known is not None:
            return Prepared(known.prepared)
        if evaluation.plain(keys.refusal(item.group, item.transaction)) is not None:
            raise Conflict("this transaction was given up; try again")
        if item.begin <= read_horizon(evaluation):
            raise Conflict("this transaction began too long ago; try again")
        replica.require_room()
        prepared = self._clock.now()
        intent, answers = make_intent(
            evaluation,
            item.parts,
            transaction=item.transaction,
            begin=item.begin,
            home=item.home,
            prepared=prepared,
            limits=self._config.limits,
            operations=item.operations,
        )
        draft.advance(prepared)
        draft.prepare(intent)
        return Prepared(prepared, None, answers)

    async def _locks_released(self, round_: _Round, deadline: float) -> list[int]:
        """Wait for the locks that older transactions wait for; the positions to try again."""
        if not round_.waiting:
            return []
        waiting, round_.waiting = round_.waiting, {}
        remaining = deadline - asyncio.get_running_loop().time()
        patience = max(0.0, min(LOCK_WAIT_S, remaining))
        await asyncio.wait(list(waiting.values()), timeout=patience)
        again = []
        for position, future in waiting.items():
            if future.done() and future.exception() is None:
                again.append(position)
                continue
            future.cancel()
            error = Conflict("another transaction holds what this one needs; try again")
            round_.answers[position] = Prepared(0, error.fields())
        return again

    async def _serve_prepare(self, peer: NodeId, body: bytes) -> bytes:
        request = _decode_prepare(body)
        deadline = asyncio.get_running_loop().time() + request.timeout_ms / 1000
        answers, applied = await self.prepare(request.items, deadline)
        task = asyncio.get_running_loop().create_task(self._notify(peer, request.notify, applied))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return _encode(answers)

    async def _notify(
        self, peer: NodeId, request_id: int, applied: list[Awaitable[object]]
    ) -> None:
        outcomes = await asyncio.gather(*applied, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, KotobaError):
                self._router.mesh.reply_error(peer, request_id, outcome)
                return
            if isinstance(outcome, BaseException):
                raise outcome
        self._router.mesh.reply(peer, request_id, b"")

    # Resolve.

    async def resolve(
        self, items: Sequence[tuple[GroupId, bytes, Timestamp, Timestamp]], deadline: float
    ) -> set[GroupId]:
        """Turn intents into versions or into nothing, and return when that is applied: but for the
        groups returned, as those that are not led here, of which some may not have applied it.

        An abort of a transaction that has no intent here leaves a refusal, for its prepare may
        still be under way.
        """
        by_group: dict[GroupId, list[tuple[bytes, Timestamp, Timestamp]]] = {}
        for group, transaction, begin, commit in items:
            by_group.setdefault(group, []).append((transaction, begin, commit))
        outcomes = await asyncio.gather(
            *(self._resolve_group(group, decided, deadline) for group, decided in by_group.items()),
            return_exceptions=True,
        )
        unresolved: set[GroupId] = set()
        for group, outcome in zip(by_group, outcomes, strict=True):
            if isinstance(outcome, KotobaError):
                log.debug("intents of group %d, next time: %s", group, outcome.detail)
                unresolved.add(group)
            elif outcome is not None:
                raise outcome
        return unresolved

    async def _resolve_group(
        self, group: GroupId, decided: list[tuple[bytes, Timestamp, Timestamp]], deadline: float
    ) -> None:
        replica = self._router.leading(group)
        evaluation = replica.evaluation
        assert evaluation is not None
        draft = replica.draft()
        draft.advance(self._clock.now())
        for transaction, begin, commit in decided:
            intent = evaluation.intent(transaction)
            if intent is not None:
                draft.resolve(intent, commit)
            elif not commit:
                self._refuse(evaluation, draft, transaction, begin)
        if draft:
            await replica.propose(draft, deadline)
        else:
            await confirm(replica)

    def _refuse(
        self, evaluation: Evaluation, draft: Draft, transaction: bytes, begin: Timestamp
    ) -> None:
        key = keys.refusal(evaluation.group, transaction)
        if begin > read_horizon(evaluation) and evaluation.plain(key) is None:
            draft.put(key, begin.to_bytes(8, "big"))

    async def _serve_resolve(self, peer: NodeId, body: bytes) -> bytes:
        deadline = asyncio.get_running_loop().time() + self._config.limits.timeout_ms / 1000
        return _encode(sorted(await self.resolve(_decode_resolve(body).items, deadline)))

    # What a decomposition has to know.

    def show(self, want: Wanted) -> Shown:
        """Raises NoLeader when the group is not led here."""
        evaluation = self._router.leading(want.group).evaluation
        assert evaluation is not None
        return show(want, evaluation, self._config.limits)

    async def _serve_show(self, peer: NodeId, body: bytes) -> bytes:
        return _encode(self.show(_decode_wanted(body)))

    # Recovery's question.

    async def check(self, request: CheckRequest, deadline: float) -> bool:
        """Whether the transaction is prepared here at or below ``commit``; when not, a refusal is
        in the log before this returns False, and it never will be."""
        replica = self._router.leading(request.group)
        evaluation = replica.evaluation
        assert evaluation is not None
        intent = evaluation.intent(request.transaction)
        if intent is not None and intent.prepared <= request.commit:
            await confirm(replica)
            return True
        draft = replica.draft()
        draft.advance(self._clock.now())
        if intent is None:
            self._refuse(evaluation, draft, request.transaction, request.begin)
        else:
            draft.resolve(intent, 0)
            self._refuse(evaluation, draft, request.transaction, request.begin)
        if draft:
            await replica.propose(draft, deadline)
        else:
            await confirm(replica)
        return False

    async def _serve_check(self, peer: NodeId, body: bytes) -> bytes:
        deadline = asyncio.get_running_loop().time() + self._config.limits.timeout_ms / 1000
        prepared = await self.check(_decode_check(body), deadline)
        return _encode(Decision(1 if prepared else 0))
