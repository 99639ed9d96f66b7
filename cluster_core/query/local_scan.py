"""Tasks that scan whole partitions: the first rows in some order, and counts."""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Final

from cluster_core.graph.blocks import decode_block
from cluster_core.graph.records import EDGE, record_block, record_kind
from cluster_core.graph.values import Value
from cluster_core.query.ordering import compile_order, order_key
from cluster_core.query.plan import GROUP_BY_LABEL
from cluster_core.query.tasks import CountResult, CountTask, ScanResult, ScanTask, Stored
from cluster_core.query.work import (
    ALL_VERSIONS,
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


def scan_position(partition: int, digest: Digest) -> bytes:
    """Where an entity lies in a scan without ``order_by``."""
    return _pack_u16(partition) + digest


async def scan(task: ScanTask, work: Work) -> ScanResult:
    """The first rows after a position."""
    return await (_scan_ordered(task, work) if task.order_by else _scan_in_place(task, work))


async def _scan_in_place(task: ScanTask, work: Work) -> ScanResult:
    fits = fitting(task.kind, task.labels, task.where)
    result = ScanResult(0, [])
    size = 0
    for partition in sorted(set(task.partitions)):
        begin, end = _entities(partition, task.after)
        if begin == end:
            continue
        await work.settle(partition, None)
        for read, visible in work.batches(begin, end):
            await work.spend(read, weight_of(visible))
            for key, record in visible:
                if not fits(record):
                    continue
                if len(result.rows) >= task.limit or size >= work.budget.bytes:
                    result.more = True
                    result.bound = "bytes" if len(result.rows) < task.limit else None
                    result.scanned = work.scanned
                    return result
                size += len(record)
                result.rows.append(_stored(key, record))
            if visible and work.exhausted:
                result.bound = "scanned"
                result.stopped = scan_position(partition, _stored(*visible[-1]).digest)
                result.scanned = work.scanned
                return result
    result.scanned = work.scanned
    return result


def _entities(partition: int, after: bytes) -> tuple[bytes, bytes]:
    """The range of a partition's entities that lie after a position; it may be empty."""
    prefix = keys.table_prefix(group_of(partition), keys.ENTITY)
    end = keys.after(prefix)
    here = _pack_u16(partition)
    if not after or after[:2] < here:
        return prefix, end
    if after[:2] > here:
        return end, end
    return prefix + after[2:] + ALL_VERSIONS, end


def _stored(key: bytes, record: bytes) -> Stored:
    """Of an ENTITY key: group (2), table (1), digest (32), timestamp (8)."""
    return Stored(key[3:35], keys.split_version(key)[1], record)


async def _scan_ordered(task: ScanTask, work: Work) -> ScanResult:
    """Keeps the best rows, and throws the worst away when they are twice as many as are wanted."""
    fits = fitting(task.kind, task.labels, task.where)
    best = _Best(task.limit + 1, work.budget.bytes)
    order = compile_order(task.order_by)
    for partition in sorted(set(task.partitions)):
        await work.settle(partition, None)
        begin = keys.table_prefix(group_of(partition), keys.ENTITY)
        for read, visible in work.batches(begin, keys.after(begin)):
            for key, record in visible:
                if fits(record):
                    place = order(properties_of(record)) + key[3:35]
                    if place > task.after:
                        best.add(place, key, record)
            await work.spend(read, weight_of(visible))
            if work.exhausted:
                return best.result(work.scanned, task.limit, "scanned")
    return best.result(work.scanned, task.limit, None)


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
    fits = fitting(task.kind, task.labels, task.where)
    counts: dict[bytes, int] = {}
    values: dict[bytes, Value] = {}
    bound = None
    for partition in sorted(set(task.partitions)):
        begin = keys.table_prefix(group_of(partition), keys.ENTITY)
        await work.settle(partition, None)
        for read, visible in work.batches(begin, keys.after(begin)):
            for _, record in visible:
                if fits(record):
                    for value in _groups(task.group_by, record):
                        group = order_key(value)
                        counts[group] = counts.get(group, 0) + 1
                        values.setdefault(group, value)
            await work.spend(read, weight_of(visible))
            if len(counts) > task.groups_max:
                bound = "groups"
            elif work.exhausted:
                bound = "scanned"
            if bound is not None:
                break
        if bound is not None:
            break
    groups = [(values[group], counts[group]) for group in sorted(counts)]
    return CountResult(work.scanned, groups, bound)


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
