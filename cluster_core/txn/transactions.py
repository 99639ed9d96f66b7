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

Whatever is uncertain on the way is decided by :meth:`Transactions.decide`, as it is when the
coordinator is dead.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final

import msgspec

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
from cluster_core.txn.detach import EdgeDeletion
from cluster_core.txn.items import DedupeEntry, encode_batch, encode_dedupe, result_of
from cluster_core.txn.participant import LocksHeld, Participant, make_intent, read_horizon
from cluster_core.txn.records import (
    CheckRequest,
    DecideRequest,
    Decision,
    Prepared,
    PrepareItem,
    PrepareRequest,
    RecordState,
    ResolveRequest,
    TransactionRecord,
    decode_record,
    encode_record,
)
from cluster_core.types import Digest, GroupId, NodeId, Timestamp, group_of

__all__ = ["Request", "Transaction", "Transactions"]

log = logging.getLogger("kotoba.txn")

GATHER_S: Final = 0.001
"""The background waits this long for more to do in the same entries."""

RECOVER_MAX: Final = 200
"""Transactions of one group that a sweep recovers at once; the rest wait for the next sweep."""

FIND_LEADER_S: Final = 0.5
"""How long a transaction waits for a participant's leader before it is tried again as a whole."""

_decode_answers = message_decoder(list[Prepared])
_decode_decide = msgspec.msgpack.Decoder(DecideRequest).decode
_decode_decision = msgspec.msgpack.Decoder(Decision).decode

Decided = tuple[GroupId, bytes, Timestamp, Timestamp]
"""Group, transaction, begin, commit timestamp or 0: what a participant is told."""


class Request(msgspec.Struct, frozen=True, gc=False):
    """What a transaction is about. ``places`` has the index of each operation and the partition of
    its entity; with ``indexed`` an error says the index of the operation that failed."""

    home: int
    """The partition of the first operation, where the record is."""
    places: list[tuple[int, int]]
    dedupe: bytes = b""
    fingerprint: bytes = b""
    indexed: bool = False
    detach: Digest = b""
    """The vertex that is deleted, and whose edges follow in chunks."""
    batch: bytes = b""
    """The key of the dedupe entry that the creations of a batch share."""


class _Share:
    """The parts of one group, in the order of the operations whose indexes stand beside them."""

    __slots__ = ("operations", "parts")

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.operations: list[int] = []


class Transaction:
    """One attempt. In the end it has a result or an error, or is to be tried ``again``."""

    __slots__ = (
        "again",
        "answers",
        "applied",
        "begin",
        "commit",
        "error",
        "finishing",
        "home",
        "id",
        "own",
        "remote",
        "request",
        "result",
        "resumed",
    )

    def __init__(self, request: Request, transaction: bytes, begin: Timestamp) -> None:
        self.request = request
        self.id = transaction
        self.begin = begin
        self.home = group_of(request.home)
        self.own = _Share()
        self.remote: dict[GroupId, _Share] = {}
        self.answers: dict[int, Answer] = {}
        """By the index of the operation."""
        self.commit: Timestamp = 0
        self.applied: list[asyncio.Future[Any]] = []
        """Done when a participant's prepare is applied."""
        self.resumed = False
        self.again = False
        self.result: TransactionResult | None = None
        self.error: KotobaError | None = None
        self.finishing: asyncio.Task[None] | None = None
        """What the answer waits for although it is decided."""

    @property
    def open(self) -> bool:
        return self.error is None and not self.again

    def fail(self, error: KotobaError) -> None:
        """Lost against another transaction, or a leader that moved: again; else for good. Of
        several operations that fail, the first is the one to tell."""
        if isinstance(error, Conflict | NoLeader):
            self.again = True
        elif self.error is None or _index_of(error) < _index_of(self.error):
            self.error = error

    def answer(self) -> TransactionResult:
        """Raises Conflict when a participant was prepared before and its answers are gone."""
        results = []
        for index, partition in self.request.places:
            answer = self.answers.get(index)
            if answer is None:
                raise Conflict("an answer was lost; try again")
            results.append(result_of(answer, partition, self.commit))
        return TransactionResult(results, self.commit)

    def record(self, state: RecordState) -> bytes:
        participants = sorted(self.remote)
        return encode_record(
            TransactionRecord(
                state,
                self.begin,
                self.commit,
                participants,
                self.request.dedupe,
                self.request.detach,
            )
        )


class Transactions:
    """See the module."""

    def __init__(
        self,
        router: Router,
        participant: Participant,
        deletion: EdgeDeletion,
        clock: HybridClock,
        config: ClusterConfig,
        random: Random,
    ) -> None:
        self._router = router
        self._participant = participant
        self._deletion = deletion
        self._clock = clock
        self._config = config
        self._random = random
        self._live: dict[bytes, asyncio.Future[None]] = {}
        self._finishing: list[Transaction] = []
        self._tasks: set[asyncio.Task[None]] = set()
        router.mesh.handle("txn.decide", self._serve_decide)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def is_live(self, transaction: bytes) -> bool:
        """Whether its coordinator is at work here."""
        return transaction in self._live

    # Beginning.

    def begin(
        self, request: Request, parts: Iterable[tuple[int, int, Part]], begin: Timestamp
    ) -> Transaction:
        """A transaction of ``parts``, each with the index of its operation and its partition;
        ``begin`` is kept over retries, so that it grows old and wins in the end."""
        transaction = Transaction(request, self._random.randbytes(16), begin)
        for index, partition, part in parts:
            if partition == request.home:
                share = transaction.own
            else:
                share = transaction.remote.setdefault(group_of(partition), _Share())
            share.parts.append(part)
            share.operations.append(index)
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
            if not await self.decide(transaction.home, transaction.id, 0, deadline):
                transaction.again = True
        except KotobaError as error:
            transaction.fail(error)

    async def _run_fresh(self, transactions: list[Transaction], deadline: float) -> None:
        loop = asyncio.get_running_loop()
        for transaction in transactions:
            self._live[transaction.id] = loop.create_future()
        try:
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
        finally:
            for transaction in transactions:
                live = self._live.pop(transaction.id)
                if not live.done():
                    live.set_result(None)

    # 1. Prepare.

    async def _prepare(self, transactions: Sequence[Transaction], deadline: float) -> None:
        groups = {group for transaction in transactions for group in transaction.remote}
        leaders = await self._router.leaders(sorted(groups), self._soon(deadline))
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
                by_node.setdefault(node, []).append((transaction, item))
        asked = [self._prepare_at(node, pairs, deadline) for node, pairs in by_node.items()]
        await asyncio.gather(*asked)

    def _soon(self, deadline: float) -> float:
        return min(deadline, asyncio.get_running_loop().time() + FIND_LEADER_S)

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
                transaction.fail(error)
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
            commit = await self._decide_now(
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
        """Never staged, and it will not be: take its intents away."""
        items = [(group, transaction.id, transaction.begin, 0) for group in transaction.remote]
        self._spawn(self._resolve(items))

    # 4. Finish.

    def _finish_later(self, transaction: Transaction) -> None:
        if transaction.request.detach:
            record = transaction.record(RecordState.COMMITTED)
            finishing = self._finish([(transaction.home, transaction.id, record)])
            transaction.finishing = self._spawn(finishing)
            return
        self._finishing.append(transaction)
        if len(self._finishing) == 1:
            self._spawn(self._finish_gathered())

    async def _finish_gathered(self) -> None:
        await asyncio.sleep(GATHER_S)
        transactions, self._finishing = self._finishing, []
        await self._finish(
            [(one.home, one.id, one.record(RecordState.COMMITTED)) for one in transactions]
        )

    async def _finish(self, committed: list[tuple[GroupId, bytes, bytes]]) -> None:
        """Make records COMMITTED, resolve all intents, delete the records. Each step only after the
        one before is applied; what fails on the way is left to the sweep of the next leader."""
        settled = await self._change_records(committed, self._commit_record)
        settled = [one for one in settled if await self._delete_edges(one)]
        decided = [
            (group, transaction, record.begin, record.commit)
            for _, transaction, record in (
                (home, transaction, decode_record(value)) for home, transaction, value in settled
            )
            for group in record.participants
        ]
        if await self._resolve(decided):
            await self._change_records(settled, _delete_record)

    async def _delete_edges(self, committed: tuple[GroupId, bytes, bytes]) -> bool:
        """True when no edge is left that goes with the transaction."""
        home, transaction, value = committed
        record = decode_record(value)
        if not record.detach:
            return True
        return await self._deletion.delete_edges(home, transaction, record.detach, record.commit)

    async def _change_records(
        self,
        records: list[tuple[GroupId, bytes, bytes]],
        change: Callable[[Evaluation, Draft, bytes, bytes], None],
    ) -> list[tuple[GroupId, bytes, bytes]]:
        """Propose ``change`` for each record; returns those for which it is applied."""
        by_home: dict[GroupId, list[tuple[GroupId, bytes, bytes]]] = {}
        for record in records:
            by_home.setdefault(record[0], []).append(record)
        changed = await asyncio.gather(
            *(self._change_at_home(home, ones, change) for home, ones in by_home.items())
        )
        return [record for ones in changed for record in ones]

    async def _change_at_home(
        self,
        home: GroupId,
        records: list[tuple[GroupId, bytes, bytes]],
        change: Callable[[Evaluation, Draft, bytes, bytes], None],
    ) -> list[tuple[GroupId, bytes, bytes]]:
        try:
            replica = self._router.leading(home)
            assert replica.evaluation is not None
            draft = replica.draft()
            draft.advance(self._clock.now())
            for _, transaction, value in records:
                change(replica.evaluation, draft, transaction, value)
            if draft:
                await replica.propose(draft, self._background_deadline())
            else:
                # What is done already may be in flight only: it must be durable before the next
                # step, or a new leader could find the record staged and a participant resolved.
                await confirm(replica)
        except KotobaError as error:
            log.debug("left to the sweep: %s", error.detail)
            return []
        return records

    def _commit_record(
        self, evaluation: Evaluation, draft: Draft, transaction: bytes, value: bytes
    ) -> None:
        key = keys.record(evaluation.group, transaction)
        before = evaluation.plain(key)
        if before is None:
            return
        record = decode_record(before)
        commit = decode_record(value).commit
        assert record.state is not RecordState.ABORTED, "what is prepared everywhere is committed"
        assert record.commit == commit
        if record.state is RecordState.STAGING:
            draft.put(key, value)
        intent = evaluation.intent(transaction)
        if intent is not None and not intent.detach:
            draft.resolve(intent, commit)

    async def _resolve(self, decided: Sequence[Decided]) -> bool:
        """Tell the participants; True when all have applied it."""
        deadline = self._background_deadline()
        groups = {item[0] for item in decided}
        leaders = await self._router.leaders(sorted(groups), self._soon(deadline))
        by_node: dict[NodeId, list[Decided]] = {}
        for item in decided:
            node = leaders[item[0]]
            if node is not None:
                by_node.setdefault(node, []).append(item)
        outcomes = await asyncio.gather(
            *(self._resolve_at(node, items, deadline) for node, items in by_node.items()),
            return_exceptions=True,
        )
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, KotobaError):
                raise outcome
        complete = None not in leaders.values()
        return complete and not any(isinstance(outcome, KotobaError) for outcome in outcomes)

    async def _resolve_at(self, node: NodeId, items: list[Decided], deadline: float) -> None:
        if node == self._router.node_id:
            await self._participant.resolve(items, deadline)
            return
        body = encode_message(ResolveRequest(items))
        timeout = max(0.01, deadline - asyncio.get_running_loop().time())
        await self._router.mesh.request(node, "txn.resolve", body, timeout=timeout)

    # Deciding what a coordinator left.

    async def decide(
        self, home: GroupId, transaction: bytes, begin: Timestamp, deadline: float
    ) -> Timestamp:
        """Decide a transaction at its home's leader, wherever that is: its commit timestamp, or 0
        when it is aborted. A coordinator that is alive gets its time first."""
        body = msgspec.msgpack.encode(DecideRequest(home, transaction, begin))

        async def ask(node: NodeId) -> bytes:
            remaining = max(0.01, deadline - asyncio.get_running_loop().time())
            if node == self._router.node_id:
                commit = await self._decide_here(home, transaction, begin, deadline)
                return msgspec.msgpack.encode(Decision(commit))
            return await self._router.mesh.request(node, "txn.decide", body, timeout=remaining)

        return _decode_decision(await self._router.at_leader(home, deadline, ask)).commit

    async def _serve_decide(self, peer: NodeId, body: bytes) -> bytes:
        request = _decode_decide(body)
        commit = await self._decide_here(
            request.home, request.transaction, request.begin, self._background_deadline()
        )
        return msgspec.msgpack.encode(Decision(commit))

    async def _decide_here(
        self, home: GroupId, transaction: bytes, begin: Timestamp, deadline: float
    ) -> Timestamp:
        live = self._live.get(transaction)
        if live is not None:
            silence_s = self._config.replication.coordinator_silence_ms / 1000
            await asyncio.wait([live], timeout=silence_s)
        return await self._decide_now(home, transaction, begin, deadline)

    async def _decide_now(
        self,
        home: GroupId,
        transaction: bytes,
        begin: Timestamp,
        deadline: float,
        *,
        staged: Timestamp = 0,
    ) -> Timestamp:
        """``staged``: its commit timestamp, if it is known to have been staged here for good. Then
        a missing record was committed, resolved and deleted, for an aborted one would be there."""
        while True:
            replica = self._router.leading(home)
            evaluation = replica.evaluation
            assert evaluation is not None
            value = evaluation.plain(keys.record(home, transaction))
            if value is None and staged:
                await confirm(replica)
                return staged
            if value is None:
                return await self._abort_missing(replica, transaction, begin, deadline)
            record = decode_record(value)
            if record.state is not RecordState.STAGING:
                await confirm(replica)
                return record.commit
            prepared = await self._check_participants(transaction, record, deadline)
            await self._settle_staged(home, transaction, record, prepared, deadline)

    async def _abort_missing(
        self, replica: Replica, transaction: bytes, begin: Timestamp, deadline: float
    ) -> Timestamp:
        """No record: it was never staged, and from now on it cannot be."""
        evaluation = replica.evaluation
        assert evaluation is not None
        if begin <= read_horizon(evaluation):
            await confirm(replica)
            return 0
        draft = replica.draft()
        draft.advance(self._clock.now())
        aborted = TransactionRecord(RecordState.ABORTED, begin, 0, [])
        draft.put(keys.record(replica.group, transaction), encode_record(aborted))
        await replica.propose(draft, deadline)
        return 0

    async def _check_participants(
        self, transaction: bytes, record: TransactionRecord, deadline: float
    ) -> bool:
        """Whether all participants are prepared; those that are not never will be, once this is
        False."""
        answers = await asyncio.gather(
            *(
                self._check(CheckRequest(group, transaction, record.begin, record.commit), deadline)
                for group in record.participants
            )
        )
        return all(answers)

    async def _check(self, request: CheckRequest, deadline: float) -> bool:
        body = msgspec.msgpack.encode(request)

        async def ask(node: NodeId) -> bytes:
            if node == self._router.node_id:
                prepared = await self._participant.check(request, deadline)
                return msgspec.msgpack.encode(Decision(1 if prepared else 0))
            remaining = max(0.01, deadline - asyncio.get_running_loop().time())
            return await self._router.mesh.request(node, "txn.check", body, timeout=remaining)

        answer = await self._router.at_leader(request.group, deadline, ask)
        return _decode_decision(answer).commit == 1

    async def _settle_staged(
        self,
        home: GroupId,
        transaction: bytes,
        seen: TransactionRecord,
        prepared: bool,
        deadline: float,
    ) -> None:
        """Change a staged record to what the participants said, if it is still as it was seen."""
        replica = self._router.leading(home)
        evaluation = replica.evaluation
        assert evaluation is not None
        key = keys.record(home, transaction)
        value = evaluation.plain(key)
        if value is None or decode_record(value) != seen:
            return
        draft = replica.draft()
        draft.advance(self._clock.now())
        commit = seen.commit if prepared else 0
        state = RecordState.COMMITTED if prepared else RecordState.ABORTED
        settled = msgspec.structs.replace(seen, state=state, commit=commit)
        draft.put(key, encode_record(settled))
        intent = evaluation.intent(transaction)
        if intent is not None and not (prepared and intent.detach):
            draft.resolve(intent, commit)
        if not prepared and seen.dedupe:
            draft.delete(keys.dedupe(home, seen.dedupe))
        await replica.propose(draft, deadline)

    # What the sweep finds.

    async def recover_intents(self, replica: Replica, silent_since: float) -> None:
        """Decide and resolve the intents of a led group that have been here for too long."""
        silent = [
            intent
            for intent in replica.intents.seen_before(silent_since)
            if not self.is_live(intent.transaction)
        ]
        await asyncio.gather(
            *(self._recover_intent(replica, intent) for intent in silent[:RECOVER_MAX])
        )

    async def _recover_intent(self, replica: Replica, intent: Intent) -> None:
        deadline = self._background_deadline()
        transaction, begin = intent.transaction, intent.begin
        try:
            commit = await self.decide(intent.record_group, transaction, begin, deadline)
            if commit and intent.detach:
                # It is the record's home that knows when the edges are gone.
                replica.intents.heard_of(transaction, asyncio.get_running_loop().time())
                return
            item = (replica.group, transaction, begin, commit)
            await self._participant.resolve([item], deadline)
        except KotobaError as error:
            log.debug("intent in group %d, next time: %s", replica.group, error.detail)

    async def recover_records(self, replica: Replica, old: Timestamp) -> None:
        """Carry on with the records of a led group whose coordinator was silent since ``old``."""
        committed: list[tuple[GroupId, bytes, bytes]] = []
        staged: list[tuple[bytes, TransactionRecord]] = []
        for transaction, record in _records(replica):
            if record.begin > old or self.is_live(transaction):
                continue
            if record.state is RecordState.STAGING:
                staged.append((transaction, record))
            elif record.state is RecordState.COMMITTED:
                found = (replica.group, transaction, encode_record(record))
                if not record.detach:
                    committed.append(found)
                elif not self._deletion.is_running(transaction):
                    self._spawn(self._finish([found]))
        await asyncio.gather(
            self._finish(committed[:RECOVER_MAX]),
            *(self._recover_record(replica, *one) for one in staged[:RECOVER_MAX]),
        )

    async def _recover_record(
        self, replica: Replica, transaction: bytes, record: TransactionRecord
    ) -> None:
        try:
            await self.decide(replica.group, transaction, record.begin, self._background_deadline())
        except KotobaError as error:
            log.debug("record in group %d, next time: %s", replica.group, error.detail)

    def _background_deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._config.limits.timeout_ms / 1000

    def _spawn(self, work: Awaitable[object]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(_quietly(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _records(replica: Replica) -> list[tuple[bytes, TransactionRecord]]:
    """The applied transaction records of a group, by transaction."""
    return [
        (transaction, decode_record(value)) for transaction, value in replica.table(keys.RECORD)
    ]


def _delete_record(evaluation: Evaluation, draft: Draft, transaction: bytes, value: bytes) -> None:
    """With the home's own intent, where that had to wait for the others."""
    if evaluation.plain(keys.record(evaluation.group, transaction)) is None:
        return
    draft.delete(keys.record(evaluation.group, transaction))
    intent = evaluation.intent(transaction)
    if intent is not None:
        draft.resolve(intent, decode_record(value).commit)


def _index_of(error: KotobaError) -> int:
    """Of the operation that failed."""
    index: int = error.extra.get("index", 0)
    return index


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


async def _quietly(work: Awaitable[object]) -> None:
    """Background work: what fails because a leader moved is left to the sweep."""
    try:
        await work
    except KotobaError as error:
        log.debug("left to the sweep: %s", error.detail)
