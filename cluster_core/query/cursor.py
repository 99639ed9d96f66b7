"""Cursors: where the next page begins, in which snapshot, and for which query.

A cursor is base64url text of ``timestamp (8) · fingerprint (8) · position``. The fingerprint is of
the query without its cursor and limit, so that a cursor never continues another query. A cursor is
not secret and not signed: a forged one reads only what a query may read.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import sha256
from struct import Struct
from typing import Final

import msgspec

from cluster_core.errors import InvalidRequest
from cluster_core.graph.values import encode_message
from cluster_core.query.plan import FindEdges, FindNodes, Neighbours, Query
from cluster_core.types import Timestamp

__all__ = ["cursor_timestamp", "encode_cursor", "position_of"]

Paged = FindNodes | FindEdges | Neighbours

_HEAD: Final = Struct(">Q8s")


def encode_cursor(query: Paged, timestamp: Timestamp, position: bytes) -> str:
    """The cursor that continues ``query`` after ``position`` in the snapshot at ``timestamp``."""
    raw = _HEAD.pack(timestamp, _fingerprint(query)) + position
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def cursor_timestamp(query: Query) -> Timestamp | None:
    """The snapshot that the query's cursor asks for; None without a cursor.

    Raises InvalidRequest for a cursor that we did not make, or made for another query.
    """
    if not isinstance(query, Paged) or query.cursor is None:
        return None
    return _decode(query, query.cursor)[0]


def position_of(query: Paged, timestamp: Timestamp) -> bytes | None:
    """Where the page begins; None at the beginning. The snapshot must be the cursor's own."""
    if query.cursor is None:
        return None
    pinned, position = _decode(query, query.cursor)
    if pinned != timestamp:
        raise _invalid("belongs to another point in time than the one asked for")
    return position


def _decode(query: Paged, cursor: str) -> tuple[Timestamp, bytes]:
    try:
        raw = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
    except ValueError:
        raw = b""
    if len(raw) <= _HEAD.size:
        raise _invalid("not a cursor of this database")
    timestamp, fingerprint = _HEAD.unpack_from(raw)
    if fingerprint != _fingerprint(query):
        raise _invalid("the cursor of another query")
    return timestamp, raw[_HEAD.size :]


def _fingerprint(query: Paged) -> bytes:
    bare = msgspec.structs.replace(query, cursor=None, limit=1)
    return sha256(encode_message(bare)).digest()[:8]


def _invalid(why: str) -> InvalidRequest:
    return InvalidRequest(f"cursor: {why}", errors=[{"where": "cursor", "why": why}])
