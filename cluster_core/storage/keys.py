"""Where everything lives: the keys of both column families.

Every key of a replica starts with its 2-byte group id, so a replica is one contiguous range per
family: a snapshot is a range scan, a removal one range delete. After the group comes one byte for
the table. Keys of versioned tables end in the inverted timestamp of the write, so that the newest
version sorts first; a version with an empty value is a tombstone.

========  =====================================  ==========================================
table     key after the group                    value
========  =====================================  ==========================================
ENTITY    digest                          ~ts    record of the entity (``graph/records.py``)
OUT       source · label · 0 · edge       ~ts    target digest
IN        target · label · 0 · edge       ~ts    source digest
VERSION   version digest                         entity digest; later versions than the first,
                                                 whose digest is the entity's
LABEL     kind · label · 0 · digest       ~ts    1: the entity has the label
PROPERTY  index · kind · value · digest   ~ts    1: the entity has the value (graph/indexes.py)
INDEX     index                                  index definition (``graph/indexes.py``)
PLACEMENT group                                  in the meta group: a table of that group's replicas
                                                 (``placement/table.py``)
CHANGE    timestamp · entity digest              change (``graph/parts.py``)
DEDUPE    request nonce                          fingerprint + result
INTENT    transaction id                         intent
RECORD    transaction id                         transaction record
REFUSAL   transaction id                         begin timestamp
STATE     name                                   applied index and the like
========  =====================================  ==========================================

Key building is hot, so these functions work on bytes only.
"""

from __future__ import annotations

from functools import lru_cache
from struct import Struct
from typing import Final

from cluster_core.types import Digest, GroupId, Timestamp

_GROUP: Final = Struct(">H").pack
_U32: Final = Struct(">I").pack
_U64: Final = Struct(">Q").pack
_unpack_u64: Final = Struct(">Q").unpack_from

TIMESTAMP_MAX: Final = (1 << 64) - 1

ENTITY: Final = b"E"
OUT: Final = b"O"
IN: Final = b"I"
VERSION: Final = b"V"
LABEL: Final = b"N"
PROPERTY: Final = b"P"
INDEX: Final = b"X"
CHANGE: Final = b"C"
DEDUPE: Final = b"D"
INTENT: Final = b"K"
RECORD: Final = b"T"
REFUSAL: Final = b"R"
PLACEMENT: Final = b"A"
STATE: Final = b"S"

_KINDS: Final = (b"\0", b"\1", b"\2")

LOG: Final = b"L"
"""Raft family: log entries, ``group · L · index``."""
LOG_START: Final = b"M"
"""Raft family: index and term of the entry before the log's first, ``group · M``."""
HARD_STATE: Final = b"H"
"""Raft family: term and vote, ``group · H``."""
COLLECTED: Final = b"G"
"""Raft family: the horizon below which this node has collected, ``group · G``. Not replicated."""

STAGED: Final = b"Y"
"""Raft family: what has arrived of a snapshot, ``group · Y · 0`` and ``group · Y · 1 · chunk``.
Not replicated."""
RESIDENT: Final = b"R"
"""Raft family: the id of the replica that is here, and of the last one that was removed,
``group · R``. Not replicated."""

DISTRUSTED: Final = b"Q"
"""Raft family: the checkpoint at which this replica differed from the others, ``group · Q``, until
it is replaced. Not replicated."""

NODE_SCOPE: Final = b"\xff\xff"
"""Raft family: what belongs to the node and to no group (store id, founding, clock ceiling)."""


def group_prefix(group: GroupId) -> bytes:
    return _GROUP(group)


def table_prefix(group: GroupId, table: bytes) -> bytes:
    return _GROUP(group) + table


def after(prefix: bytes) -> bytes:
    """The smallest key that is greater than every key with ``prefix``."""
    trimmed = prefix.rstrip(b"\xff")
    return trimmed[:-1] + bytes((trimmed[-1] + 1,)) if trimmed else b"\xff" * 64


def entity(group: GroupId, digest: Digest) -> bytes:
    return _GROUP(group) + ENTITY + digest


ALL_VERSIONS: Final = b"\xff" * 9
"""Appended to a user key: above all its versions."""

ADJACENCY_PREFIX: Final = 35
"""Group, table, digest: what the OUT keys of one vertex have in common, and its IN keys."""


def out_prefix(group: GroupId, source: Digest, label: str | None = None) -> bytes:
    """All out-edges of ``source``, or those with ``label``."""
    prefix = _GROUP(group) + OUT + source
    return prefix if label is None else prefix + label.encode() + b"\0"


def in_prefix(group: GroupId, target: Digest, label: str | None = None) -> bytes:
    """All in-edges of ``target``, or those with ``label``."""
    prefix = _GROUP(group) + IN + target
    return prefix if label is None else prefix + label.encode() + b"\0"


def out_edge(group: GroupId, source: Digest, label: str, edge: Digest) -> bytes:
    return _GROUP(group) + OUT + source + label.encode() + b"\0" + edge


def in_edge(group: GroupId, target: Digest, label: str, edge: Digest) -> bytes:
    return _GROUP(group) + IN + target + label.encode() + b"\0" + edge


def split_adjacency(user_key: bytes) -> tuple[str, Digest]:
    """Label and edge digest of an OUT or IN key without its timestamp."""
    return user_key[35:-33].decode(), user_key[-32:]


@lru_cache(maxsize=4096)
def label_prefix(group: GroupId, kind: int, label: str) -> bytes:
    """All entities of ``kind`` (``VERTEX`` or ``EDGE`` of ``graph/records.py``) with ``label``.

    Remembered, since every new vertex asks: 0.3 of its 0.6 us.
    """
    return labels_prefix(group, kind) + label.encode() + b"\0"


def labels_prefix(group: GroupId, kind: int) -> bytes:
    """The entries of all labels; behind it come the label, NUL and the digest."""
    return _GROUP(group) + LABEL + _KINDS[kind]


def labelled(group: GroupId, kind: int, label: str, digest: Digest) -> bytes:
    return label_prefix(group, kind, label) + digest


def index_prefix(group: GroupId, index: int) -> bytes:
    """All entries of one property index."""
    return _GROUP(group) + PROPERTY + _U32(index)


def values_prefix(group: GroupId, index: int, kind: int) -> bytes:
    """The entries of one property index for vertices, or for edges."""
    return _GROUP(group) + PROPERTY + _U32(index) + _KINDS[kind]


def valued(group: GroupId, index: int, kind: int, value: bytes, digest: Digest) -> bytes:
    return _GROUP(group) + PROPERTY + _U32(index) + _KINDS[kind] + value + digest


def index_definition(group: GroupId, index: int) -> bytes:
    return _GROUP(group) + INDEX + _U32(index)


def version(group: GroupId, digest: Digest) -> bytes:
    return _GROUP(group) + VERSION + digest


def change(group: GroupId, timestamp: Timestamp, digest: Digest) -> bytes:
    return _GROUP(group) + CHANGE + _U64(timestamp) + digest


def dedupe(group: GroupId, nonce: bytes) -> bytes:
    return _GROUP(group) + DEDUPE + nonce


def intent(group: GroupId, transaction: bytes) -> bytes:
    return _GROUP(group) + INTENT + transaction


def record(group: GroupId, transaction: bytes) -> bytes:
    return _GROUP(group) + RECORD + transaction


def refusal(group: GroupId, transaction: bytes) -> bytes:
    return _GROUP(group) + REFUSAL + transaction


def state(group: GroupId, name: bytes) -> bytes:
    return _GROUP(group) + STATE + name


def versioned(user_key: bytes, timestamp: Timestamp) -> bytes:
    """The key of the version of ``user_key`` that was written at ``timestamp``."""
    return user_key + _U64(TIMESTAMP_MAX - timestamp)


def split_version(key: bytes) -> tuple[bytes, Timestamp]:
    """The key without its timestamp, and the timestamp."""
    return key[:-8], TIMESTAMP_MAX - _unpack_u64(key, len(key) - 8)[0]


def placement(group: GroupId, of: GroupId) -> bytes:
    return _GROUP(group) + PLACEMENT + _GROUP(of)


def log_entry(group: GroupId, index: int) -> bytes:
    return _GROUP(group) + LOG + _U64(index)


def collected(group: GroupId) -> bytes:
    return _GROUP(group) + COLLECTED


def log_start(group: GroupId) -> bytes:
    return _GROUP(group) + LOG_START


def hard_state(group: GroupId) -> bytes:
    return _GROUP(group) + HARD_STATE


def staged(group: GroupId) -> bytes:
    """All that has arrived of a snapshot."""
    return _GROUP(group) + STAGED


def staged_transfer(group: GroupId) -> bytes:
    return _GROUP(group) + STAGED + b"\0"


def staged_chunk(group: GroupId, number: int) -> bytes:
    return _GROUP(group) + STAGED + b"\1" + _U64(number)


def resident(group: GroupId) -> bytes:
    return _GROUP(group) + RESIDENT


def distrusted(group: GroupId) -> bytes:
    return _GROUP(group) + DISTRUSTED
