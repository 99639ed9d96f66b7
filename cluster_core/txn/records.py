"""Transaction records, and what travels between a transaction's coordinator and its participants.

A record lives in the partition where its transaction was begun (its *home*), under the
transaction's id. Its states, and who may change them (every change is a command in the home
partition's log, conditional on what the record is at that moment)::

    (missing) ──staging, by the coordinator──▶ STAGING ──all prepared──▶ COMMITTED ──▶ (deleted)
        │                                         │
        └──recovery──▶ ABORTED ◀──a participant refused──┘

STAGING with every participant prepared at or below its commit timestamp *is* committed: the client
is answered then, and making the record COMMITTED follows (CockroachDB's parallel commits). That is
why a participant may be resolved only after the record is COMMITTED, and why recovery makes a
participant refuse, durably, before it aborts a staged record.
"""

from __future__ import annotations

from enum import IntEnum

import msgspec

from cluster_core.graph.parts import Answer, Part
from cluster_core.types import Digest, GroupId, Timestamp

__all__ = [
    "CheckRequest",
    "DecideRequest",
    "Decision",
    "PrepareItem",
    "PrepareRequest",
    "Prepared",
    "RecordState",
    "ResolveRequest",
    "TransactionRecord",
    "decode_record",
    "encode_record",
]


class RecordState(IntEnum):
    STAGING = 1
    COMMITTED = 2
    ABORTED = 3


class TransactionRecord(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """``commit`` is 0 while ABORTED. ``participants`` are the groups beside the home; ``dedupe`` is
    the key of the request's dedupe entry, which goes when the transaction is aborted. ``detach`` is
    a vertex whose edges go in chunks between COMMITTED and the intents' resolution."""

    state: RecordState
    begin: Timestamp
    commit: Timestamp
    participants: list[GroupId]
    dedupe: bytes = b""
    detach: Digest = b""


encode_record = msgspec.msgpack.Encoder().encode
decode_record = msgspec.msgpack.Decoder(TransactionRecord).decode


class PrepareItem(msgspec.Struct, array_like=True, frozen=True):
    """One transaction's parts in one group. With several operations, ``operations`` has for each
    part the index of its operation."""

    transaction: bytes
    begin: Timestamp
    home: GroupId
    group: GroupId
    parts: list[Part]
    operations: list[int] = []


class PrepareRequest(msgspec.Struct, array_like=True, frozen=True):
    """Prepares for one node. The answer says what was proposed; a second one, to ``notify``, that
    it is all applied."""

    items: list[PrepareItem]
    notify: int
    timeout_ms: int


class Prepared(msgspec.Struct, array_like=True, frozen=True):
    """The answer for one item: its prepare timestamp and what its operations answer (by their
    index), or the fields of the error."""

    timestamp: Timestamp
    error: dict[str, object] | None = None
    answers: list[tuple[int, Answer]] = []


class ResolveRequest(msgspec.Struct, array_like=True, frozen=True):
    """Decided transactions: (group, transaction, begin, commit timestamp or 0)."""

    items: list[tuple[GroupId, bytes, Timestamp, Timestamp]]


class DecideRequest(msgspec.Struct, array_like=True, frozen=True):
    """Ask a transaction's home to decide it, since its coordinator is silent."""

    home: GroupId
    transaction: bytes
    begin: Timestamp


class CheckRequest(msgspec.Struct, array_like=True, frozen=True):
    """Ask a participant whether it prepared at or below ``commit``; if not, it never will."""

    group: GroupId
    transaction: bytes
    begin: Timestamp
    commit: Timestamp


class Decision(msgspec.Struct, array_like=True, frozen=True):
    """``commit`` is 0 when the transaction is aborted."""

    commit: Timestamp
