"""Records: the value of an ENTITY key (``storage/keys.py``).

::

    kind (1) · version digest (32) · created_at (8) · block

``created_at`` 0 means "at the timestamp of this very version": a creation is evaluated before its
commit timestamp is known. Later versions carry the time that this resolved to. When a version was
written is the timestamp of its key. An empty value is the tombstone of a deleted entity.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from cluster_core.graph.blocks import decode_block, linked_digest
from cluster_core.graph.entities import Edge, Entity, Vertex
from cluster_core.types import Digest, Timestamp

__all__ = [
    "EDGE",
    "VERTEX",
    "decode_record",
    "edge_ends",
    "encode_record",
    "record_block",
    "record_created_at",
    "record_kind",
    "record_version",
]

VERTEX: Final = 1
EDGE: Final = 2

_HEAD: Final = Struct(">B32sQ")
_U64: Final = Struct(">Q")
_CREATED_AT: Final = 33
_BLOCK: Final = 41


def encode_record(kind: int, version: Digest, created_at: Timestamp, block: bytes) -> bytes:
    """The record of one version; see the module for ``created_at``."""
    return _HEAD.pack(kind, version, created_at) + block


def record_kind(record: bytes) -> int:
    """``VERTEX`` or ``EDGE``."""
    return record[0]


def record_version(record: bytes) -> Digest:
    return record[1:_CREATED_AT]


def record_created_at(record: bytes, timestamp: Timestamp) -> Timestamp:
    """When the entity was created; ``timestamp`` is the one in the record's key."""
    created_at: Timestamp = _U64.unpack_from(record, _CREATED_AT)[0]
    return created_at or timestamp


def record_block(record: bytes) -> bytes:
    return record[_BLOCK:]


def edge_ends(record: bytes) -> tuple[Digest, ...]:
    """Source and target of an edge's record; of anything else nothing."""
    if not record or record[0] != EDGE:
        return ()
    content = decode_block(record[_BLOCK:])
    return linked_digest(content["source"]), linked_digest(content["target"])


def decode_record(digest: Digest, timestamp: Timestamp, record: bytes) -> Entity:
    """The entity ``digest`` as written at ``timestamp``. The record must not be a tombstone."""
    content = decode_block(record[_BLOCK:])
    version = record[1:_CREATED_AT]
    created_at = record_created_at(record, timestamp)
    if record[0] == VERTEX:
        return Vertex(
            digest, version, tuple(content["labels"]), content["properties"], created_at, timestamp
        )
    return Edge(
        digest,
        version,
        content["label"],
        linked_digest(content["source"]),
        linked_digest(content["target"]),
        content["properties"],
        created_at,
        timestamp,
    )
