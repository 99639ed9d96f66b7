"""The way of a write: checked, placed, and executed at the leader of its home partition.

This is the entry node's side. It finds the leader, or says who it is; it tries again after an
answer that means "certainly not executed", and after a lost connection only where a retry cannot
execute twice: under an Idempotency-Key, or for a creation, whose nonce makes the same entity.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from cluster_core.config import ClusterConfig
from cluster_core.errors import (
    InternalError,
    KotobaError,
    NoLeader,
    NotFound,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    RetryError,
    Unavailable,
    error_from_fields,
)
from cluster_core.graph.cid import cid_text
from cluster_core.graph.operations import (
    BatchOperation,
    CreateEdge,
    CreateNode,
    Creation,
    DeleteEdge,
    Operation,
    OperationResult,
    TransactionResult,
    UpdateEdge,
    batch_nonce,
    check_batch,
    check_operation,
    check_size,
    decode_transaction_result,
    entity_nonce,
    fingerprint,
    home_partition,
    place_creation,
    resolve_refs,
)
from cluster_core.graph.several import fingerprint_several
from cluster_core.graph.values import encode_message, message_decoder
from cluster_core.node.compose import Composer
from cluster_core.node.creations import StickyPlacement
from cluster_core.ports import Random
from cluster_core.replication.router import RETRY_DELAY_S, Router
from cluster_core.txn.atomic import AtomicExecutor
from cluster_core.txn.executor import Executor
from cluster_core.txn.items import Item, TransactionItem
from cluster_core.types import Digest, GroupId, NodeId, group_of

__all__ = ["Writes"]

OPERATIONS_PER_TURN: Final = 500
"""Operations of a batch that are checked and placed between two pauses, at some 10 us each."""


class _ExecuteRequest(msgspec.Struct, array_like=True, frozen=True):
    items: list[Item]
    timeout_ms: int
    durable_here: bool


class _TransactRequest(msgspec.Struct, array_like=True, frozen=True):
    item: TransactionItem
    timeout_ms: int


class _Origin(NamedTuple):
    """Of the operations of a batch: who sent it, under which key. With a key, ``batch`` names it
    and ``fingerprint`` tells its content."""

    principal: str
    key: str | None = None
    batch: bytes = b""
    fingerprint: bytes = b""


class _Executed(msgspec.Struct, array_like=True, frozen=True):
    """Of one item: its result, or the fields of its error."""

    result: OperationResult | None
    error: dict[str, Any] | None = None


_decode_request = message_decoder(_ExecuteRequest)
_decode_transact = message_decoder(_TransactRequest)
_decode_answer = message_decoder(list[_Executed])

Outcome = OperationResult | KotobaError
LocateEdges = Callable[[list[Digest], float], Any]


class Writes:
    """See the module. ``locate(edges, deadline)`` finds the source of each edge that exists."""

    def __init__(
        self,
        router: Router,
        executor: Executor,
        atomic: AtomicExecutor,
        config: ClusterConfig,
        partition_count: int,
        random: Random,
        locate: LocateEdges,
        address_of: Callable[[NodeId], str],
    ) -> None:
        self.processed = 0
        self.failed = 0
        self._router = router
        self._executor = executor
        self._atomic = atomic
        self._config = config
        self._limits = config.limits
        self._partition_count = partition_count
        self._random = random
        self._locate = locate
        self._address_of = address_of
        self._placement = StickyPlacement(router, partition_count, random)
        self._composer = Composer(self._placement, config.limits, partition_count, random, locate)
        self._inflight = 0
        router.mesh.handle("execute", self._serve_execute)
        router.mesh.handle("transact", self._serve_transact)

    async def operation(
        self,
        operation: Operation,
        *,
        eventual: bool,
        idempotency_key: str | None,
        principal: str,
        nonce: bytes | None,
        forward: bool,
        deadline: float,
    ) -> OperationResult:
        """One operation. Without ``forward``, raises NotLeader where another node leads."""
        check_operation(operation, self._limits)
        self._enter(1)
        try:
            item = None
            if nonce is None and idempotency_key is None and isinstance(operation, CreateNode):
                item = self._created_here(operation)
            if item is None:
                item = self._item(operation, idempotency_key, principal, 0, nonce)
            if item is None:
                item = await self._located(operation, idempotency_key, principal, deadline)
            elif not forward:
                await self._require_leader_here(item, deadline)
            result = await self._execute_one(item, eventual, deadline)
        except NotLeader:
            raise  # a redirect is no failure
        except KotobaError:
            self.failed += 1
            raise
        finally:
            self._inflight -= 1
        self.processed += 1
        return result

    async def _execute_one(self, item: Item, eventual: bool, deadline: float) -> OperationResult:
        """The first try of a single item goes the short way where this node leads."""
        unsure = False
        replica = self._router.host.replicas.get(group_of(item.partition))
        if replica is not None and replica.evaluation is not None:
            try:
                return await self._executor.execute_one(item, deadline, durable_here=eventual)
            except (NoLeader, OutcomeUnknown) as error:
                late = asyncio.get_running_loop().time() + RETRY_DELAY_S >= deadline
                if late or not _is_retriable(item, error):
                    raise
                item = msgspec.structs.replace(item, check=bool(item.nonce))
                unsure = isinstance(error, OutcomeUnknown)
        outcome = (await self._execute([item], eventual, deadline, unsure={0} if unsure else ()))[0]
        if isinstance(outcome, KotobaError):
            raise outcome
        return outcome

    async def batch(
        self,
        operations: Sequence[BatchOperation],
        *,
        eventual: bool,
        idempotency_key: str | None,
        principal: str,
        deadline: float,
    ) -> list[Outcome]:
        """Each operation for itself, results in order. Those that name refs wait for what they
        name."""
        check_batch(operations, self._limits)
        self._enter(len(operations))
        try:
            origin = _Origin(principal)
            if idempotency_key is not None:
                batch = batch_nonce(principal, idempotency_key)
                print_ = fingerprint_several(operations)
                origin = _Origin(principal, idempotency_key, batch, print_)
            outcomes: list[Outcome | None] = [None] * len(operations)
            known: dict[str, Digest | None] = {}
            todo = list(range(len(operations)))
            while todo:
                wave = [i for i in todo if all(n in known for n in operations[i].refs.values())]
                assert wave, "a ref names an earlier operation"
                await self._wave(
                    wave,
                    operations,
                    known,
                    outcomes,
                    eventual,
                    origin,
                    deadline,
                )
                done = set(wave)
                todo = [position for position in todo if position not in done]
        finally:
            self._inflight -= len(operations)
        finished = [
            one or InternalError("an operation ended without an outcome") for one in outcomes
        ]
        for outcome in finished:
            self._count(outcome)
        return finished

    async def transaction(
        self,
        operations: Sequence[BatchOperation],
        *,
        idempotency_key: str | None,
        principal: str,
        deadline: float,
    ) -> TransactionResult:
        """All of ``operations`` or none, at one timestamp. Raises the error of the first that
        failed, with its ``index``."""
        self._enter(len(operations))
        try:
            item, workers = await self._composer.compose(
                operations, idempotency_key, principal, deadline
            )
            result = await self._transact(item, deadline)
        except KotobaError:
            self.failed += 1
            raise
        finally:
            self._inflight -= len(operations)
        self.processed += len(operations)
        return self._composer.unfolded(operations, item, workers, result)

    async def _transact(self, item: TransactionItem, deadline: float) -> TransactionResult:
        """At the leader of its home, again where that cannot execute it twice."""
        loop = asyncio.get_running_loop()
        group, unsure = group_of(item.partition), False
        while True:
            try:
                node = await self._router.find_leader(group, deadline)
                return await self._transact_at(node, item, deadline)
            except (NoLeader, OutcomeUnknown) as error:
                unsure = unsure or isinstance(error, OutcomeUnknown)
                self._router.forget(group)
                if unsure and not item.dedupe:
                    raise
                if loop.time() + RETRY_DELAY_S >= deadline:
                    raise (_unknown() if unsure else error) from error
            except RetryError as error:
                raise (_unknown() if unsure else error) from error
            await asyncio.sleep(RETRY_DELAY_S)

    async def _transact_at(
        self, node: NodeId, item: TransactionItem, deadline: float
    ) -> TransactionResult:
        if node == self._router.node_id:
            return await self._atomic.execute(item, deadline)
        remaining = max(0.001, deadline - asyncio.get_running_loop().time())
        body = encode_message(_TransactRequest(item, int(remaining * 1000)))
        answer = await self._router.mesh.request(node, "transact", body, timeout=remaining)
        return decode_transaction_result(answer)

    async def _serve_transact(self, peer: NodeId, body: bytes) -> bytes:
        request = _decode_transact(body)
        deadline = asyncio.get_running_loop().time() + request.timeout_ms / 1000
        return encode_message(await self._atomic.execute(request.item, deadline))

    # Steps of both.

    def _enter(self, count: int) -> None:
        bound = max(self._limits.inflight_requests_max, count)
        if self._inflight + count > bound and self._inflight:
            name, limit = "inflight_requests_max", self._limits.inflight_requests_max
            detail = f"{limit} writes are in flight at this node ({name})"
            raise Overloaded(detail, limit=limit, name=name)
        self._inflight += count

    def _count(self, outcome: Outcome) -> None:
        if isinstance(outcome, KotobaError):
            self.failed += 1
        else:
            self.processed += 1

    async def _wave(
        self,
        wave: list[int],
        operations: Sequence[BatchOperation],
        known: dict[str, Digest | None],
        outcomes: list[Outcome | None],
        eventual: bool,
        origin: _Origin,
        deadline: float,
    ) -> None:
        items: list[tuple[int, Item]] = []
        lost: list[tuple[int, Operation]] = []
        for count, position in enumerate(wave):
            if count % OPERATIONS_PER_TURN == OPERATIONS_PER_TURN - 1:
                await asyncio.sleep(0)
            one = operations[position]
            try:
                operation = resolve_refs(one, known)
                check_operation(operation, self._limits)
                item = self._batch_item(operation, origin, position)
            except KotobaError as error:
                outcomes[position] = error
                continue
            if item is None:
                lost.append((position, operation))
            else:
                items.append((position, item))
        if lost:
            key, principal = origin.key, origin.principal
            items += await self._locate_all(lost, outcomes, key, principal, deadline)
        results = await self._execute([item for _, item in items], eventual, deadline)
        for (position, _), result in zip(items, results, strict=True):
            outcomes[position] = result
        for position in wave:
            ref, outcome = operations[position].ref, outcomes[position]
            if ref is not None:
                known[ref] = outcome.digest if isinstance(outcome, OperationResult) else None

    def _created_here(self, operation: CreateNode) -> Item | None:
        made = self._placement.place(operation)
        return None if made is None else self._created(operation, made)

    def _created(self, operation: CreateNode, made: Creation) -> Item:
        check_size(made.block, self._limits)
        return Item(made.partition, operation, made.nonce, digest=made.digest, block=made.block)

    def _batch_item(self, operation: Operation, origin: _Origin, index: int) -> Item | None:
        principal, key, batch, fingerprint = origin
        if key is None and isinstance(operation, CreateNode):
            made = self._placement.place_in_batch(operation)
            if made is not None:
                return self._created(operation, made)
        if key is None or not isinstance(operation, CreateNode | CreateEdge):
            return self._item(operation, key, principal, index, None)
        made = place_creation(operation, principal, key, index, self._partition_count)
        item = Item(
            made.partition, operation, made.nonce, True, fingerprint=fingerprint, batch=batch
        )
        if isinstance(operation, CreateEdge):
            return item
        check_size(made.block, self._limits)
        return msgspec.structs.replace(item, digest=made.digest, block=made.block)

    def _item(
        self,
        operation: Operation,
        key: str | None,
        principal: str,
        index: int,
        nonce: bytes | None,
    ) -> Item | None:
        """The operation with its nonce and its place; None when only a look-up can tell where an
        edge lives."""
        dedupe, print_ = b"", b""
        if key is not None:
            dedupe = entity_nonce(principal, key, index, 0)
            print_ = fingerprint(operation)
        check = key is not None or nonce is not None
        if isinstance(operation, CreateEdge):
            # When the connection to its leader breaks it is tried again, and the first try, which
            # may wait for a lock there, must not come after what has followed the second one.
            check = True
        if isinstance(operation, CreateNode | CreateEdge):
            if key is not None:
                placed = place_creation(operation, principal, key, index, self._partition_count)
                return Item(placed.partition, operation, placed.nonce, True, dedupe, print_)
            nonce = nonce or self._random.randbytes(16)
        partition = home_partition(operation, nonce, self._partition_count)
        if partition is None:
            return None
        return Item(partition, operation, nonce or b"", check, dedupe, print_)

    async def _located(
        self, operation: Operation, key: str | None, principal: str, deadline: float
    ) -> Item:
        outcomes: list[Outcome | None] = [None]
        found = await self._locate_all([(0, operation)], outcomes, key, principal, deadline)
        if isinstance(outcomes[0], KotobaError):
            raise outcomes[0]
        return found[0][1]

    async def _locate_all(
        self,
        lost: list[tuple[int, Operation]],
        outcomes: list[Outcome | None],
        key: str | None,
        principal: str,
        deadline: float,
    ) -> list[tuple[int, Item]]:
        """Ask all partitions for the edges among ``lost``; what is nowhere is not found. Where that
        cannot be asked, these alone fail: others of their batch may have been executed."""
        digests = [_edge_of(operation) for _, operation in lost]
        try:
            sources: dict[Digest, Digest] = await self._locate(digests, deadline)
        except KotobaError as error:
            for position, _ in lost:
                outcomes[position] = error
            return []
        items = []
        for (position, operation), digest in zip(lost, digests, strict=True):
            source = sources.get(digest)
            if source is None:
                cid = cid_text(digest)
                outcomes[position] = NotFound(f"there is no edge {cid}", cid=cid)
                continue
            placed = msgspec.structs.replace(operation, source=source)
            item = self._item(placed, key, principal, position, None)
            assert item is not None
            items.append((position, item))
        return items

    async def _require_leader_here(self, item: Item, deadline: float) -> None:
        group = group_of(item.partition)
        node = await self._router.find_leader(group, deadline)
        if node != self._router.node_id:
            leader = {"node_id": node, "address": self._address_of(node)}
            extra: dict[str, Any] = {"leader": leader}
            if item.nonce:
                extra["nonce"] = item.nonce.hex()
            raise NotLeader(f"{node} leads partition {item.partition}", **extra)

    # Executing at the leaders.

    async def _execute(
        self,
        items: Sequence[Item],
        eventual: bool,
        deadline: float,
        *,
        unsure: Collection[int] = (),
    ) -> list[Outcome]:
        """``unsure``: positions of which an earlier try may have been executed. A later "certainly
        not executed" speaks of its own try only, so for them it means *unknown*."""
        uncertain = set(unsure)
        outcomes_by_position: dict[int, Outcome] = {}
        todo = list(range(len(items)))
        sent = list(items)
        loop = asyncio.get_running_loop()
        while todo:
            await self._execute_round(todo, sent, outcomes_by_position, eventual, deadline)
            todo = [
                position
                for position in todo
                if _is_retriable(sent[position], outcomes_by_position[position])
            ]
            if not todo or loop.time() + RETRY_DELAY_S >= deadline:
                break
            for position in todo:
                if isinstance(outcomes_by_position[position], OutcomeUnknown):
                    uncertain.add(position)
                self._router.forget(group_of(sent[position].partition))
                if sent[position].nonce:
                    sent[position] = msgspec.structs.replace(sent[position], check=True)
            await asyncio.sleep(RETRY_DELAY_S)
        for position in uncertain:
            if isinstance(outcomes_by_position[position], RetryError):
                outcomes_by_position[position] = _unknown()
        return [outcomes_by_position[position] for position in range(len(items))]

    async def _execute_round(
        self,
        todo: list[int],
        items: Sequence[Item],
        outcomes: dict[int, Outcome],
        eventual: bool,
        deadline: float,
    ) -> None:
        """Send all to their leaders. What has none yet waits by itself, holding up nothing else."""
        by_node: dict[NodeId, list[int]] = {}
        leaderless: dict[GroupId, list[int]] = {}
        for position in todo:
            group = group_of(items[position].partition)
            node = self._router.ready_leader(group)
            if node is None:
                leaderless.setdefault(group, []).append(position)
            else:
                by_node.setdefault(node, []).append(position)
        await asyncio.gather(
            *(
                self._execute_at(node, ones, items, outcomes, eventual, deadline)
                for node, ones in by_node.items()
            ),
            *(
                self._execute_when_led(group, ones, items, outcomes, eventual, deadline)
                for group, ones in leaderless.items()
            ),
        )

    async def _execute_when_led(
        self,
        group: GroupId,
        positions: list[int],
        items: Sequence[Item],
        outcomes: dict[int, Outcome],
        eventual: bool,
        deadline: float,
    ) -> None:
        try:
            node = await self._router.find_leader(group, deadline)
        except (NoLeader, Unavailable) as error:
            outcomes.update(dict.fromkeys(positions, error))
            return
        await self._execute_at(node, positions, items, outcomes, eventual, deadline)

    async def _execute_at(
        self,
        node: NodeId,
        positions: list[int],
        items: Sequence[Item],
        outcomes: dict[int, Outcome],
        eventual: bool,
        deadline: float,
    ) -> None:
        here = [items[position] for position in positions]
        results: Sequence[Outcome]
        if node == self._router.node_id:
            results = await self._executor.execute(here, deadline, durable_here=eventual)
        else:
            results = await self._execute_remotely(node, here, eventual, deadline)
        outcomes.update(zip(positions, results, strict=True))

    async def _execute_remotely(
        self, node: NodeId, items: list[Item], eventual: bool, deadline: float
    ) -> Sequence[Outcome]:
        remaining = max(0.001, deadline - asyncio.get_running_loop().time())
        body = encode_message(_ExecuteRequest(items, int(remaining * 1000), eventual))
        try:
            answer = await self._router.mesh.request(node, "execute", body, timeout=remaining)
        except KotobaError as error:
            return [error] * len(items)
        return [one.result or error_from_fields(one.error or {}) for one in _decode_answer(answer)]

    async def _serve_execute(self, peer: NodeId, body: bytes) -> bytes:
        request = _decode_request(body)
        deadline = asyncio.get_running_loop().time() + request.timeout_ms / 1000
        if len(request.items) == 1:
            result = await self._executor.execute_one(
                request.items[0], deadline, durable_here=request.durable_here
            )
            return encode_message([_Executed(result)])
        outcomes = await self._executor.execute(
            request.items, deadline, durable_here=request.durable_here
        )
        return encode_message(
            [
                _Executed(None, outcome.fields())
                if isinstance(outcome, KotobaError)
                else _Executed(outcome)
                for outcome in outcomes
            ]
        )


def _unknown() -> OutcomeUnknown:
    return OutcomeUnknown(
        "an earlier try may have been executed; retry with the same Idempotency-Key"
    )


def _edge_of(operation: Operation) -> Digest:
    assert isinstance(operation, UpdateEdge | DeleteEdge)
    return operation.digest


def _is_retriable(item: Item, outcome: Outcome) -> bool:
    """Certainly not executed; or unknown, where a second execution gives the first answer."""
    if isinstance(outcome, NoLeader):
        return True
    return isinstance(outcome, OutcomeUnknown) and bool(item.dedupe or item.nonce)
