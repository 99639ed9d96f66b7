"""Entities found through an index, in one partition.

A property index is used only while the partition's own log says that it is complete at the read's
time (``graph/indexes.py``). That is looked at *after* each scan was opened: entries of a dropped
index are deleted behind the log entry that drops it, so a scan that was opened before it is whole.
Where the index does not serve, :class:`IndexRefused` sends the task to the label index.

The generators here never wait. They yield often, also nothing, so that whoever walks them can
pause, and count what they read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from cluster_core.graph.indexes import VALUE_BYTES_MAX, IndexState, decode_definition, value_key
from cluster_core.graph.records import EDGE
from cluster_core.graph.values import Value
from cluster_core.ports import DATA
from cluster_core.query.ordering import COMPLEMENT, compile_order
from cluster_core.query.plan import OrderBy
from cluster_core.query.ranges import is_single_value
from cluster_core.query.tasks import Access
from cluster_core.query.work import Work, properties_of
from cluster_core.storage import keys
from cluster_core.types import Digest, group_of

__all__ = [
    "IndexRefused",
    "Row",
    "digests_in_place",
    "entry_batches",
    "label_of",
    "rows_in_order",
    "value_of",
    "values_forwards",
]

COLLECT_MAX: Final = 50_000
"""Entries of a partition that are put in the order of their digests; where more fit, whoever reads
by digest meets enough of them without the index."""

_SUFFIX: Final = 40
"""Digest and timestamp, behind the value in an entry's key."""
_DIGEST: Final = slice(-40, -8)
_LABEL: Final = slice(len(keys.labels_prefix(0, EDGE)), -_SUFFIX - 1)

Row = tuple[bytes, bytes, bytes]
"""Place in the order of the query, key and record of the entity."""


class IndexRefused(Exception):
    """The property index does not serve here: take the label index."""


def _require_usable(access: Access, partition: int, work: Work) -> None:
    value = work.engine.get(DATA, keys.index_definition(group_of(partition), access.index))
    definition = None if value is None else decode_definition(value)
    if (
        definition is None
        or definition.state is not IndexState.READY
        or definition.since > work.timestamp
    ):
        raise IndexRefused


def entry_batches(access: Access, kind: int, partition: int, work: Work) -> Iterator[list[bytes]]:
    """The keys of all entries that ``access`` names, in the order of the index."""
    for begin, end in _entry_ranges(access, kind, partition):
        yield from _entries(access, begin, end, partition, work)


def _entry_ranges(access: Access, kind: int, partition: int) -> Iterator[tuple[bytes, bytes]]:
    group = group_of(partition)
    if not access.index:
        prefix = (
            keys.labels_prefix(group, kind)
            if access.every_label
            else keys.label_prefix(group, kind, access.label)
        )
        yield prefix, keys.after(prefix)
        return
    prefix = keys.values_prefix(group, access.index, kind)
    for begin, end in access.ranges:
        yield prefix + begin, prefix + end


def _entries(
    access: Access, begin: bytes, end: bytes, partition: int, work: Work
) -> Iterator[list[bytes]]:
    is_checked = not access.index
    for read, visible in work.batches(begin, end):
        if not is_checked:
            _require_usable(access, partition, work)
            is_checked = True
        work.note(read)
        yield [key for key, _ in visible]
    if not is_checked:
        _require_usable(access, partition, work)


def label_of(entry: bytes) -> str:
    """The label in the key of an entry of the label index."""
    return entry[_LABEL].decode()


# By digest


def digests_in_place(
    access: Access, kind: int, partition: int, after: Digest, work: Work
) -> Iterator[list[Digest]]:
    """The digests above ``after``, in ascending order."""
    if access.index and not (len(access.ranges) == 1 and is_single_value(access.ranges[0])):
        yield from _sorted(access, kind, partition, after, work)
        return
    # Of one label, or of one value, the entries lie in the order of their digests.
    for prefix, end in _entry_ranges(access, kind, partition):
        begin = prefix + after + keys.ALL_VERSIONS if after else prefix
        for entries in _entries(access, begin, end, partition, work):
            yield [key[_DIGEST] for key in entries]


def _sorted(
    access: Access, kind: int, partition: int, after: Digest, work: Work
) -> Iterator[list[Digest]]:
    found: list[Digest] = []
    for entries in entry_batches(access, kind, partition, work):
        found += [digest for key in entries if (digest := key[_DIGEST]) > after]
        if len(found) > COLLECT_MAX or work.exhausted:
            raise IndexRefused
        yield []
    found.sort()
    yield found


# By value


def rows_in_order(
    access: Access, kind: int, order: OrderBy, partition: int, after: bytes, work: Work
) -> Iterator[Row | None]:
    """Entities in the order of the index's property, those whose place lies behind ``after``."""
    value, digest = after[:-32], after[-32:]
    if order.descending:
        first = value.translate(COMPLEMENT)
        values = _values_backwards(access, kind, partition, first, work)
    else:
        values = values_forwards(access, kind, partition, value, work)
    place_of = compile_order((order,))
    for key, digests in values:
        yield None
        if len(key) >= VALUE_BYTES_MAX:
            found = [
                pair for each in digests if (pair := _load(access, partition, key, each, work))
            ]
            placed = [(place_of(properties_of(pair[1])) + pair[0][3:35], *pair) for pair in found]
            yield from (row for row in sorted(placed) if row[0] > after)
            continue
        place = key.translate(COMPLEMENT) if order.descending else key
        for each in digests:
            if place == value and each <= digest:
                continue
            pair = _load(access, partition, key, each, work)
            if pair is not None:
                yield place + each, *pair


def _load(
    access: Access, partition: int, key: bytes, digest: Digest, work: Work
) -> tuple[bytes, bytes] | None:
    """The entity of an entry. A read that does not wait for what is under way may find that it has
    moved on to another value, where it is met again."""
    pair = work.load(partition, digest)
    if pair is not None and work.point.skip_intents:
        here = value_key(properties_of(pair[1]).get(access.property_name))
        return pair if here == key else None
    return pair


def value_of(access: Access, partition: int, key: bytes, digest: Digest, work: Work) -> Value:
    """The value of an entity that the index has under ``key``."""
    pair = _load(access, partition, key, digest, work)
    if pair is None:
        raise IndexRefused  # it has moved on to another value meanwhile
    return properties_of(pair[1]).get(access.property_name)


def values_forwards(
    access: Access, kind: int, partition: int, first: bytes, work: Work
) -> Iterator[tuple[bytes, list[Digest]]]:
    """(value, digests) ascending from ``first``. A value with many entities comes in pieces, except
    a cut one, which comes whole, since its entities have yet to be sorted."""
    prefix = keys.values_prefix(group_of(partition), access.index, kind)
    first = first[:VALUE_BYTES_MAX]
    value, digests = b"", list[Digest]()
    for begin, end in access.ranges:
        if end <= first:
            continue
        low = prefix + max(begin, first)
        for entries in _entries(access, low, prefix + end, partition, work):
            for entry in entries:
                here = entry[len(prefix) : -_SUFFIX]
                if here != value:
                    yield value, digests
                    value, digests = here, []
                digests.append(entry[_DIGEST])
            if len(value) < VALUE_BYTES_MAX:
                yield value, digests
                digests = []
            else:
                yield value, []
    yield value, digests


def _values_backwards(
    access: Access, kind: int, partition: int, first: bytes, work: Work
) -> Iterator[tuple[bytes, list[Digest]]]:
    """As :func:`values_forwards`, descending. Each value is looked for from behind, and its
    entities are then read forwards, by digest: 20 us a value more than forwards."""
    prefix = keys.values_prefix(group_of(partition), access.index, kind)
    top = keys.after(first[:VALUE_BYTES_MAX]) if first else b""
    for begin, end in reversed(access.ranges):
        high = min(end, top) if top else end
        while begin < high:
            scan = work.engine.scan(DATA, prefix + begin, prefix + high, reverse=True)
            last = next(scan, None)
            _require_usable(access, partition, work)
            work.note(1)
            if last is None:
                break
            value = last[0][len(prefix) : -_SUFFIX]
            whole: list[Digest] = []
            low = prefix + value
            for entries in _entries(access, low, keys.after(low), partition, work):
                digests = [entry[_DIGEST] for entry in entries]
                if len(value) < VALUE_BYTES_MAX:
                    yield value, digests
                else:
                    whole += digests
                    yield value, []
            yield value, whole
            high = value
