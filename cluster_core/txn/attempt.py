"""One attempt at a transaction: what it is about, its parts by partition, and how it stands."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from cluster_core.errors import Conflict, KotobaError, NoLeader, RequestError
from cluster_core.graph.operations import TransactionResult
from cluster_core.graph.parts import Answer, Part
from cluster_core.txn.items import result_of
from cluster_core.txn.records import RecordState, TransactionRecord, encode_record
from cluster_core.types import Digest, GroupId, Timestamp, group_of

__all__ = ["Request", "Transaction"]


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
        "holding",
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
        self.holding: set[GroupId] = set()
        """Participants that were asked to prepare, and may hold an intent of it now or later."""
        self.resumed = False
        self.again = False
        self.result: TransactionResult | None = None
        self.error: KotobaError | None = None
        self.finishing: asyncio.Task[None] | None = None
        """What the answer waits for although it is decided."""

    @property
    def open(self) -> bool:
        return self.error is None and not self.again

    def add(self, index: int, partition: int, part: Part) -> None:
        """``part`` is one of the operation with ``index``."""
        if partition == self.request.home:
            share = self.own
        else:
            share = self.remote.setdefault(group_of(partition), _Share())
        share.parts.append(part)
        share.operations.append(index)

    def refuse(self, group: GroupId, error: KotobaError) -> None:
        """``group`` answered its prepare with ``error``. That it is locked, or cannot be, is said
        where nothing was proposed, and a prepare arrives at most once: no intent is or will be
        there. Any other error may follow a proposal, of a leader that moved."""
        if isinstance(error, Conflict | RequestError):
            self.holding.discard(group)
        self.fail(error)

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


def _index_of(error: KotobaError) -> int:
    """Of the operation that failed."""
    index: int = error.extra.get("index", 0)
    return index
