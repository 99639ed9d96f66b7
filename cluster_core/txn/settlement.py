"""What follows a decision: intents become versions or nothing, and committed records go.

Each step is taken only when the one before is applied:

1. The record becomes COMMITTED, and what the home's own intent writes becomes versions. Where edges
   are to go before it, the rest of that intent stays.
2. The edges of a deleted vertex are deleted, where they are many (``detach.py``).
3. Every participant resolves its intent.
4. The record is deleted.

All of it is work in the background. What fails on the way is left to the sweep of the next leader,
which begins again where it finds the record.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Final

from cluster_core.config import ClusterConfig
from cluster_core.errors import KotobaError
from cluster_core.graph.values import encode_message, message_decoder
from cluster_core.hlc import HybridClock
from cluster_core.replication.evaluation import Draft, Evaluation
from cluster_core.replication.router import Router, confirm
from cluster_core.storage import keys
from cluster_core.txn.detach import EdgeDeletion
from cluster_core.txn.participant import Participant, find_leaders
from cluster_core.txn.records import (
    RecordState,
    ResolveRequest,
    TransactionRecord,
    decode_record,
)
from cluster_core.types import GroupId, NodeId, Timestamp

__all__ = ["Committed", "Settlement"]

log = logging.getLogger("kotoba.txn")

GATHER_S: Final = 0.001
"""The background waits this long for more to do in the same entries."""

_decode_groups = message_decoder(list[GroupId])

Committed = tuple[GroupId, bytes, bytes]
"""Home, transaction, its record as it is COMMITTED."""

Decided = tuple[GroupId, bytes, Timestamp, Timestamp]
"""Group, transaction, begin, commit timestamp or 0: what a participant is told."""

Change = Callable[[Evaluation, Draft, bytes, bytes], None]
"""Puts into a draft what is to become of the record of a transaction, given as it was seen."""


class Settlement:
    """See the module."""

    def __init__(
        self,
        router: Router,
        participant: Participant,
        deletion: EdgeDeletion,
        clock: HybridClock,
        config: ClusterConfig,
    ) -> None:
        self._router = router
        self._participant = participant
        self._deletion = deletion
        self._clock = clock
        self._config = config
        self._gathering: list[Committed] = []
        self._under_way: set[bytes] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Awaitable[object]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(_quietly(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def is_under_way(self, transaction: bytes) -> bool:
        """Whether this node is finishing it: who asks what became of it need not do anything."""
        return transaction in self._under_way

    def finish_later(self, committed: Committed) -> None:
        """:meth:`finish` it, with what else comes in the next moment."""
        self._under_way.add(committed[1])
        self._gathering.append(committed)
        if len(self._gathering) == 1:
            self._spawn(self._finish_gathered())

    def finish_alone(self, committed: Committed) -> asyncio.Task[None]:
        """:meth:`finish` it in the background: it may take long, as edges go with it."""
        self._under_way.add(committed[1])
        return self._spawn(self.finish([committed]))

    def resolve_later(self, decided: Sequence[Decided]) -> None:
        """:meth:`resolve` them in the background."""
        self._spawn(self.resolve(decided))

    async def _finish_gathered(self) -> None:
        await asyncio.sleep(GATHER_S)
        committed, self._gathering = self._gathering, []
        await self.finish(committed)

    async def finish(self, committed: list[Committed]) -> None:
        """Make records COMMITTED, resolve all intents, delete the records. Each step only after the
        one before is applied; what fails on the way is left to the sweep of the next leader."""
        transactions = [transaction for _, transaction, _ in committed]
        self._under_way.update(transactions)
        try:
            await self._finish(committed)
        finally:
            self._under_way.difference_update(transactions)

    async def _finish(self, committed: list[Committed]) -> None:
        settled = await self._change_records(committed, self._commit_record)
        settled = [one for one in settled if await self._delete_edges(one)]
        records = {transaction: decode_record(value) for _, transaction, value in settled}
        unresolved = await self.resolve(
            [
                (group, transaction, record.begin, record.commit)
                for transaction, record in records.items()
                for group in record.participants
            ]
        )
        resolved = [one for one in settled if unresolved.isdisjoint(records[one[1]].participants)]
        await self._change_records(resolved, _delete_record)

    async def _delete_edges(self, committed: Committed) -> bool:
        """True when no edge is left that goes with the transaction."""
        home, transaction, value = committed
        record = decode_record(value)
        if not record.detach:
            return True
        return await self._deletion.delete_edges(home, transaction, record.detach, record.commit)

    async def _change_records(
        self,
        records: list[Committed],
        change: Change,
    ) -> list[Committed]:
        """Propose ``change`` for each record; returns those for which it is applied."""
        by_home: dict[GroupId, list[Committed]] = {}
        for record in records:
            by_home.setdefault(record[0], []).append(record)
        changed = await asyncio.gather(
            *(self._change_at_home(home, ones, change) for home, ones in by_home.items())
        )
        return [record for ones in changed for record in ones]

    async def _change_at_home(
        self,
        home: GroupId,
        records: list[Committed],
        change: Change,
    ) -> list[Committed]:
        try:
            replica = self._router.leading(home)
            assert replica.evaluation is not None
            draft = replica.draft()
            draft.advance(self._clock.now())
            for _, transaction, value in records:
                change(replica.evaluation, draft, transaction, value)
            if draft:
                await replica.propose(draft, self._deadline())
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
        record = _record(evaluation, transaction)
        if record is None:
            return
        commit = decode_record(value).commit
        assert record.commit == commit
        if record.state is RecordState.STAGING:
            draft.put(keys.record(evaluation.group, transaction), value)
        intent = evaluation.intent(transaction)
        if intent is None:
            return
        if not intent.detach:
            draft.resolve(intent, commit)
        elif intent.writes:
            draft.resolve_writes(intent, commit)

    async def resolve(self, decided: Sequence[Decided]) -> set[GroupId]:
        """Tell the participants; returns those of which some may not have applied all of it."""
        deadline = self._deadline()
        groups = {item[0] for item in decided}
        leaders = await find_leaders(self._router, groups, deadline)
        by_node: dict[NodeId, list[Decided]] = {}
        for item in decided:
            node = leaders[item[0]]
            if node is not None:
                by_node.setdefault(node, []).append(item)
        outcomes = await asyncio.gather(
            *(self._resolve_at(node, items, deadline) for node, items in by_node.items()),
            return_exceptions=True,
        )
        unresolved = {group for group, node in leaders.items() if node is None}
        for items, outcome in zip(by_node.values(), outcomes, strict=True):
            if isinstance(outcome, KotobaError):
                log.debug("intents left to the sweep: %s", outcome.detail)
                unresolved.update(group for group, *_ in items)
            elif isinstance(outcome, BaseException):
                raise outcome
            else:
                unresolved.update(outcome)
        return unresolved

    async def _resolve_at(
        self, node: NodeId, items: list[Decided], deadline: float
    ) -> Collection[GroupId]:
        if node == self._router.node_id:
            return await self._participant.resolve(items, deadline)
        body = encode_message(ResolveRequest(items))
        timeout = max(0.01, deadline - asyncio.get_running_loop().time())
        answer = await self._router.mesh.request(node, "txn.resolve", body, timeout=timeout)
        return _decode_groups(answer)

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._config.limits.timeout_ms / 1000


def _record(evaluation: Evaluation, transaction: bytes) -> TransactionRecord | None:
    """The record of a committed transaction; None when somebody else has finished it.

    ABORTED is none of it: a participant asked what became of its intent, and by the time when the
    question was heard the intent was resolved and the record deleted.
    """
    value = evaluation.plain(keys.record(evaluation.group, transaction))
    record = None if value is None else decode_record(value)
    return None if record is None or record.state is RecordState.ABORTED else record


def _delete_record(evaluation: Evaluation, draft: Draft, transaction: bytes, value: bytes) -> None:
    """With the home's own intent, where that had to wait for the others."""
    if _record(evaluation, transaction) is None:
        return
    draft.delete(keys.record(evaluation.group, transaction))
    intent = evaluation.intent(transaction)
    if intent is not None:
        draft.resolve(intent, decode_record(value).commit)


async def _quietly(work: Awaitable[object]) -> None:
    """Background work: what fails because a leader moved is left to the sweep."""
    try:
        await work
    except KotobaError as error:
        log.debug("left to the sweep: %s", error.detail)
