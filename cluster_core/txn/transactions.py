"""One-shot transactions over several partitions: the coordinator's side.

The coordinator is the leader of the operation's home partition. One consensus round stands between
the request and its answer:

1. *Prepare*: every other participant evaluates its parts, proposes their intents and answers at
   once with the prepare timestamp, before its log has them for good.
2. *Stage*: the home evaluates its own parts at a later timestamp, which is the commit timestamp,
   and proposes their intents together with the record in state STAGING.
3. When the home's entry and all prepares are applied, the transaction is committed, and answered.
4. In the background the record becomes COMMITTED, the intents versions, and the record goes.
   Where a vertex with very many edges is deleted, those go before the intents (``detach.py``), and
   the answer waits for it, for half of its time at most: it is committed either way.

Whatever is uncertain on the way is decided as it is when the coordinator is dead (``recovery.py``);
the work in the background is in ``settlement.py``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Sequence
from typing import Any

from cluster_core.config import ClusterConfig
from cluster_core.errors import (
    Conflict,
    KotobaError,
    NoLeader,
    OutcomeUnknown,
    Overloaded,
    error_from_fields,
)
from cluster_core.graph.operations import TransactionResult
from cluster_core.graph.parts import Answer, Part
from cluster_core.graph.values import encode_message, message_decoder
from cluster_core.hlc import HybridClock
from cluster_core.ports import Random
from cluster_core.replication.evaluation import Draft, Evaluation
from cluster_core.replication.intents import Intent
from cluster_core.replication.replica import Replica
from cluster_core.replication.router import Router, confirm
from cluster_core.storage import keys
from cluster_core.txn.attempt import Request, Transaction
from cluster_core.txn.detach import EdgeDeletion
from cluster_core.txn.items import DedupeEntry, encode_batch, encode_dedupe
from cluster_core.txn.participant import (
    LocksHeld,
    Participant,
    find_leaders,
    make_intent,
    read_horizon,
)
from cluster_core.txn.records import (
    Prepared,
    PrepareItem,
    PrepareRequest,
    RecordState,
    decode_record,
)
from cluster_core.txn.recovery import Recovery
from cluster_core.txn.settlement import Settlement
from cluster_core.types import GroupId, NodeId, Timestamp

__all__ = ["Transactions"]

_decode_answers = message_decoder(list[Prepared])


class Transactions:
    """See the module."""

    def __init__(
        self,
        router: Router,
        participant: Participant,
        settlement: Settlement,
        recovery: Recovery,
        deletion: EdgeDeletion,
        clock: HybridClock,
        config: ClusterConfig,
        random: Random,
    ) -> None:
        self._router = router
        self._participant = participant
        self._settlement = settlement
        self._recovery = recovery
        self._deletion = deletion
        self._clock = clock
        self._config = config
        self._random = random

    # Beginning.

    def begin(
        self, request: Request, parts: Iterable[tuple[int, int, Part]], begin: Timestamp
    ) -> Transaction:
        """A transaction of ``parts``, each with the index of its operation and its partition;
        ``begin`` is kept over retries, so that it grows old and wins in the end."""
        transaction = Transaction(request, self._random.randbytes(16), begin)
        for index, partition, part in parts:
            transaction.add(index, partition, part)
        return transaction

    def resume(self, home: int, entry: DedupeEntry) -> Transaction:
        """An earlier attempt of the same request, not known to be decided."""
        resumed = Transaction(Request(home, []), entry.transaction, 0)
        resumed.resumed = True
        resumed.result = TransactionResult(entry.results, entry.timestamp)
        return resumed

    def undecided(self, evaluation: Evaluation, transaction: bytes) -> bool:
        """Whether the attempt that a dedupe entry names may still be aborted. An abort deletes the
        entry, and a record goes only after its transaction is resolved everywhere."""
        value = evaluation.plain(keys.record(evaluation.group, transaction))
        return value is not None and decode_record(value).state is RecordState.STAGING

    async def run(self, transactions: Sequence[Transaction], deadline: float) -> None:
        """One attempt at each."""
        fresh = [transaction for transaction in transactions if not transaction.resumed]
        resumed = [self._resume(one, deadline) for one in transactions if one.resumed]
        await asyncio.gather(*(self._look_at_size(one) for one in fresh if one.request.detach))
        fresh = [one for one in fresh if one.open]
        await asyncio.gather(self._run_fresh(fresh, deadline), *resumed)
        finishing = [one.finishing for one in fresh if one.finishing is not None]
        if finishing:
            remaining = max(0.0, deadline - asyncio.get_running_loop().time())
            await asyncio.wait(finishing, timeout=remaining / 2)

    async def _look_at_size(self, transaction: Transaction) -> None:
        try:
            vertex = transaction.request.detach
            await self._deletion.require_countable(transaction.home, vertex)
        except KotobaError as error:
            transaction.fail(error)

    async def _resume(self, transaction: Transaction, deadline: float) -> None:
        try:
            if not await self._recovery.decide(transaction.home, transaction.id, 0, deadline):
                transaction.again = True
        except KotobaError as error:
            transaction.fail(error)

    async def _run_fresh(self, transactions: list[Transaction], deadline: float) -> None:
        with self._recovery.coordinating([one.id for one in transactions]):
            await self._prepare(transactions, deadline)
            staged = self._stage([one for one in transactions if one.open], deadline)
            for transaction in transactions:
                if not transaction.open:
                    self._abandon(transaction)
            refused = [one for one in transactions if one.error and one.request.indexed]
            await asyncio.gather(*staged, *(self._look_for_earlier(one) for one in refused))
            unsure = [one for one in transactions if one.open and not _prepared(one)]
            await asyncio.gather(*(self._conclude(one, deadline) for one in unsure))
            for transaction in transactions:
                if transaction.open:
                    self._finish_later(transaction)

    # 1. Prepare.

    async def _prepare(self, transactions: Sequence[Transaction], deadline: float) -> None:
        groups = {group for transaction in transactions for group in transaction.remote}
        leaders = await find_leaders(self._router, groups, deadline)
        by_node: dict[NodeId, list[tuple[Transaction, PrepareItem]]] = {}
        for transaction in transactions:
            for group, share in transaction.remote.items():
                node = leaders[group]
                if node is None:
                    transaction.fail(NoLeader(f"no leader is known for partition {group - 1}"))
                    break
                item = PrepareItem(
                    transaction.id,
                    transaction.begin,
                    transaction.home,
                    group,
                    share.parts,
                    share.operations if transaction.request.indexed else [],
                )
                transaction.holding.add(group)
                by_node.setdefault(node, []).append((transaction, item))
        asked = [self._prepare_at(node, pairs, deadline) for node, pairs in by_node.items()]
        await asyncio.gather(*asked)

    async def _prepare_at(
        self, node: NodeId, pairs: list[tuple[Transaction, PrepareItem]], deadline: float
    ) -> None:
        items = [item for _, item in pairs]
        try:
            if node == self._router.node_id:
                answers, applied = await self._participant.prepare(items, deadline)
                done: asyncio.Future[Any] = asyncio.ensure_future(_all(applied))
            else:
                answers, done = await self._prepare_remotely(node, items, deadline)
        except KotobaError as failure:
            # Nothing is staged yet, so even an unknown outcome may be abandoned and tried again.
            for transaction, item in pairs:
                self._router.forget(item.group)
                transaction.fail(NoLeader(failure.detail))
            return
        done.add_done_callback(_observe)
        for (transaction, item), answer in zip(pairs, answers, strict=True):
            if answer.error is not None:
                error = error_from_fields(answer.error)
                if isinstance(error, NoLeader):
                    self._router.forget(item.group)
                transaction.refuse(item.group, error)
            transaction.answers.update(answer.answers)
            transaction.applied.append(done)

    async def _prepare_remotely(
        self, node: NodeId, items: list[PrepareItem], deadline: float
    ) -> tuple[list[Prepared], asyncio.Future[bytes]]:
        mesh = self._router.mesh
        remaining = max(0.01, deadline - asyncio.get_running_loop().time())
        notify, done = mesh.expect(node, timeout=remaining)
        done.add_done_callback(_observe)
        body = encode_message(PrepareRequest(items, notify, int(remaining * 1000)))
        try:
            answer = await mesh.request(node, "txn.prepare", body, timeout=remaining)
        except KotobaError:
            mesh.forget(notify)
            raise
        return _decode_answers(answer), done

    # 2. Stage.

    def _stage(self, transactions: Sequence[Transaction], deadline: float) -> list[Awaitable[None]]:
        by_home: dict[GroupId, list[Transaction]] = {}
        for transaction in transactions:
            by_home.setdefault(transaction.home, []).append(transaction)
        return [self._stage_home(home, ones, deadline) for home, ones in by_home.items()]

    def _stage_home(
        self, home: GroupId, transactions: list[Transaction], deadline: float
    ) -> Awaitable[None]:
        """Evaluate, stage and propose, in this turn; the awaitable says what became of it."""
        try:
            replica = self._router.leading(home)
            draft = replica.draft()
        except (NoLeader, Overloaded) as error:
            for transaction in transactions:
                transaction.fail(error)
            return _all([])
        staged: list[Transaction] = []
        failed: list[Transaction] = []
        for transaction in transactions:
            try:
                self._stage_one(transaction, replica, draft)
                staged.append(transaction)
            except LocksHeld:
                transaction.again = True
            except KotobaError as error:
                transaction.fail(error)
                failed.append(transaction)
        proposed = replica.propose(draft, deadline) if draft else None
        confirmed = confirm(replica) if failed else None
        return self._staged(staged, proposed, failed, confirmed)

    def _stage_one(self, transaction: Transaction, replica: Replica, draft: Draft) -> None:
        evaluation = replica.evaluation
        assert evaluation is not None
        key = keys.record(transaction.home, transaction.id)
        if evaluation.plain(key) is not None or transaction.begin <= read_horizon(evaluation):
            raise Conflict("this transaction was given up; try again")
        request = transaction.request
        dedupe = keys.dedupe(transaction.home, request.dedupe)
        if request.dedupe and evaluation.plain(dedupe) is not None:
            raise Conflict("this request was answered meanwhile")
        commit = self._clock.now()
        intent, answers = self._own_intent(transaction, evaluation, commit)
        transaction.answers.update(answers)
        transaction.commit = commit
        transaction.result = transaction.answer()
        draft.advance(commit)
        draft.prepare(intent)
        draft.put(key, transaction.record(RecordState.STAGING))
        if request.dedupe:
            results = transaction.result.results
            entry = DedupeEntry(request.fingerprint, results, commit, transaction.id)
            draft.put(dedupe, encode_dedupe(entry))
        elif request.batch:
            key = keys.dedupe(transaction.home, request.batch)
            draft.put_once(key, encode_batch(request.fingerprint, commit))

    def _own_intent(
        self, transaction: Transaction, evaluation: Evaluation, prepared: Timestamp
    ) -> tuple[Intent, list[tuple[int, Answer]]]:
        return make_intent(
            evaluation,
            transaction.own.parts,
            transaction=transaction.id,
            begin=transaction.begin,
            home=transaction.home,
            prepared=prepared,
            limits=self._config.limits,
            operations=transaction.own.operations if transaction.request.indexed else (),
        )

    async def _look_for_earlier(self, transaction: Transaction) -> None:
        """A participant refused one of several operations; the home may refuse an earlier one."""
        try:
            replica = self._router.leading(transaction.home)
            assert replica.evaluation is not None
            confirmed = confirm(replica)
            try:
                self._own_intent(transaction, replica.evaluation, self._clock.now())
            except LocksHeld:
                transaction.again = True
            except KotobaError as error:
                transaction.fail(error)
            await confirmed
        except NoLeader:
            transaction.again = True

    async def _staged(
        self,
        staged: list[Transaction],
        proposed: asyncio.Future[Timestamp] | None,
        failed: list[Transaction],
        confirmed: Awaitable[None] | None,
    ) -> None:
        if proposed is not None:
            try:
                await proposed
            except NoLeader as error:
                for transaction in staged:
                    transaction.fail(error)
                    self._abandon(transaction)
            except KotobaError as error:
                for transaction in staged:
                    transaction.error = error
        if confirmed is not None:
            try:
                await confirmed
            except KotobaError:
                for transaction in failed:
                    transaction.error, transaction.again = None, True
        applied = [future for one in staged if one.open for future in one.applied]
        if applied:
            await asyncio.wait(applied)  # each ends by its own deadline

    async def _conclude(self, transaction: Transaction, deadline: float) -> None:
        """Staged, but a participant's prepare is uncertain: decide as recovery would."""
        try:
            commit = await self._recovery.decide_now(
                transaction.home,
                transaction.id,
                transaction.begin,
                deadline,
                staged=transaction.commit,
            )
            if not commit:
                transaction.again = True
                self._abandon(transaction)
        except KotobaError:
            transaction.error = OutcomeUnknown(
                "not decided in time; retry with the same Idempotency-Key"
            )

    def _abandon(self, transaction: Transaction) -> None:
        """Never staged, and it will not be: take its intents away, where there may be any. One
        that is overlooked would only wait for the sweep."""
        items = [
            (group, transaction.id, transaction.begin, 0) for group in sorted(transaction.holding)
        ]
        if items:
            self._settlement.resolve_later(items)

    # 4. Finish.

    def _finish_later(self, transaction: Transaction) -> None:
        record = transaction.record(RecordState.COMMITTED)
        committed = (transaction.home, transaction.id, record)
        if transaction.request.detach:
            transaction.finishing = self._settlement.finish_alone(committed)
        else:
            self._settlement.finish_later(committed)


def _prepared(transaction: Transaction) -> bool:
    return all(
        future.done() and not future.cancelled() and future.exception() is None
        for future in transaction.applied
    )


def _observe(future: asyncio.Future[Any]) -> None:
    """An outcome that nobody asks for any more is no error."""
    if not future.cancelled():
        future.exception()


async def _all(awaitables: Sequence[Awaitable[object]]) -> None:
    await asyncio.gather(*awaitables)
