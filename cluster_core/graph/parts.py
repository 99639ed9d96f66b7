"""Parts: what an operation means for one partition, and what its evaluation yields.

An operation is decomposed at its home partition's leader (:mod:`~cluster_core.graph.decompose`) and
each part is evaluated at the leader of its own partition (:mod:`~cluster_core.graph.evaluate`).
Parts travel between nodes, outcomes rest in intents until their transaction is decided.

Locks (rule: no edge dangles, hubs are not serialised) follow from a part alone, so that they can be
checked *before* it is evaluated: whoever has to wait for a lock decomposes and evaluates anew.
An edge's lock is taken at both of its halves; whoever changes the adjacency of a vertex holds the
vertex SHARED, so the deletion of the vertex, which must know its edges, waits for them.

A vertex with very many edges is deleted under one lock in each partition: the vertex itself, held
EXCLUSIVE there whether it lives there or not, stands for all of its edges (:class:`HoldEdges`).
That is why whoever depends on an edge also holds the vertex at its far end (:func:`guards_of`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import Final, Literal, Protocol

import msgspec

from cluster_core.graph.indexes import Indexes
from cluster_core.graph.records import edge_ends
from cluster_core.graph.values import Value, encode_message, message_decoder
from cluster_core.storage import keys
from cluster_core.types import Digest, GroupId, Timestamp

__all__ = [
    "LARGE_DETACH",
    "NOT_YET",
    "Answer",
    "Change",
    "ChangeEdge",
    "ChangeVertex",
    "DropEdge",
    "DropEdgeIn",
    "DropVertex",
    "HoldEdges",
    "Lock",
    "LockKind",
    "OperationName",
    "Outcome",
    "Part",
    "PutEdge",
    "PutEdgeIn",
    "PutVertex",
    "View",
    "decode_change",
    "decode_part",
    "decode_parts",
    "encode_change",
    "encode_part",
    "guards_of",
    "locks_of",
]


NOT_YET: Final[Timestamp] = 0
"""The timestamp of a version that an earlier part of the same transaction writes: it will be the
transaction's commit timestamp, which nobody knows yet."""

LARGE_DETACH: Final[Digest] = b"\0" * 32
"""Held EXCLUSIVE by every deletion in chunks: two at a time could have an edge in common."""


class View(Protocol):
    """What an evaluation may see: one partition as its leader knows it, writes in flight included.

    Keys are those of ``storage/keys.py`` without a timestamp, of versioned tables.
    """

    group: GroupId
    indexes: Indexes
    """The property indexes that writes maintain here, as of this partition's own log."""

    def newest(self, user_key: bytes) -> tuple[Timestamp, bytes] | None:
        """The newest version of ``user_key`` (value ``b""``: a tombstone), None if it has none.

        Its timestamp is NOT_YET for what is written by the transaction that is being evaluated."""
        ...

    def scan_newest(self, prefix: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """Up to ``limit`` live keys with ``prefix`` and their newest values, in any order."""
        ...


class LockKind(IntEnum):
    """What a lock on an entity says; the greater includes the smaller."""

    SHARED = 1
    """The vertex must go on existing."""
    WRITE = 2
    """The entity's record changes."""
    EXCLUSIVE = 3
    """The entity appears or goes away."""


Lock = tuple[Digest, LockKind]


class PutVertex(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=1):
    """Write a new vertex. ``check``: the nonce came from a key or a client, so it may exist."""

    digest: Digest
    labels: tuple[str, ...]
    block: bytes
    check: bool = False


class ChangeVertex(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """Merge ``properties`` (null removes), replace the labels when given."""

    digest: Digest
    properties: dict[str, Value]
    labels: tuple[str, ...] | None = None
    if_version: Digest | None = None


class DropVertex(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=3):
    """Delete a vertex. It must have no edge, or, when ``adjacency`` is given, exactly those whose
    :func:`~cluster_core.graph.decompose.adjacency_digest` this is; other parts delete them. With
    ``chunked`` it may have any: they are deleted once this is committed (``txn/detach.py``)."""

    digest: Digest
    if_version: Digest | None = None
    adjacency: bytes | None = None
    chunked: bool = False


class PutEdge(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=4):
    """The source's half of a new edge: its record and the OUT entry."""

    digest: Digest
    label: str
    source: Digest
    target: Digest
    block: bytes
    check: bool = False


class PutEdgeIn(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=5):
    """The target's half of a new edge: the IN entry."""

    digest: Digest
    label: str
    source: Digest
    target: Digest
    check: bool = False


class ChangeEdge(msgspec.Struct, array_like=True, frozen=True, tag=6):
    """Merge ``properties`` (null removes)."""

    digest: Digest
    properties: dict[str, Value]
    if_version: Digest | None = None


class DropEdge(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=7):
    """The source's half of an edge's deletion: its record and the OUT entry.

    ``label``, ``source`` and ``target`` are what the decomposition saw; all are empty when it saw
    no such edge. ``detached``: the edge goes because one of its vertices does.
    """

    digest: Digest
    label: str = ""
    source: Digest = b""
    target: Digest = b""
    if_version: Digest | None = None
    detached: bool = False


class DropEdgeIn(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=8):
    """The target's half of an edge's deletion: the IN entry."""

    digest: Digest
    label: str
    target: Digest


class HoldEdges(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=9):
    """No edge of the vertex ``digest`` may come, change or go in this partition: they are deleted
    with it, should its transaction commit."""

    digest: Digest


Part = (
    PutVertex
    | ChangeVertex
    | DropVertex
    | PutEdge
    | PutEdgeIn
    | ChangeEdge
    | DropEdge
    | DropEdgeIn
    | HoldEdges
)

encode_part: Final = encode_message
"""One part, or a list of them."""
decode_part: Final[Callable[[bytes], Part]] = message_decoder(Part)
decode_parts: Final[Callable[[bytes], list[Part]]] = message_decoder(list[Part])


def locks_of(part: Part) -> list[Lock]:
    """The locks that ``part`` needs in its partition."""
    digest = part.digest
    match part:
        case DropVertex(chunked=True) | HoldEdges():
            return [(LARGE_DETACH, LockKind.EXCLUSIVE), (digest, LockKind.EXCLUSIVE)]
        case PutVertex() | DropVertex():
            return [(digest, LockKind.EXCLUSIVE)]
        case ChangeVertex() | ChangeEdge():
            return [(digest, LockKind.WRITE)]
        case PutEdgeIn() | DropEdgeIn():
            return [(digest, LockKind.EXCLUSIVE), (part.target, LockKind.SHARED)]
        case PutEdge() | DropEdge():
            edge = (digest, LockKind.EXCLUSIVE)
            return [edge, (part.source, LockKind.SHARED)] if part.source else [edge]


def guards_of(parts: Iterable[Part], view: View) -> list[Lock]:
    """The locks that ``parts`` need beside those of :func:`locks_of`: the far ends of the edges
    that they depend on, so that a deletion in chunks of such a vertex comes before or after."""
    guards: list[Lock] = []
    for part in parts:
        match part:
            case PutEdge(target=far) | DropEdge(target=far) if far:
                guards.append((far, LockKind.SHARED))
            case PutEdgeIn(source=far):
                guards.append((far, LockKind.SHARED))
            case ChangeEdge(digest):
                found = view.newest(keys.entity(view.group, digest))
                ends = edge_ends(found[1]) if found is not None else ()
                guards += [(end, LockKind.SHARED) for end in ends]
            case DropVertex(digest, adjacency=None, chunked=False):
                for prefix in (keys.out_prefix, keys.in_prefix):
                    first = view.scan_newest(prefix(view.group, digest), 1)
                    guards += [(far, LockKind.SHARED) for _, far in first]
    return guards


OperationName = Literal[
    "create_node", "update_node", "delete_node", "create_edge", "update_edge", "delete_edge"
]


class Change(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What the change feed tells of one entity. A deletion has no ``version``."""

    op: OperationName
    entity: Digest
    version: Digest | None
    labels: tuple[str, ...]
    """The vertex's labels after the change (before it, for a deletion), or the edge's one."""


class _StoredChange(msgspec.Struct, array_like=True, frozen=True, gc=False):
    op: OperationName
    version: Digest | None
    labels: tuple[str, ...]


_encode_stored_change: Final = msgspec.msgpack.Encoder().encode
_decode_stored_change: Final = msgspec.msgpack.Decoder(_StoredChange).decode


def encode_change(change: Change) -> bytes:
    """The value of a CHANGE key, which itself names the entity."""
    return _encode_stored_change(_StoredChange(change.op, change.version, change.labels))


def decode_change(entity: Digest, value: bytes) -> Change:
    """The change of ``entity`` that :func:`encode_change` wrote."""
    stored = _decode_stored_change(value)
    return Change(stored.op, entity, stored.version, stored.labels)


class Answer(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The fields of the operation's result that the evaluation knows.

    ``timestamp`` is None when the answer is about the write itself, whose timestamp is not known
    yet; an evaluation that writes nothing names that of the version it found.
    """

    digest: Digest
    version: Digest
    created: bool
    timestamp: Timestamp | None = None


class Outcome(msgspec.Struct, array_like=True, frozen=True):
    """What evaluating a part yields. Nothing has happened yet: the caller proposes it.

    Without ``writes`` the part changes nothing, and its answer has seen what may not be committed
    yet: it is given like a strong read's.
    """

    locks: list[Lock]
    writes: list[tuple[bytes, bytes]] = []
    """Keys without timestamp, of versioned tables; the value ``b""`` is a tombstone."""
    pointers: list[tuple[bytes, bytes]] = []
    """Keys and values of tables without versions."""
    change: Change | None = None
    """Comes with every write to an entity's record."""
    answer: Answer | None = None
    """Comes from exactly one of an operation's parts, that of the entity it names."""
    repeated: bool = False
    """A creation that happened before: the answer is the first one's."""
