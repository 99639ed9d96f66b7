"""Executes operations at the leader of their home partition.

What touches one partition is one entry of its log, together with all else that was evaluated there
in the same turn. What touches several is a one-shot transaction (``transactions.py``). Both pass
through here, one or ten thousand at a time, so that a batch shares its entries and frames.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any, Final

from cluster_core.config import ClusterConfig
from cluster_core.errors import (
    Conflict,
    InternalError,
    KotobaError,
    NoLeader,
    Overloaded,
    StorageFull,
)
from cluster_core.graph.decompose import decompose
from cluster_core.graph.evaluate import evaluate
from cluster_core.graph.operations import CreateNode, DeleteNode, OperationResult
from cluster_core.graph.parts import (
    DropVertex,
    Outcome,
    Part,
    PutVertex,
    encode_change,
    guards_of,
    locks_of,
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
    Item,
    answer_of,
    encode_batch,
    encode_dedupe,
    remembered,
    result_of,
)
from cluster_core.txn.participant import LocksHeld
from cluster_core.txn.transactions import Transactions
from cluster_core.types import Digest, GroupId, Timestamp, group_of

__all__ = ["Executor"]

JOBS_PER_TURN: Final = 1_000
"""Operations that are evaluated, or begun as transactions, between two pauses, at 20 to 100 us
each: the ten thousand that a batch may have, at one go, would hold up all heartbeats for most of a
second. Smaller batches keep what they share, entries and frames."""

PASS_ENTRIES: Final = 1_000
"""Edges that were deleted, passed over between two pauses: a millisecond or two. A vertex may have
had a million, whose entries stay as long as history is kept."""

PASS_VERTICES: Final = 50
"""Vertices looked at between two pauses, at 20 us each where few of their edges were deleted."""

_LATE: Final = "another transaction holds what this one needs; try again"


class _Job:
    """One item while it is executed: in the end it has a result or an error."""

    __slots__ = ("again", "begin", "blocked_by", "error", "item", "result", "transaction")

    def __init__(self, item: Item) -> None:
        self.item = item
        self.begin: Timestamp = 0
        """When its first transaction began: kept over retries."""
        self.result: OperationResult | None = None
        self.error: KotobaError | None = None
        self.transaction: Transaction | None = None
        self.again = False
        """Its transaction lost against another one."""
        self.blocked_by: asyncio.Future[None] | None = None
        """Done when the lock in its way is released."""

    def outcome(self) -> OperationResult | KotobaError:
        if self.error is not None:
            return self.error
        return self.result or InternalError("an operation ended without an outcome")


class Executor:
    """See the module."""

    def __init__(
        self,
        router: Router,
        clock: HybridClock,
        config: ClusterConfig,
        partition_count: int,
        transactions: Transactions,
        random: Random,
    ) -> None:
        self._router = router
        self._random = random
        self._clock = clock
        self._config = config
        self._partition_count = partition_count
        self._transactions = transactions

    async def execute(
        self, items: Sequence[Item], deadline: float, *, durable_here: bool = False
    ) -> list[OperationResult | KotobaError]:
        """Execute ``items``, each for itself, in order within a partition.

        All must have their home here; those that do not fail with NoLeader (certainly not
        executed). With ``durable_here`` a write of one partition is answered as soon as this
        node's disk has it. Never raises for an item; its error stands in its place.
        """
        await self._pass_dead_edges(items)
        jobs = [_Job(item) for item in items]
        late = await self._pass(jobs, deadline, durable_here)
        await asyncio.gather(*(self._try_until(job, deadline, durable_here) for job in late))
        return [job.outcome() for job in jobs]

    async def _try_until(self, job: _Job, deadline: float, durable_here: bool) -> None:
        """A job that met a lock, or lost against another transaction: alone, until decided."""
        backoff = Backoff(self._random, deadline)
        late = [job]
        while late:
            released, job.blocked_by = job.blocked_by, None
            if not await backoff.pause(released):
                job.error = Conflict(_LATE)
                return
            late = await self._pass(late, deadline, durable_here)

    async def execute_one(
        self, item: Item, deadline: float, *, durable_here: bool = False
    ) -> OperationResult:
        """As :meth:`execute` for one item, without what only many need; raises its error.

        This is the hot path of a single write: 25 µs less than through a list of one.
        """
        if type(item.operation) is DeleteNode:
            await self._pass_dead_edges([item])
        replica = self._router.leading(group_of(item.partition))
        replica.require_room()
        draft = replica.draft()
        job = _Job(item)
        try:
            wrote = self._evaluate(job, replica, draft)
        except LocksHeld:
            return _raised((await self.execute([item], deadline, durable_here=durable_here))[0])
        except KotobaError:
            await confirm(replica)
            raise
        if wrote:
            applied = replica.propose(draft, deadline)
            if durable_here:
                applied.add_done_callback(_observe)
                await replica.durable(draft.index)
            else:
                await applied
        elif job.transaction is None:
            await confirm(replica)
        else:
            await self._run_transactions([job], deadline)
            if job.again:
                await self._try_until(job, deadline, durable_here)
        return _raised(job.outcome())

    async def _pass_dead_edges(self, items: Sequence[Item]) -> None:
        """A deletion asks for the edges of its vertex in one turn; this comes before, and pauses,
        where very many were deleted."""
        looked_at = 0
        for item in items:
            if type(item.operation) is not DeleteNode:
                continue
            group, vertex = group_of(item.partition), item.operation.digest
            for prefix in (keys.out_prefix(group, vertex), keys.in_prefix(group, vertex)):
                while not self._pass_some(group, prefix):  # noqa: ASYNC110 (it is work, in turns)
                    await asyncio.sleep(0)
            looked_at += 1
            if looked_at % PASS_VERTICES == 0:
                await asyncio.sleep(0)

    def _pass_some(self, group: GroupId, prefix: bytes) -> bool:
        """True when there is nothing more to pass over, or somebody else leads."""
        replica = self._router.host.replicas.get(group)
        if replica is None or replica.evaluation is None:
            return True
        return replica.evaluation.pass_dead(prefix, PASS_ENTRIES)

    async def _pass(self, jobs: list[_Job], deadline: float, durable_here: bool) -> list[_Job]:
        """Try all ``jobs`` once; returns those that have to be tried again."""
        by_group: dict[GroupId, list[_Job]] = {}
        for job in jobs:
            by_group.setdefault(group_of(job.item.partition), []).append(job)
        waits: list[asyncio.Future[None]] = []
        unpaused = 0
        for group, members in by_group.items():
            for at in range(0, len(members), JOBS_PER_TURN):
                portion = members[at : at + JOBS_PER_TURN]
                if unpaused + len(portion) > JOBS_PER_TURN:
                    await asyncio.sleep(0)
                    unpaused = 0
                begun_here = self._begin_group(group, portion, deadline, durable_here)
                waits.append(asyncio.ensure_future(begun_here))
                unpaused += len(portion)
        blocked = [job for job in jobs if job.blocked_by is not None]
        # Those of one home side by side: they share entries of its log.
        begun = [one for ones in by_group.values() for one in ones if one.transaction is not None]
        await asyncio.gather(*waits, self._run_transactions(begun, deadline))
        return blocked + [job for job in begun if job.again]

    def _begin_group(
        self,
        group: GroupId,
        jobs: list[_Job],
        deadline: float,
        durable_here: bool,
    ) -> Awaitable[None]:
        """Evaluate and propose in this turn; the awaitable settles the jobs."""
        try:
            replica = self._router.leading(group)
            replica.require_room()
            draft = replica.draft()
        except (NoLeader, Overloaded, StorageFull) as error:
            for job in jobs:
                job.error = error
            return _nothing()
        written: list[_Job] = []
        confirming: list[_Job] = []
        for job in jobs:
            try:
                if self._evaluate(job, replica, draft):
                    written.append(job)
                elif job.transaction is None:
                    confirming.append(job)
            except LocksHeld as held:
                assert replica.evaluation is not None
                job.blocked_by = replica.evaluation.locks.released(held.digest)
            except KotobaError as error:
                job.error = error
                confirming.append(job)
        applied: Awaitable[object] | None = None
        if draft:
            proposed = applied = replica.propose(draft, deadline)
            if durable_here:
                proposed.add_done_callback(_observe)
                applied = replica.durable(draft.index)
        # Behind the proposal, for it may have been seen.
        confirmed = confirm(replica) if confirming else None
        return self._settle(written, applied, confirming, confirmed)

    async def _settle(
        self,
        written: list[_Job],
        applied: Awaitable[object] | None,
        confirming: list[_Job],
        confirmed: Awaitable[None] | None,
    ) -> None:
        if applied is not None:
            try:
                await applied
            except KotobaError as error:
                for job in written:
                    job.error = error
        if confirmed is not None:
            try:
                await confirmed
            except KotobaError as error:
                for job in confirming:
                    job.error = error

    def _evaluate(self, job: _Job, replica: Replica, draft: Draft) -> bool:
        """True when ``draft`` got something to write; else the job has an answer to confirm, or a
        transaction to run. Raises the operation's error, or LocksHeld."""
        item, evaluation = job.item, replica.evaluation
        assert evaluation is not None
        if item.dedupe:
            if self._repeated(job, evaluation):
                return False
            _require_memory(replica)
        if item.batch:
            value = evaluation.plain(keys.dedupe(evaluation.group, item.batch))
            if remembered(value, item.fingerprint) is None:
                _require_memory(replica)
        if item.block:
            return self._create(job, evaluation, draft)
        placed = decompose(
            item.operation,
            evaluation,
            item.nonce or None,
            self._partition_count,
            self._config.limits,
            check=item.check,
        )
        home = item.partition
        own = [part for partition, part in placed if partition == home]
        detach = _detached_in_chunks(own[0])
        if len(own) < len(placed) or detach:
            if detach:
                _require_unlocked(evaluation, own)
            job.begin = job.begin or self._clock.now()
            request = Request(
                home,
                [(0, home)],
                item.dedupe,
                item.fingerprint,
                detach=detach,
                batch=item.batch,
            )
            parts = [(0, partition, part) for partition, part in placed]
            job.transaction = self._transactions.begin(request, parts, job.begin)
            return False
        _require_unlocked(evaluation, own)
        outcomes = [evaluate(part, evaluation, self._config.limits) for part in own]
        return self._write(job, draft, outcomes)

    def _create(self, job: _Job, evaluation: Evaluation, draft: Draft) -> bool:
        """A vertex whose block is made already."""
        item = job.item
        assert isinstance(item.operation, CreateNode)
        labels = tuple(sorted(set(item.operation.labels)))
        part = PutVertex(item.digest, labels, item.block, item.check)
        _require_unlocked(evaluation, [part])
        return self._write(job, draft, [evaluate(part, evaluation, self._config.limits)])

    def _repeated(self, job: _Job, evaluation: Evaluation) -> bool:
        """Whether this request was answered before. Raises IdempotencyKeyReused."""
        item = job.item
        value = evaluation.plain(keys.dedupe(evaluation.group, item.dedupe))
        entry = remembered(value, item.fingerprint)
        if entry is None:
            return False
        if entry.transaction and self._transactions.undecided(evaluation, entry.transaction):
            job.transaction = self._transactions.resume(item.partition, entry)
            return True
        job.result = entry.results[0]
        return True

    def _write(self, job: _Job, draft: Draft, outcomes: list[Outcome]) -> bool:
        answer = answer_of(outcomes)
        if not any(outcome.writes for outcome in outcomes):
            assert answer.timestamp is not None
            job.result = result_of(answer, job.item.partition, answer.timestamp)
            return False
        timestamp = self._clock.now()
        draft.advance(timestamp)
        for outcome in outcomes:
            for user_key, value in outcome.writes:
                draft.write(user_key, value, timestamp)
            for key, value in outcome.pointers:
                draft.put(key, value)
            if outcome.change is not None:
                draft.change(outcome.change.entity, encode_change(outcome.change), timestamp)
        job.result = result_of(answer, job.item.partition, timestamp)
        self._remember(job, draft, timestamp)
        return True

    def _remember(self, job: _Job, draft: Draft, timestamp: Timestamp) -> None:
        item, result = job.item, job.result
        assert result is not None
        group = group_of(item.partition)
        if item.dedupe:
            entry = DedupeEntry(item.fingerprint, [result], result.timestamp)
            draft.put(keys.dedupe(group, item.dedupe), encode_dedupe(entry))
        elif item.batch:
            draft.put_once(
                keys.dedupe(group, item.batch), encode_batch(item.fingerprint, timestamp)
            )

    async def _run_transactions(self, jobs: list[_Job], deadline: float) -> None:
        """One attempt for each; ``again`` is set on those that lost."""
        begun = [job.transaction for job in jobs if job.transaction is not None]
        runs: list[asyncio.Future[None]] = []
        for at in range(0, len(begun), JOBS_PER_TURN):
            run = self._transactions.run(begun[at : at + JOBS_PER_TURN], deadline)
            if len(begun) <= JOBS_PER_TURN:
                await run
            else:
                runs.append(asyncio.ensure_future(run))
                await asyncio.sleep(0)
        await asyncio.gather(*runs)
        for job in jobs:
            transaction, job.transaction = job.transaction, None
            assert transaction is not None
            job.again = transaction.again
            job.result = transaction.result.results[0] if transaction.result else None
            job.error = transaction.error


def _raised(outcome: OperationResult | KotobaError) -> OperationResult:
    if isinstance(outcome, KotobaError):
        raise outcome
    return outcome


def _observe(future: asyncio.Future[Any]) -> None:
    """An outcome that nobody asks for any more is no error."""
    if not future.cancelled():
        future.exception()


async def _nothing() -> None:
    return None


def _require_memory(replica: Replica) -> None:
    if replica.dedupe_full:
        raise Overloaded(
            "too many Idempotency-Keys are remembered (dedupe_entries_max); try again later"
        )


def _detached_in_chunks(part: Part) -> Digest:
    return part.digest if isinstance(part, DropVertex) and part.chunked else b""


def _require_unlocked(evaluation: Evaluation, parts: list[Part]) -> None:
    """Writes of a single partition obey the locks of transactions as well. They hold nothing, so
    they may always wait."""
    if not evaluation.locks:
        return
    locks = [lock for part in parts for lock in locks_of(part)] + guards_of(parts, evaluation)
    conflict = evaluation.locks.conflict(locks, b"")
    if conflict is not None:
        raise LocksHeld(conflict[0])
