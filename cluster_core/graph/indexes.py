"""Indexes: the entries by which entities are found, and the definitions of property indexes.

The *label index* is always there: one LABEL entry for each label of an entity. A *property index*
on (label, property) is declared; it has exactly one PROPERTY entry for each vertex and each edge
with the label, under the property's value, or under null where the property is missing. Entries
are versioned like the entities themselves (present, or a tombstone), so an index shows any snapshot
in which it was complete.

A definition lives twice. In the meta group it says what was declared; in the log of each partition
it says what that partition does, and there its state only ever moves forward::

    (none) ──▶ BUILDING ──▶ READY
       └─────────┴──────────┴──▶ DROPPING ──▶ GONE (kept for ever, some bytes)

**Invariant.** Whatever a partition's log evaluates behind its own BUILDING entry maintains the
index; whatever was evaluated before it is entered by the backfill; READY follows the backfill in
the same log. So a read at or above READY's timestamp finds every entity, whoever led meanwhile: a
leader evaluates with the definitions of its own log, all of which it has applied by then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import IntEnum
from types import MappingProxyType
from typing import Any, Final

import msgspec

from cluster_core.graph.ordering import order_key
from cluster_core.graph.values import Value
from cluster_core.storage import keys
from cluster_core.types import Digest, GroupId, Timestamp

__all__ = [
    "NO_INDEXES",
    "PRESENT",
    "VALUE_BYTES_MAX",
    "IndexDefinition",
    "IndexState",
    "Indexes",
    "content_labels",
    "decode_definition",
    "encode_definition",
    "entry_changes",
    "entry_keys",
    "maintained",
    "value_key",
]

PRESENT: Final = b"\1"
"""The value of an entry; what matters is its key."""

VALUE_BYTES_MAX: Final = 512
"""Of a value's key in an entry; what is longer is cut, and compared in the record."""

Indexes = Mapping[str, tuple[tuple[str, int], ...]]
"""What an evaluation maintains: for each label, (property, index)."""

NO_INDEXES: Final[Indexes] = MappingProxyType({})


class IndexState(IntEnum):
    """See the module. In the meta group READY means: in every partition."""

    BUILDING = 1
    READY = 2
    DROPPING = 3
    GONE = 4


class IndexDefinition(msgspec.Struct, array_like=True, frozen=True):
    """A property index. ``id`` is given once and never used again."""

    id: int
    label: str
    property: str
    state: IndexState
    since: Timestamp
    """When it came into this state. READY: reads from here on may use it."""


encode_definition: Final = msgspec.msgpack.Encoder().encode
decode_definition: Final[Callable[[bytes], IndexDefinition]] = msgspec.msgpack.Decoder(
    IndexDefinition
).decode


def maintained(definitions: Iterable[IndexDefinition]) -> Indexes:
    """What writes must keep up: every index that is built or being built."""
    by_label: dict[str, list[tuple[str, int]]] = {}
    for definition in definitions:
        if definition.state in (IndexState.BUILDING, IndexState.READY):
            found = by_label.setdefault(definition.label, [])
            found.append((definition.property, definition.id))
    return {label: tuple(sorted(found)) for label, found in by_label.items()}


def value_key(value: Value) -> bytes:
    """Where a value stands in an index: its order key, cut to :data:`VALUE_BYTES_MAX`.

    Cut keys stay prefix-free among themselves and with whole ones, since whole keys are.
    """
    return order_key(value)[:VALUE_BYTES_MAX]


def entry_keys(
    group: GroupId,
    kind: int,
    digest: Digest,
    labels: Sequence[str],
    properties: Mapping[str, Value],
    indexes: Indexes,
) -> list[bytes]:
    """The keys of all index entries that an entity with this content has."""
    found = [keys.labelled(group, kind, label, digest) for label in labels]
    if indexes:
        for label in labels:
            for name, index in indexes.get(label, ()):
                value = value_key(properties.get(name))
                found.append(keys.valued(group, index, kind, value, digest))
    return found


def entry_changes(before: Sequence[bytes], after: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    """The writes that turn the entries ``before`` into those ``after``."""
    left = [(key, b"") for key in before if key not in after]
    came = [(key, PRESENT) for key in after if key not in before]
    return left + came


def content_labels(content: Mapping[str, Any]) -> Sequence[str]:
    """The labels of a decoded block: a vertex's set, or an edge's one."""
    labels: Sequence[str] | None = content.get("labels")
    return (content["label"],) if labels is None else labels
