"""Executes several operations as one, at the leader of the home partition of the first.

All in one partition: they are evaluated together, and are one entry of its log. Over several: a
transaction (``transactions.py``), whose record lives here. Either way the whole request is tried
until it succeeds, fails for what the graph holds, or its time is over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import msgspec

from cluster_core.config import ClusterConfig
from cluster_core.errors import Conflict, NoLeader, OutcomeUnknown, Overloaded, RequestError
from cluster_core.graph.operations import TransactionResult
from cluster_core.graph.parts import Part, encode_change, guards_of
from cluster_core.graph.several import (
    Evaluated,
    Shown,
    Wanted,
    decompose_several,
    evaluate_several,
    locks_of_several,
    wanted,
)
from cluster_core.hlc import HybridClock
from cluster_core.ports import Random
from cluster_core.replication.evaluation import Draft, Evaluation
from cluster_core.replication.replica import Replica
from cluster_core.replication.router import Router, confirm
from cluster_core.storage import keys
from cluster_core.txn.attempt import Request, Transaction
from cluster_core.txn.backoff import Backoff
from cluster_core.txn.items import (
    DedupeEntry,
    TransactionItem,
    encode_dedupe,
    remembered,
    result_of,
)
from cluster_core.txn.participant import LocksHeld, Participant
from cluster_core.txn.transactions import Transactions
from cluster_core.types import GroupId, NodeId, Timestamp, group_of

__all__ = ["AtomicExecutor"]

_encode_wanted = msgspec.msgpack.Encoder().encode
_decode_shown = msgspec.msgpack.Decoder(Shown).decode

Parts = list[tuple[int, int, Part]]
"""Index of the operation, partition, part."""

Begun = Transaction | Awaitable[TransactionResult]


class AtomicExecutor:
    """See the module."""

    def __init__(
        self,
        router: Router,
        clock: HybridClock,
        config: ClusterConfig,
        partition_count: int,
        participant: Participant,
        transactions: Transactions,
        random: Random,
    ) -> None:
        self._router = router
        self._random = random
        self._clock = clock
        self._limits = config.limits
        self._partition_count = partition_count
        self._participant = participant
        self._transactions = transactions

    async def execute(self, item: TransactionItem, deadline: float) -> TransactionResult:
        """Execute ``item``, which must have its home here.

        Raises the error of the first operation that failed, with its ``index``; NoLeader (certainly
        not executed); Conflict when it lost against others until ``deadline``; OutcomeUnknown.
        """
        backoff = Backoff(self._random, deadline)
        looks = wanted(item.operations)
        begin: Timestamp = 0
        while True:
            released: asyncio.Future[None] | None = None
            shown = await self._look(looks, group_of(item.partition), deadline)
            replica = self._router.leading(group_of(item.partition))
            try:
                begun = self._begin(item, looks, shown, replica, begin, deadline)
            except LocksHeld as held:
                assert replica.evaluation is not None
                released = replica.evaluation.locks.released(held.digest)
            except RequestError:
                await confirm(replica)
                raise
            except Conflict:
                pass  # the edges that were seen are not those that are there: look again
            else:
                if not isinstance(begun, Transaction):
                    return await begun
                begin = begun.begin
                await self._transactions.run([begun], deadline)
                if not begun.again:
                    return _ended(begun)
            if not await backoff.pause(released):
                raise Conflict("another transaction holds what this one needs; try again")

    async def _look(
        self, looks: list[Wanted], home: GroupId, deadline: float
    ) -> dict[GroupId, Shown]:
        """What the leaders of the other groups show for the decomposition."""
        others = [want for want in looks if want.group != home]
        found = await asyncio.gather(*(self._look_at(want, deadline) for want in others))
        return {want.group: shown for want, shown in zip(others, found, strict=True)}

    async def _look_at(self, want: Wanted, deadline: float) -> Shown:
        async def ask(node: NodeId) -> bytes:
            if node == self._router.node_id:
                return _encode_wanted(self._participant.show(want))
            remaining = max(0.01, deadline - asyncio.get_running_loop().time())
            try:
                body = _encode_wanted(want)
                return await self._router.mesh.request(node, "txn.show", body, timeout=remaining)
            except OutcomeUnknown as error:
                raise NoLeader(error.detail) from error  # a question: nothing was executed

        return _decode_shown(await self._router.at_leader(want.group, deadline, ask))

    def _begin(
        self,
        item: TransactionItem,
        looks: list[Wanted],
        shown: dict[GroupId, Shown],
        replica: Replica,
        begin: Timestamp,
        deadline: float,
    ) -> Begun:
        """Evaluate and propose in this turn, or begin a transaction. Raises the error of an
        operation, LocksHeld, or Conflict when ``shown`` is not so any more."""
        draft, evaluation = replica.draft(), replica.evaluation
        assert evaluation is not None
        if item.dedupe:
            value = evaluation.plain(keys.dedupe(replica.group, item.dedupe))
            entry = remembered(value, item.fingerprint)
            if entry is not None:
                return self._repeated(item, entry, evaluation, replica)
            if replica.dedupe_full:
                raise Overloaded("too many Idempotency-Keys are remembered; try again later")
        replica.require_room()
        for want in looks:
            if want.group == replica.group:
                shown[want.group] = self._participant.show(want)
        parts = decompose_several(item.operations, shown, self._partition_count, self._limits)
        if any(partition != item.partition for _, partition, _ in parts):
            places = [(one.index, one.partition) for one in item.operations]
            request = Request(item.partition, places, item.dedupe, item.fingerprint, indexed=True)
            return self._transactions.begin(request, parts, begin or self._clock.now())
        return self._write(item, parts, replica, evaluation, draft, deadline)

    def _repeated(
        self, item: TransactionItem, entry: DedupeEntry, evaluation: Evaluation, replica: Replica
    ) -> Begun:
        """This request was executed before, or is about to be."""
        if entry.transaction and self._transactions.undecided(evaluation, entry.transaction):
            return self._transactions.resume(item.partition, entry)
        return _when_confirmed(replica, TransactionResult(entry.results, entry.timestamp))

    def _write(
        self,
        item: TransactionItem,
        parts: Parts,
        replica: Replica,
        evaluation: Evaluation,
        draft: Draft,
        deadline: float,
    ) -> Awaitable[TransactionResult]:
        """Everything is in one partition: one entry of its log, and nothing to be decided."""
        own = [part for _, _, part in parts]
        if evaluation.locks:
            locks = locks_of_several(own) + guards_of(own, evaluation)
            conflict = evaluation.locks.conflict(locks, b"")
            if conflict is not None:
                raise LocksHeld(conflict[0])
        indexes = [index for index, _, _ in parts]
        evaluated = evaluate_several(own, evaluation, self._limits, indexes)
        timestamp = self._clock.now()
        answers = dict(evaluated.answers)
        results = [
            result_of(answers[one.index], one.partition, timestamp) for one in item.operations
        ]
        result = TransactionResult(results, timestamp)
        if not evaluated.writes:
            return _when_confirmed(replica, result)
        _fill(draft, evaluated, timestamp)
        if item.dedupe:
            entry = DedupeEntry(item.fingerprint, results, timestamp)
            draft.put(keys.dedupe(replica.group, item.dedupe), encode_dedupe(entry))
        return _when_applied(replica.propose(draft, deadline), result)


def _fill(draft: Draft, evaluated: Evaluated, timestamp: Timestamp) -> None:
    draft.advance(timestamp)
    for user_key, value in evaluated.writes:
        draft.write(user_key, value, timestamp)
    for key, value in evaluated.pointers:
        draft.put(key, value)
    for change in evaluated.changes:
        draft.change(change.entity, encode_change(change), timestamp)


def _when_confirmed(replica: Replica, result: TransactionResult) -> Awaitable[TransactionResult]:
    """What "now" is, is taken at this call; see ``confirm``."""
    confirmed = confirm(replica)

    async def wait() -> TransactionResult:
        await confirmed
        return result

    return wait()


async def _when_applied(
    applied: Awaitable[Timestamp], result: TransactionResult
) -> TransactionResult:
    await applied
    return result


def _ended(transaction: Transaction) -> TransactionResult:
    if transaction.error is not None:
        raise transaction.error
    assert transaction.result is not None, "a transaction ends with a result or an error"
    return transaction.result
