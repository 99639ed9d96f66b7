"""Operations on their way to their home partition, and what is remembered of their answers."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from cluster_core.errors import IdempotencyKeyReused
from cluster_core.graph.operations import Operation, OperationResult
from cluster_core.graph.parts import Answer, Outcome
from cluster_core.graph.several import PlacedOperation
from cluster_core.types import Digest, Timestamp

__all__ = [
    "DedupeEntry",
    "Item",
    "TransactionItem",
    "answer_of",
    "decode_dedupe",
    "encode_batch",
    "encode_dedupe",
    "remembered",
    "result_of",
]


class Item(msgspec.Struct, array_like=True, frozen=True):
    """One operation on its way to its home partition.

    ``digest`` and ``block`` come with a vertex's creation that was made here, so that it need not
    be made again.

    ``nonce`` is a creation's; ``check`` says that it may have been used before. ``dedupe`` is the
    key of the request's dedupe entry (empty: none), ``fingerprint`` tells its content.

    A creation of a batch needs no entry of its own, since its nonce follows from the key: it is
    found by its CID. All of them in one partition share one, ``batch``, that only tells the
    content of the whole batch (``fingerprint``).
    """

    partition: int
    operation: Operation
    nonce: bytes = b""
    check: bool = False
    dedupe: bytes = b""
    fingerprint: bytes = b""
    digest: Digest = b""
    block: bytes = b""
    batch: bytes = b""


class TransactionItem(msgspec.Struct, array_like=True, frozen=True):
    """Several operations that are one, on their way to ``partition``, the home of the first.
    Their results come in the same order."""

    partition: int
    operations: list[PlacedOperation]
    dedupe: bytes = b""
    fingerprint: bytes = b""


class DedupeEntry(msgspec.Struct, array_like=True, frozen=True):
    """The first answer to a request: the results of its operations, and when they were written.
    ``transaction`` is set when that may be undecided yet."""

    fingerprint: bytes
    results: list[OperationResult]
    timestamp: Timestamp
    transaction: bytes = b""


def encode_batch(fingerprint: bytes, timestamp: Timestamp) -> bytes:
    """The entry that the creations of a batch share."""
    return encode_dedupe(DedupeEntry(fingerprint, [], timestamp))


encode_dedupe = msgspec.msgpack.Encoder().encode
decode_dedupe = msgspec.msgpack.Decoder(DedupeEntry).decode


def remembered(value: bytes | None, fingerprint: bytes) -> DedupeEntry | None:
    """The entry that a request finds under its key. Raises IdempotencyKeyReused when it is another
    request's."""
    if value is None:
        return None
    entry = decode_dedupe(value)
    if entry.fingerprint != fingerprint:
        raise IdempotencyKeyReused(
            "this Idempotency-Key was used for another request; take a new key"
        )
    return entry


def answer_of(outcomes: Sequence[Outcome]) -> Answer:
    """The answer of an operation: one of its outcomes has it."""
    return next(outcome.answer for outcome in outcomes if outcome.answer is not None)


def result_of(answer: Answer, partition: int, timestamp: Timestamp) -> OperationResult:
    return OperationResult(
        answer.digest, answer.version, partition, answer.timestamp or timestamp, answer.created
    )
