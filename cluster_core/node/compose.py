"""Composing a transaction at the node that was asked: from the request to what its home executes.

Everything that does not depend on the graph happens here: checks, the CIDs of creations (so every
ref is known before anything is executed), the place of each operation.

The new vertices of a transaction are put into one partition, where their number allows it: then a
transaction that creates a small graph is one entry of one log. Under an Idempotency-Key that is the
partition that the key chooses, so that every retry makes the same CIDs; else one led here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec

from cluster_core.config import LimitConfig
from cluster_core.errors import KotobaError, TooLarge
from cluster_core.graph.operations import (
    BatchOperation,
    CreateEdge,
    CreateNode,
    Creation,
    DeleteEdge,
    DeleteNode,
    Operation,
    TransactionResult,
    UpdateEdge,
    UpdateNode,
    check_operation,
    check_refs,
    check_size,
    create,
    entity_nonce,
    keyed_partition,
    place_among,
    place_creation,
    resolve_refs,
)
from cluster_core.graph.several import PlacedOperation, fingerprint_several, fold_updates
from cluster_core.graph.values import invalid
from cluster_core.node.creations import StickyPlacement
from cluster_core.ports import Random
from cluster_core.txn.items import TransactionItem
from cluster_core.types import Digest, partition_of

__all__ = ["Composer"]

CREATIONS_PER_TURN: Final = 50
"""After so many (3 ms of trying nonces with 64 partitions) the event loop gets a turn."""

Locate = Callable[[list[Digest], float], Awaitable[dict[Digest, Digest]]]


class Composer:
    """See the module. ``locate(edges, deadline)`` finds the source of each edge."""

    def __init__(
        self,
        placement: StickyPlacement,
        limits: LimitConfig,
        partition_count: int,
        random: Random,
        locate: Locate,
    ) -> None:
        self._placement = placement
        self._limits = limits
        self._partition_count = partition_count
        self._random = random
        self._locate = locate

    async def compose(
        self,
        operations: Sequence[BatchOperation],
        key: str | None,
        principal: str,
        deadline: float,
    ) -> tuple[TransactionItem, list[int]]:
        """The transaction, and for each operation of the request the index of the one that does its
        work (see ``fold_updates``). Raises what is wrong with the request, with ``index``."""
        self._check(operations)
        folded = fold_updates(operations)
        workers = [worker for _, worker in folded]
        resolved = await self._resolve([one for one, _ in folded], workers, key, principal)
        sources = await self._find_sources(resolved, deadline)
        placed = self._place(resolved, sources, key)
        dedupe, print_ = b"", b""
        if key is not None:
            dedupe = entity_nonce(principal, key, 0, 0)
            print_ = fingerprint_several(operations)
        return TransactionItem(placed[0].partition, placed, dedupe, print_), workers

    def unfolded(
        self,
        operations: Sequence[BatchOperation],
        item: TransactionItem,
        workers: Sequence[int],
        result: TransactionResult,
    ) -> TransactionResult:
        """``result`` with one result for each operation of the request."""
        by_worker = {
            one.index: answer for one, answer in zip(item.operations, result.results, strict=True)
        }
        results = [
            by_worker[worker]
            if worker == index
            else msgspec.structs.replace(by_worker[worker], created=False)
            for index, worker in enumerate(workers)
        ]
        return TransactionResult(results, result.timestamp)

    # Checks.

    def _check(self, operations: Sequence[BatchOperation]) -> None:
        if not operations:
            raise invalid([{"where": "operations", "why": "must not be empty"}])
        bound = self._limits.transaction_operations_max
        if len(operations) > bound:
            detail = f"a transaction may have {bound} operations, this has {len(operations)}"
            raise TooLarge.beyond("transaction_operations_max", bound, detail)
        check_refs(operations)
        for index, one in enumerate(operations):
            self._check_one(one, index)

    def _check_one(self, one: BatchOperation, index: int) -> None:
        with _Indexed(index):
            check_operation(one.operation, self._limits, f"operations.{index}", one.refs)

    # CIDs and places.

    async def _resolve(
        self,
        operations: Sequence[BatchOperation],
        workers: Sequence[int],
        key: str | None,
        principal: str,
    ) -> list[tuple[int, Operation, Creation | None]]:
        """The operations that are executed, with all refs replaced, and the creations among them
        with their CIDs."""
        common = self._common_partition(key, principal)
        known: dict[str, Digest | None] = {}
        digests: list[Digest] = []
        resolved: list[tuple[int, Operation, Creation | None]] = []
        for index, one in enumerate(operations):
            if workers[index] != index:
                digests.append(digests[workers[index]])
            else:
                operation, made = resolve_refs(one, known), None
                if isinstance(operation, CreateNode | CreateEdge):
                    with _Indexed(index):
                        made = self._create(operation, index, common, key, principal)
                    if index % CREATIONS_PER_TURN == CREATIONS_PER_TURN - 1:
                        await asyncio.sleep(0)
                digests.append(_entity_of(operation, made))
                resolved.append((index, operation, made))
            if one.ref is not None:
                known[one.ref] = digests[index]
        return resolved

    def _common_partition(self, key: str | None, principal: str) -> int:
        """Where this transaction's new vertices live."""
        count = self._partition_count
        if key is not None:
            return keyed_partition(principal, key, 0, count)
        own = self._placement.partition()
        return partition_of(self._random.randbytes(8), count) if own is None else own

    def _create(
        self,
        operation: CreateNode | CreateEdge,
        index: int,
        common: int,
        key: str | None,
        principal: str,
    ) -> Creation:
        """Raises TooLarge."""
        count = self._partition_count
        check_operation(operation, self._limits, f"operations.{index}")
        if key is not None:
            made = place_creation(operation, principal, key, index, count, partition=common)
        elif isinstance(operation, CreateNode):
            made = place_among(operation, (common,), self._random.randbytes(16), count)
        else:
            made = create(operation, self._random.randbytes(16), count)
        check_size(made.block, self._limits)
        return made

    async def _find_sources(
        self, resolved: Sequence[tuple[int, Operation, Creation | None]], deadline: float
    ) -> dict[Digest, Digest]:
        """Where the edges live that are named without a hint."""
        sources: dict[Digest, Digest] = {}
        lost: list[Digest] = []
        for _, operation, made in resolved:
            if isinstance(operation, CreateEdge):
                assert made is not None
                sources[made.digest] = operation.source
            elif isinstance(operation, UpdateEdge | DeleteEdge) and operation.source is None:
                lost.append(operation.digest)
        lost = list(dict.fromkeys(digest for digest in lost if digest not in sources))
        if lost:
            sources.update(await self._locate(lost, deadline))
        return sources

    def _place(
        self,
        resolved: Sequence[tuple[int, Operation, Creation | None]],
        sources: dict[Digest, Digest],
        key: str | None,
    ) -> list[PlacedOperation]:
        placed: list[PlacedOperation] = []
        for index, operation, made in resolved:
            if made is not None:
                one = PlacedOperation(
                    index, made.partition, operation, made.nonce, check=key is not None
                )
            elif isinstance(operation, UpdateNode | DeleteNode):
                one = PlacedOperation(index, self._partition_of(operation.digest), operation)
            else:
                assert isinstance(operation, UpdateEdge | DeleteEdge)
                # An edge that is nowhere is looked for, and not found, where an edge with its
                # digest as source would be: so that it fails in its turn.
                source = operation.source or sources.get(operation.digest, operation.digest)
                one = PlacedOperation(index, self._partition_of(source), operation)
            placed.append(one)
        return placed

    def _partition_of(self, digest: Digest) -> int:
        return partition_of(digest, self._partition_count)


class _Indexed:
    """Says of an error inside which operation it is about."""

    def __init__(self, index: int) -> None:
        self._index = index

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, KotobaError):
            error.extra["index"] = self._index


def _entity_of(operation: Operation, made: Creation | None) -> Digest:
    if made is not None:
        return made.digest
    assert not isinstance(operation, CreateNode | CreateEdge)
    return operation.digest
