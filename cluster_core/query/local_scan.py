"""Tasks that scan partitions, or what an index finds there: the first rows in an order, counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from heapq import heapify, heappop, heapreplace
from struct import Struct
from typing import Final

from msgspec import structs

from cluster_core.graph.blocks import decode_block
from cluster_core.graph.indexes import VALUE_BYTES_MAX
from cluster_core.graph.records import EDGE, VERTEX, record_block, record_kind
from cluster_core.graph.values import Value
from cluster_core.query.local_index import (
    IndexRefused,
    Row,
    digests_in_place,
    entry_batches,
    label_of,
    rows_in_order,
    value_of,
    values_forwards,
)
from cluster_core.query.ordering import compile_order, order_key
from cluster_core.query.plan import GROUP_BY_LABEL
from cluster_core.query.tasks import (
    Access,
    CountResult,
    CountTask,
    ScanResult,
    ScanTask,
    Stored,
)
from cluster_core.query.work import (
    PAUSE_AFTER,
    Work,
    fitting,
    properties_of,
    weight_of,
)
from cluster_core.storage import keys
from cluster_core.types import Digest, group_of

__all__ = ["count", "scan", "scan_position"]

_pack_u16: Final = Struct(">H").pack

_NULL: Final = order_key(None)
_BURST_MAX: Final = 64
"""Entities that are read before it is looked whether there are enough."""


def scan_position(partition: int, digest: Digest) -> bytes:
    """Where an entity lies in a scan without ``order_by``."""
    return _pack_u16(partition) + digest


async def scan(task: ScanTask, work: Work) -> ScanResult:
    """The first rows after a position."""
    try:
        return await _scan(task, work)
    except IndexRefused:
        refused = structs.replace(task, access=Access(label=task.access.label))
        result = await _scan(refused, work)
        result.refused = True
        return result


async def _scan(task: ScanTask, work: Work) -> ScanResult:
    if task.access.ordered:
        return await _scan_along_index(task, work)
    return await (_scan_ordered(task, work) if task.order_by else _scan_in_place(task, work))


async def _scan_in_place(task: ScanTask, work: Work) -> ScanResult:
    fits = fitting(task.kind, task.labels, task.where)
    result = ScanResult(0, [])
    size = 0
    for partition in sorted(set(task.partitions)):
        after = _after_in(partition, task.after)
        if after is None:
            continue
        await work.settle_all(partition, past_holds=task.kind == VERTEX)
        for pairs, told in _in_place(task, partition, after, work):
            await work.breathe()
            for key, record in pairs:
                if not fits(record):
                    continue
                if len(result.rows) >= task.limit or size >= work.budget.bytes:
                    result.more = True
                    result.bound = "bytes" if len(result.rows) < task.limit else None
                    result.scanned = work.scanned
                    return result
                size += len(record)
                result.rows.append(_stored(key, record))
            if told and work.exhausted:
                result.bound = "scanned"
                result.stopped = scan_position(partition, told)
                result.scanned = work.scanned
                return result
    result.scanned = work.scanned
    return result


def _after_in(partition: int, after: bytes) -> Digest | None:
    """The digest behind which a scan goes on in this partition; None when all of it is behind."""
    here = _pack_u16(partition)
    if not after or after[:2] < here:
        return b""
    return after[2:] if after[:2] == here else None


def _in_place(
    task: ScanTask, partition: int, after: Digest, work: Work
) -> Iterator[tuple[list[tuple[bytes, bytes]], Digest]]:
    """Entities by digest, those above ``after``; each time with the digest up to which all were
    told, if there was any."""
    if not task.access.label:
        begin = keys.table_prefix(group_of(partition), keys.ENTITY)
        start = begin + after + keys.ALL_VERSIONS if after else begin
        for read, visible in work.batches(start, keys.after(begin)):
            work.note(read, weight_of(visible))
            yield visible, visible[-1][0][3:35] if visible else b""
        return
    burst = min(_BURST_MAX, task.limit + 1)
    for digests in digests_in_place(task.access, task.kind, partition, after, work):
        yield [], b""
        for start_at in range(0, len(digests), burst):
            some = digests[start_at : start_at + burst]
            yield [pair for each in some if (pair := work.load(partition, each))], some[-1]


def _stored(key: bytes, record: bytes) -> Stored:
    """Of an ENTITY key: group (2), table (1), digest (32), timestamp (8)."""
    return Stored(key[3:35], keys.split_version(key)[1], record)


async def _scan_ordered(task: ScanTask, work: Work) -> ScanResult:
    """Keeps the best rows, and throws the worst away when they are twice as many as are wanted."""
    fits = fitting(task.kind, task.labels, task.where)
    best = _Best(task.limit + 1, work.budget.bytes)
    order = compile_order(task.order_by)
    for partition in sorted(set(task.partitions)):
        await work.settle_all(partition, past_holds=task.kind == VERTEX)
        for pairs in _in_any_order(task.access, task.kind, partition, work):
            for key, record in pairs:
                if fits(record):
                    place = order(properties_of(record)) + key[3:35]
                    if place > task.after:
                        best.add(place, key, record)
            await work.breathe()
            if work.exhausted:
                return best.result(work.scanned, task.limit, "scanned")
    return best.result(work.scanned, task.limit, None)


def _in_any_order(
    access: Access, kind: int, partition: int, work: Work
) -> Iterator[list[tuple[bytes, bytes]]]:
    if not access.label:
        begin = keys.table_prefix(group_of(partition), keys.ENTITY)
        for read, visible in work.batches(begin, keys.after(begin)):
            work.note(read, weight_of(visible))
            yield visible
        return
    for entries in entry_batches(access, kind, partition, work):
        found = (work.load(partition, key[-40:-8]) for key in entries)
        yield [pair for pair in found if pair is not None]


async def _scan_along_index(task: ScanTask, work: Work) -> ScanResult:
    """The index has the order of the query: each partition is read only as far as its rows are
    among the first of all."""
    result = ScanResult(0, [])
    streams: list[Iterator[Row | None]] = []
    heads: list[tuple[Row, int]] = []
    fits = fitting(task.kind, task.labels, task.where)
    for partition in sorted(set(task.partitions)):
        await work.settle_all(partition, past_holds=task.kind == VERTEX)
        (order,) = task.order_by
        stream = rows_in_order(task.access, task.kind, order, partition, task.after, work)
        streams.append(stream)
        row = await _next_fitting(stream, fits, work)
        if row is not None:
            heads.append((row, len(streams) - 1))
    heapify(heads)
    size = 0
    while heads and not work.exhausted:
        (_, key, record), number = heads[0]
        if len(result.rows) >= task.limit or size >= work.budget.bytes:
            result.more = True
            result.bound = "bytes" if len(result.rows) < task.limit else None
            break
        size += len(record)
        result.rows.append(_stored(key, record))
        row = await _next_fitting(streams[number], fits, work)
        if row is None:
            heappop(heads)
        else:
            heapreplace(heads, (row, number))
    if work.exhausted and not result.more:
        result.bound = "scanned"
    result.scanned = work.scanned
    return result


async def _next_fitting(
    stream: Iterator[Row | None], fits: Callable[[bytes], bool], work: Work
) -> Row | None:
    """The next row; None at the end, or when the budget is spent."""
    for row in stream:
        await work.breathe()
        if work.exhausted:
            return None
        if row is not None and fits(row[2]):
            return row
    return None


class _Best:
    """The rows with the smallest places, at most ``count`` of them and at most ``size_max`` bytes.

    ``ceiling`` is the smallest place that was ever thrown away: nothing at or above it comes back,
    so what is left is the beginning of the order without a gap.
    """

    def __init__(self, count: int, size_max: int) -> None:
        self._count = count
        self._size_max = size_max
        self._rows: list[tuple[bytes, bytes, bytes]] = []
        self._size = 0
        self._ceiling: bytes | None = None
        self._over_size = False

    def add(self, place: bytes, key: bytes, record: bytes) -> None:
        if self._ceiling is not None and place >= self._ceiling:
            return
        self._rows.append((place, key, record))
        self._size += len(record)
        if len(self._rows) >= 2 * self._count + PAUSE_AFTER or self._size > 2 * self._size_max:
            self._prune()

    def _prune(self) -> None:
        rows = self._rows
        rows.sort()
        size = keep = 0
        for _, _, record in rows[: self._count]:
            if size >= self._size_max:
                self._over_size = True
                break
            size += len(record)
            keep += 1
        if keep < len(rows):
            self._ceiling = rows[keep][0]
            del rows[keep:]
        self._size = size

    def result(self, scanned: int, limit: int, bound: str | None) -> ScanResult:
        self._prune()
        over_size = self._over_size and len(self._rows) <= limit
        return ScanResult(
            scanned,
            [_stored(key, record) for _, key, record in self._rows[:limit]],
            len(self._rows) > limit,
            bound or ("bytes" if over_size else None),
        )


async def count(task: CountTask, work: Work) -> CountResult:
    try:
        return await _count(task, work)
    except IndexRefused:
        refused = structs.replace(task, access=Access(label=task.access.label))
        result = await _count(refused, work)
        result.refused = True
        return result


async def _count(task: CountTask, work: Work) -> CountResult:
    """Where the index alone knows how many there are, 1 us each; where records are read, 8."""
    groups = _Groups(task.groups_max, work.budget.bytes)
    enter = _enter_entries if task.access.counts(task.group_by) else _enter_records
    for partition in sorted(set(task.partitions)):
        await work.settle_all(partition, past_holds=task.kind == VERTEX)
        for _ in enter(task, partition, groups, work):
            await work.breathe()
            bound = groups.bound or ("scanned" if work.exhausted else None)
            if bound is not None:
                # Of too many groups, or too large ones, nobody wants to see any.
                counted = [] if groups.bound else groups.counted()
                return CountResult(work.scanned, counted, bound)
    return CountResult(work.scanned, groups.counted())


class _Groups:
    """How many there are of each value."""

    def __init__(self, count_max: int, size_max: int) -> None:
        self._count_max = count_max
        self._size_max = size_max
        self._size = 0
        """Of the keys: each is about as large as its value."""
        self._counts: dict[bytes, int] = {}
        self._values: dict[bytes, Value] = {}

    def __contains__(self, key: bytes) -> bool:
        return key in self._counts

    def add(self, key: bytes, value: Value, count: int = 1) -> None:
        """``key``: of ``order_key``. Values that compare as equal are told as the first of them."""
        if key not in self._counts:
            if self.bound is not None:
                return
            self._values[key] = value
            self._size += len(key)
        self._counts[key] = self._counts.get(key, 0) + count

    def add_more(self, key: bytes, count: int) -> None:
        self._counts[key] += count

    @property
    def bound(self) -> str | None:
        """What the groups are too much for; more are not taken then."""
        if len(self._counts) > self._count_max:
            return "groups"
        return "bytes" if self._size > self._size_max else None

    def counted(self) -> list[tuple[Value, int]]:
        return [(self._values[key], self._counts[key]) for key in sorted(self._counts)]


def _enter_records(task: CountTask, partition: int, groups: _Groups, work: Work) -> Iterator[None]:
    """As all generators here: it never waits, and yields often."""
    fits = fitting(task.kind, task.labels, task.where)
    for pairs in _in_any_order(task.access, task.kind, partition, work):
        for _, record in pairs:
            if fits(record):
                for value in _groups(task.group_by, record):
                    groups.add(order_key(value), value)
        yield


def _enter_entries(task: CountTask, partition: int, groups: _Groups, work: Work) -> Iterator[None]:
    if task.group_by == task.access.property_name:
        yield from _enter_values(task, partition, groups, work)
        return
    for entries in entry_batches(task.access, task.kind, partition, work):
        if task.group_by is None:
            groups.add(_NULL, None, len(entries))
        else:
            for label, count in Counter(map(label_of, entries)).items():
                groups.add(order_key(label), label, count)
        yield


def _enter_values(task: CountTask, partition: int, groups: _Groups, work: Work) -> Iterator[None]:
    """One entity tells the value of all that are under one key, unless it is cut."""
    access = task.access
    for key, digests in values_forwards(access, task.kind, partition, b"", work):
        if len(key) >= VALUE_BYTES_MAX:
            for each in digests:
                value = value_of(access, partition, key, each, work)
                groups.add(order_key(value), value)
        elif digests and key in groups:
            groups.add_more(key, len(digests))
        elif digests:
            groups.add(key, value_of(access, partition, key, digests[0], work), len(digests))
        yield


def _groups(group_by: str | None, record: bytes) -> Sequence[Value]:
    """The groups that an entity belongs to: at least one."""
    if group_by is None:
        return (None,)
    content = decode_block(record_block(record))
    if group_by != GROUP_BY_LABEL:
        return (content["properties"].get(group_by),)
    if record_kind(record) == EDGE:
        return (content["label"],)
    return content["labels"] or (None,)
