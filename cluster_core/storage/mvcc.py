"""Reading versions: the newest, or the newest that is not above a timestamp.

A *user key* is a key of a versioned table without its timestamp; each of its versions is the pair
``user key · inverted timestamp -> value``, newest first, and an empty value is a tombstone.

All of it rests on one invariant: **within a table no user key is a prefix of another.** Then the
versions of a user key are exactly the keys that begin with it, and they lie side by side. It holds
because entity keys have one length, and adjacency and label keys are a prefix of one length, a
label without NUL, a NUL, and a digest: two of them where one begins with the other have the same
label, so the same length. A label must therefore never contain NUL. In keys of a property index a
value takes the place of the label: none begins another (``graph/indexes.py``).

Nothing here asks the clock or waits: which timestamp may be read is for the caller to know.

Cost, RocksDB with cached blocks: ``newest`` and ``read_at`` 3.5 us, ``scan_at`` 9 us for the three
edges of a vertex and 1 us a version where there are many. Passing over many versions of one key
costs a seek, not a walk.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import Final

from cluster_core.ports import DATA, Engine, Scan
from cluster_core.storage.keys import ALL_VERSIONS, TIMESTAMP_MAX
from cluster_core.types import Timestamp

__all__ = ["newest", "read_at", "scan_at", "scan_newest", "versions"]

_U64: Final = Struct(">Q")
_pack: Final = _U64.pack
_unpack_from: Final = _U64.unpack_from
SKIP_MAX: Final = 8
"""Versions passed over one by one before a seek is cheaper: a seek costs as much as about eight
steps. It is RocksDB's own default for the same question."""


def newest(engine: Engine, user_key: bytes) -> tuple[Timestamp, bytes] | None:
    """The newest version of ``user_key``, with ``b""`` for a tombstone; None if there is none."""
    pair = engine.first(DATA, user_key, user_key + ALL_VERSIONS)
    if pair is None:
        return None
    return TIMESTAMP_MAX - _unpack_from(pair[0], len(user_key))[0], pair[1]


def read_at(
    engine: Engine, user_key: bytes, timestamp: Timestamp
) -> tuple[Timestamp, bytes] | None:
    """The newest version of ``user_key`` not above ``timestamp``, ``b""`` for a tombstone."""
    begin = user_key + _pack(TIMESTAMP_MAX - timestamp)
    pair = engine.first(DATA, begin, user_key + ALL_VERSIONS)
    if pair is None:
        return None
    return TIMESTAMP_MAX - _unpack_from(pair[0], len(user_key))[0], pair[1]


def versions(engine: Engine, user_key: bytes) -> Iterator[tuple[Timestamp, bytes]]:
    """Every version of ``user_key``, tombstones too, newest first."""
    scan = engine.scan(DATA, user_key, user_key + ALL_VERSIONS)
    offset = len(user_key)
    return ((TIMESTAMP_MAX - _unpack_from(key, offset)[0], value) for key, value in scan)


def scan_at(
    engine: Engine, begin: bytes, end: bytes, timestamp: Timestamp
) -> Iterator[tuple[bytes, Timestamp, bytes]]:
    """What a read at ``timestamp`` sees of the user keys in ``[begin, end)`` of one table.

    Yields ``(user_key, timestamp of the version, value)`` in key order, without tombstones, as of
    the moment of the call.
    """
    return _visible(engine.scan(DATA, begin, end), _pack(TIMESTAMP_MAX - timestamp))


def scan_newest(
    engine: Engine, begin: bytes, end: bytes, *, dead: bool = False
) -> Iterator[tuple[bytes, Timestamp, bytes]]:
    """As :func:`scan_at`, of the newest version of each user key; with ``dead`` also tombstones,
    for those who pause where there are many."""
    return _visible(engine.scan(DATA, begin, end), b"\0" * 8, dead=dead)


def _visible(
    scan: Scan, oldest: bytes, *, dead: bool = False
) -> Iterator[tuple[bytes, Timestamp, bytes]]:
    """The first version of each user key whose inverted timestamp is not below ``oldest``.

    The inner loop of every traversal: bytes are compared, and a timestamp is decoded only where it
    is yielded. Measured 0.5 us a version over what the engine takes to read it.
    """
    unpack_from = _unpack_from
    done = b""  # the user key whose visible version is behind us; it has no other one
    skipped = 0
    user_key = b""
    while pairs := scan.fetch():
        for key, value in pairs:
            user_key = key[:-8]
            if user_key == done or key[-8:] < oldest:
                skipped += 1
            else:
                done = user_key
                skipped = 0
                if value or dead:
                    yield user_key, TIMESTAMP_MAX - unpack_from(key, len(user_key))[0], value
        if skipped > SKIP_MAX:
            scan.seek(user_key + (ALL_VERSIONS if user_key == done else oldest))
            skipped = 0
