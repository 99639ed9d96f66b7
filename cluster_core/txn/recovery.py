"""Deciding what a coordinator left, and finding what is left to decide.

A transaction is decided by its home's leader, from its record (``records.py`` has the states):

- No record: it was never staged. It is created as ABORTED, so that it never will be.
- STAGING: it is committed if every participant is prepared at or below its commit timestamp. One
  that is not refuses first, durably, and only then is the record made ABORTED.
- COMMITTED, or ABORTED: that is the decision.

Every step is an entry of some group's log, conditional on what is there when it is proposed: two
who decide at the same time, the coordinator may be one of them, come to the same end.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from functools import partial
from typing import Final, TypeVar

import msgspec

from cluster_core.config import ClusterConfig
from cluster_core.errors import KotobaError
from cluster_core.hlc import HybridClock
from cluster_core.replication.intents import Intent
from cluster_core.replication.replica import Replica
from cluster_core.replication.router import Router, confirm
from cluster_core.storage import keys
from cluster_core.txn.participant import Participant, find_leaders, read_horizon
from cluster_core.txn.records import (
    CheckRequest,
    DecideRequest,
    Decision,
    RecordState,
    TransactionRecord,
    decode_record,
    encode_record,
)
from cluster_core.txn.settlement import Committed, Settlement
from cluster_core.types import GroupId, NodeId, Timestamp

__all__ = ["PAUSE_AFTER", "Recovery", "walk", "walk_records"]

log = logging.getLogger("kotoba.txn")

RECOVER_MAX: Final = 200
"""Transactions of one group that a sweep recovers; the rest wait for the next sweep."""

FINISH_MAX: Final = 1_000
"""Committed transactions that a sweep finishes at a time: all of a group's share a few entries. It
goes on until none is left, since an overload may have left more than a sweep's share each time."""

RECOVER_AT_ONCE: Final = 16
"""Recoveries of one group under way at a time: they share entries and syncs."""

RECOVERIES_MAX: Final = 64
"""The same of all groups of a node. After an overload there may be thousands to do, and begun in
one turn they would hold up all heartbeats, and so be the next overload."""

PAUSE_AFTER: Final = 256
"""Pairs that a look at a table reads between two pauses: a millisecond or two. A partition may
remember a hundred thousand requests; read at one go they would hold up all heartbeats for half a
second."""

REST: Final = 8.0
"""How much longer than the reading before it such a pause is, so that a look at a huge table leaves
most of a core to others, however often it comes. What is done with the pairs does not count: it may
wait for a peer."""

_Found = TypeVar("_Found")

_decode_decide = msgspec.msgpack.Decoder(DecideRequest).decode
_decode_transactions = msgspec.msgpack.Decoder(list[bytes]).decode
_decode_decision = msgspec.msgpack.Decoder(Decision).decode


class Recovery:
    """See the module."""

    def __init__(
        self,
        router: Router,
        participant: Participant,
        settlement: Settlement,
        clock: HybridClock,
        config: ClusterConfig,
    ) -> None:
        self._router = router
        self._participant = participant
        self._settlement = settlement
        self._clock = clock
        self._config = config
        self._coordinated: dict[bytes, asyncio.Future[None]] = {}
        """Transactions whose coordinator is at work here, until it has done with them."""
        self._turns = asyncio.Semaphore(RECOVERIES_MAX)
        router.mesh.handle("txn.decide", self._serve_decide)
        router.mesh.handle("txn.in_hand", self._serve_in_hand)

    @contextmanager
    def coordinating(self, transactions: Sequence[bytes]) -> Iterator[None]:
        """Their coordinator is at work here meanwhile, and gets its time before others decide."""
        loop = asyncio.get_running_loop()
        for transaction in transactions:
            self._coordinated[transaction] = loop.create_future()
        try:
            yield
        finally:
            for transaction in transactions:
                done = self._coordinated.pop(transaction)
                if not done.done():
                    done.set_result(None)

    # Deciding.

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
            request.home, request.transaction, request.begin, self._deadline()
        )
        return msgspec.msgpack.encode(Decision(commit))

    async def _decide_here(
        self, home: GroupId, transaction: bytes, begin: Timestamp, deadline: float
    ) -> Timestamp:
        coordinator = self._coordinated.get(transaction)
        if coordinator is not None:
            silence_s = self._config.replication.coordinator_silence_ms / 1000
            await asyncio.wait([coordinator], timeout=silence_s)
        return await self.decide_now(home, transaction, begin, deadline)

    async def decide_now(
        self,
        home: GroupId,
        transaction: bytes,
        begin: Timestamp,
        deadline: float,
        *,
        staged: Timestamp = 0,
    ) -> Timestamp:
        """Decide a transaction, whose home is led here, whether its coordinator is alive or not.

        ``staged``: its commit timestamp, if it is known to have been staged here for good. Then
        a missing record was committed, resolved and deleted, for an aborted one would be there.
        """
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
        if intent is not None:
            if prepared and intent.detach:
                draft.resolve_writes(intent, commit)
            else:
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
            if not self._is_in_hand(intent.transaction)
        ]
        if silent:
            orphans = await self._orphans(replica, silent)
            await self._in_turn(partial(self._recover_intent, replica), orphans)

    def _is_in_hand(self, transaction: bytes) -> bool:
        """This node coordinates it, or finishes it."""
        return transaction in self._coordinated or self._settlement.is_under_way(transaction)

    async def _orphans(self, replica: Replica, silent: Sequence[Intent]) -> list[Intent]:
        """Those that nobody has in hand where their home is led, as far as there is somebody to
        ask. The silence of the others counts from now: where there is much to do, most intents are
        a second old, and to recover what is well is to do it twice, one by one."""
        homes = {intent.record_group for intent in silent}
        leaders = await find_leaders(self._router, homes, self._deadline())
        by_node: dict[NodeId, list[Intent]] = {}
        for intent in silent:
            node = leaders[intent.record_group]
            if node is not None:
                by_node.setdefault(node, []).append(intent)
        found = await asyncio.gather(
            *(self._orphans_at(*item, replica) for item in by_node.items())
        )
        return [intent for intents in found for intent in intents]

    async def _orphans_at(
        self, node: NodeId, intents: list[Intent], replica: Replica
    ) -> list[Intent]:
        if node == self._router.node_id:
            return intents
        body = msgspec.msgpack.encode([intent.transaction for intent in intents])
        timeout = self._config.replication.coordinator_silence_ms / 1000
        try:
            answer = await self._router.mesh.request(node, "txn.in_hand", body, timeout=timeout)
        except KotobaError as error:
            log.debug("intents in group %d, next time: %s", replica.group, error.detail)
            return []
        in_hand = frozenset(_decode_transactions(answer))
        now = asyncio.get_running_loop().time()
        for transaction in in_hand:
            replica.intents.heard_of(transaction, now)
        return [intent for intent in intents if intent.transaction not in in_hand]

    async def _serve_in_hand(self, peer: NodeId, body: bytes) -> bytes:
        asked = _decode_transactions(body)
        return msgspec.msgpack.encode([one for one in asked if self._is_in_hand(one)])

    async def _led(self, groups: Sequence[GroupId]) -> set[GroupId]:
        """Those of ``groups`` that have a leader now or soon: what needs another one would only
        stand in the way until its deadline."""
        leaders = await find_leaders(self._router, groups, self._deadline())
        return {group for group, node in leaders.items() if node is not None}

    async def _in_turn(
        self, recover: Callable[[_Found], Awaitable[None]], found: Sequence[_Found]
    ) -> None:
        """``recover`` the first of what was found, a bounded number at a time."""
        waiting = deque(found[:RECOVER_MAX])

        async def work() -> None:
            while waiting:
                async with self._turns:
                    if waiting:
                        await recover(waiting.popleft())

        await asyncio.gather(*(work() for _ in range(min(RECOVER_AT_ONCE, len(waiting)))))

    async def _recover_intent(self, replica: Replica, intent: Intent) -> None:
        deadline = self._deadline()
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
        committed: list[Committed] = []
        staged: list[tuple[bytes, TransactionRecord]] = []
        prefix = len(keys.table_prefix(replica.group, keys.RECORD))
        async with aclosing(walk_records(replica)) as records:
            async for key, value in records:
                transaction, record = key[prefix:], decode_record(value)
                if record.begin > old or self._is_in_hand(transaction):
                    continue
                if record.state is RecordState.STAGING:
                    if len(staged) < RECOVER_MAX:
                        staged.append((transaction, record))
                elif record.state is RecordState.COMMITTED:
                    found = (replica.group, transaction, value)
                    if record.detach:
                        self._settlement.finish_alone(found)
                    else:
                        committed.append(found)
                if len(committed) == FINISH_MAX:
                    await self._settlement.finish(committed)
                    committed = []
        await asyncio.gather(
            self._settlement.finish(committed), self._recover_staged(replica, staged)
        )

    async def _recover_staged(
        self, replica: Replica, staged: Sequence[tuple[bytes, TransactionRecord]]
    ) -> None:
        if not staged:
            return
        led = await self._led(sorted({group for _, one in staged for group in one.participants}))
        ready = [one for one in staged if led.issuperset(one[1].participants)]
        await self._in_turn(partial(self._recover_record, replica), ready)

    async def _recover_record(
        self, replica: Replica, found: tuple[bytes, TransactionRecord]
    ) -> None:
        transaction, record = found
        try:
            await self.decide(replica.group, transaction, record.begin, self._deadline())
        except KotobaError as error:
            log.debug("record in group %d, next time: %s", replica.group, error.detail)

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._config.limits.timeout_ms / 1000


async def walk_records(replica: Replica) -> AsyncGenerator[tuple[bytes, bytes], None]:
    """The applied transaction records, with pauses; those that go meanwhile are not among them."""
    for number, key in enumerate(list(replica.records), 1):
        value = replica.records.get(key)
        if value is not None:
            yield key, value
        if number % PAUSE_AFTER == 0:
            await asyncio.sleep(0)


async def walk(replica: Replica, table: bytes) -> AsyncGenerator[tuple[bytes, bytes], None]:
    """The applied pairs of a table, as of now, with pauses."""
    clock = asyncio.get_running_loop().time
    scan = replica.scan(table)
    unpaused, reading_s = 0, 0.0
    while True:
        began = clock()
        pairs = scan.fetch()
        reading_s += clock() - began
        if not pairs:
            return
        for pair in pairs:
            yield pair
        unpaused += len(pairs)
        if unpaused >= PAUSE_AFTER:
            await asyncio.sleep(REST * reading_s)
            unpaused, reading_s = 0, 0.0
