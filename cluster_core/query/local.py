"""Tasks, run over the local engine.

Every task first waits until the replicas that it reads are as far as the read point says, and until
the transactions in its way are decided; from then on nothing at or below the read's timestamp can
change, so all of its reads, also those after a pause, belong to one snapshot.

The loops let the event loop run every :data:`PAUSE_AFTER` stored pairs, about 2 ms, so a query
never holds up the node's Raft groups, and it ends there when it is cancelled or its time is over.
They read the engine's batches themselves instead of through ``storage/mvcc.py``, because an
iterator that passes over many invisible versions could not pause.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from struct import Struct
from typing import Any, Final

from cluster_core.errors import OutcomeUnknown
from cluster_core.graph.blocks import decode_block
from cluster_core.graph.records import EDGE, record_block, record_kind, record_version
from cluster_core.graph.values import Value
from cluster_core.ports import DATA
from cluster_core.query.host import QueryHost, ReadAgain, ReadPoint
from cluster_core.query.ordering import compile_order, order_key
from cluster_core.query.plan import GROUP_BY_LABEL
from cluster_core.query.predicates import Predicate, predicate
from cluster_core.query.tasks import (
    Adjacency,
    Again,
    Budget,
    CountResult,
    CountTask,
    ExpandResult,
    ExpandTask,
    HistoryResult,
    HistoryTask,
    LoadResult,
    LoadTask,
    Located,
    LocateResult,
    LocateTask,
    Result,
    ScanResult,
    ScanTask,
    Stored,
    Task,
    decode_request,
    encode_result,
)
from cluster_core.storage import keys
from cluster_core.storage.mvcc import read_at, versions
from cluster_core.types import Digest, group_of

__all__ = ["PAUSE_AFTER", "run_task", "run_task_bytes", "scan_position"]

PAUSE_AFTER: Final = 500
"""Stored pairs between two pauses: at 3 to 5 us for a record that is decoded, some 2 ms."""
_PAIR_BYTES: Final = 2048
"""A pair counts once more for each of these: a record of 1 MiB is a pause of its own."""

_pack_u16: Final = Struct(">H").pack
_pack_u64: Final = Struct(">Q").pack
_ALL_VERSIONS: Final = b"\xff" * 9
"""Appended to a user key: above all its versions."""


async def run_task_bytes(host: QueryHost, request: bytes) -> bytes:
    """The serving side of :meth:`QueryHost.run_remote`. Raises a KotobaError."""
    asked = decode_request(request)
    try:
        async with asyncio.timeout(asked.timeout_ms / 1000):
            return encode_result(await run_task(asked.task, host, asked.point, asked.budget))
    except ReadAgain as again:
        return encode_result(Again(again.timestamp))
    except TimeoutError:
        raise OutcomeUnknown("the query's timeout_ms is over", bound="timeout_ms") from None


async def run_task(task: Task, host: QueryHost, point: ReadPoint, budget: Budget) -> Result:
    """Run ``task`` here. Raises ReadAgain, and what the host raises when it cannot serve."""
    for partition in partitions_of(task):
        index = point.applied.get(partition)
        if index is not None:
            await host.wait_applied(partition, index)
    work = _Work(host, point, budget)
    match task:
        case LoadTask():
            return await _load(task, work)
        case LocateTask():
            return await _locate(task, work)
        case ScanTask():
            return await _scan(task, work)
        case CountTask():
            return await _count(task, work)
        case ExpandTask():
            return await _expand(task, work)
        case HistoryTask():
            return await _history(task, work)


def partitions_of(task: Task) -> list[int]:
    """The partitions that ``task`` reads, each once, in ascending order."""
    if isinstance(task, HistoryTask):
        return [task.partition]
    return sorted(set(task.partitions))


def scan_position(partition: int, digest: Digest) -> bytes:
    """Where an entity lies in a scan without ``order_by``."""
    return _pack_u16(partition) + digest


class _Work:
    """What one task has spent, and what it may."""

    __slots__ = ("budget", "engine", "host", "point", "scanned", "timestamp", "unpaused")

    def __init__(self, host: QueryHost, point: ReadPoint, budget: Budget) -> None:
        self.host = host
        self.engine = host.engine
        self.point = point
        self.timestamp = point.timestamp
        self.budget = budget
        self.scanned = 0
        self.unpaused = 0

    async def settle(self, partition: int, digests: Sequence[Digest] | None) -> None:
        if not self.point.skip_intents:
            await self.host.settle(partition, self.timestamp, digests)

    async def settle_each(self, partitions: list[int], digests: list[Digest]) -> None:
        """``digests`` lie in ``partitions``, place by place."""
        if self.point.skip_intents:
            return
        grouped: dict[int, list[Digest]] = {}
        for partition, digest in zip(partitions, digests, strict=True):
            grouped.setdefault(partition, []).append(digest)
        for partition in sorted(grouped):
            await self.host.settle(partition, self.timestamp, grouped[partition])

    async def spend(self, pairs: int, weight: int = 0) -> None:
        """Count pairs that were read, and pause when it is time."""
        self.scanned += pairs
        self.unpaused += pairs + weight // _PAIR_BYTES
        if self.unpaused >= PAUSE_AFTER:
            self.unpaused = 0
            await asyncio.sleep(0)

    @property
    def exhausted(self) -> bool:
        return self.scanned >= self.budget.scanned

    def read(self, partition: int, digest: Digest) -> Stored | None:
        """The entity at the read's timestamp; a deletion has no record."""
        found = read_at(self.engine, keys.entity(group_of(partition), digest), self.timestamp)
        return None if found is None else Stored(digest, *found)

    def batches(self, begin: bytes, end: bytes) -> Iterator[tuple[int, list[tuple[bytes, bytes]]]]:
        """What a read sees of ``[begin, end)``, as the engine hands it over.

        Yields how many pairs were read, and the visible ones of them, with their timestamps.
        """
        oldest = _pack_u64(keys.TIMESTAMP_MAX - self.timestamp)
        scan = self.engine.scan(DATA, begin, end)
        done = b""
        while pairs := scan.fetch():
            visible = []
            for pair in pairs:
                key, value = pair
                user_key = key[:-8]
                if user_key == done or key[-8:] < oldest:
                    continue
                done = user_key
                if value:
                    visible.append(pair)
            yield len(pairs), visible


# Entities by name


async def _load(task: LoadTask, work: _Work) -> LoadResult:
    await work.settle_each(task.partitions, task.digests)
    fits = _fit(task.kind, [], task.where)
    result = LoadResult(0)
    size = 0
    for partition, digest in zip(task.partitions, task.digests, strict=True):
        stored = work.read(partition, digest)
        if stored is not None and stored.record and not fits(stored.record):
            stored = None
        size += _add_wanted(task, result, stored)
        await work.spend(1, 0 if stored is None else len(stored.record))
        if size >= work.budget.bytes:
            break
    result.scanned = work.scanned
    return result


def _add_wanted(task: LoadTask, result: LoadResult, stored: Stored | None) -> int:
    """Returns how many bytes the result grew by."""
    if task.want == "records":
        result.records.append(stored)
        return 0 if stored is None else len(stored.record)
    there = stored is not None and bool(stored.record)
    if task.want == "marks":
        result.marks.append(there)
        return 0
    assert task.weight is not None
    result.weights.append(
        _properties(stored.record).get(task.weight) if stored is not None and there else None
    )
    return 0


def _properties(record: bytes) -> dict[str, Value]:
    properties: dict[str, Value] = decode_block(record_block(record))["properties"]
    return properties


async def _locate(task: LocateTask, work: _Work) -> LocateResult:
    """An entity lives in one partition, so what one of them knows is not looked for in the next."""
    found: list[Located] = []
    missing = list(dict.fromkeys(task.digests))
    for partition in sorted(set(task.partitions)):
        await work.settle(partition, None if task.thorough else missing)
        missing = await _locate_in(partition, missing, task.exact, work, found)
    return LocateResult(work.scanned, found)


async def _locate_in(
    partition: int, digests: list[Digest], exact: bool, work: _Work, found: list[Located]
) -> list[Digest]:
    """Appends to ``found``; returns what this partition does not know."""
    missing = []
    for digest in digests:
        stored = work.read(partition, digest)
        await work.spend(1)
        if exact and stored is not None:
            stored = await _version(partition, digest, digest, work)
        elif stored is None:
            entity = work.engine.get(DATA, keys.version(group_of(partition), digest))
            await work.spend(1)
            if entity is not None:
                stored = await _version(partition, entity, digest, work)
        if stored is None:
            missing.append(digest)
        else:
            found.append(Located(digest, partition, stored))
    return missing


async def _version(partition: int, entity: Digest, version: Digest, work: _Work) -> Stored | None:
    """The version ``version`` of ``entity``, unless it is newer than the read or collected."""
    for timestamp, record in versions(work.engine, keys.entity(group_of(partition), entity)):
        await work.spend(1)
        if record and record_version(record) == version:
            return Stored(entity, timestamp, record) if timestamp <= work.timestamp else None
    return None


async def _history(task: HistoryTask, work: _Work) -> HistoryResult:
    await work.settle(task.partition, [task.digest])
    result = HistoryResult(0, [])
    size = 0
    key = keys.entity(group_of(task.partition), task.digest)
    for timestamp, record in versions(work.engine, key):
        await work.spend(1, len(record))
        if timestamp > work.timestamp:
            continue
        if len(result.versions) >= task.limit:
            result.bound = "limit"
            break
        size += len(record)
        if size > work.budget.bytes and result.versions:
            result.bound = "bytes"
            break
        result.versions.append(Stored(task.digest, timestamp, record))
    result.scanned = work.scanned
    return result


# Scans


def _fit(kind: int | None, labels: list[str], where: bytes) -> Callable[[bytes], bool]:
    """Whether a record is of this kind, has these labels and satisfies the condition."""
    holds = predicate(where)
    if not labels and holds is None:
        return lambda record: kind is None or record_kind(record) == kind
    wanted = frozenset(labels)
    # A record that does not contain the bytes of a label need not be decoded to be refused.
    needles = [label.encode() for label in sorted(wanted)]

    def fits(record: bytes) -> bool:
        if kind is not None and record[0] != kind:
            return False
        for needle in needles:
            if needle not in record:
                return False
        content = decode_block(record_block(record))
        if not _has_labels(record[0], wanted, content):
            return False
        return holds is None or holds(content["properties"])

    return fits


def _has_labels(kind: int, wanted: frozenset[str], content: dict[str, Any]) -> bool:
    if kind == EDGE:
        return all(label == content["label"] for label in wanted)
    return wanted.issubset(content["labels"])


async def _scan(task: ScanTask, work: _Work) -> ScanResult:
    if task.order_by:
        return await _scan_ordered(task, work)
    fits = _fit(task.kind, task.labels, task.where)
    result = ScanResult(0, [])
    size = 0
    for partition in sorted(set(task.partitions)):
        begin, end = _entities(partition, task.after)
        if begin is None:
            continue
        await work.settle(partition, None)
        for read, visible in work.batches(begin, end):
            for key, record in visible:
                if not fits(record):
                    continue
                if len(result.rows) >= task.limit:
                    result.more = True
                elif size >= work.budget.bytes:
                    result.bound = "bytes"
                else:
                    size += len(record)
                    result.rows.append(_stored(key, record))
                    continue
                result.scanned = work.scanned
                return result
            await work.spend(read, _weight(visible))
            if visible and work.exhausted:
                result.bound = "scanned"
                result.stopped = scan_position(partition, visible[-1][0][3:35])
                result.scanned = work.scanned
                return result
    result.scanned = work.scanned
    return result


def _entities(partition: int, after: bytes) -> tuple[bytes | None, bytes]:
    """The entities of a partition that lie after a position; None when there are none."""
    prefix = keys.table_prefix(group_of(partition), keys.ENTITY)
    end = keys.after(prefix)
    if not after or after[:2] < _pack_u16(partition):
        return prefix, end
    if after[:2] > _pack_u16(partition):
        return None, end
    return prefix + after[2:] + _ALL_VERSIONS, end


def _stored(key: bytes, record: bytes) -> Stored:
    """Of an ENTITY key: group (2), table (1), digest (32), timestamp (8)."""
    return Stored(key[3:35], keys.split_version(key)[1], record)


def _weight(visible: list[tuple[bytes, bytes]]) -> int:
    return sum(len(value) for _, value in visible)


async def _scan_ordered(task: ScanTask, work: _Work) -> ScanResult:
    """Keeps the best rows, and throws the worst away when they are twice as many as are wanted."""
    fits = _fit(task.kind, task.labels, task.where)
    best = _Best(task.limit + 1, work.budget.bytes)
    order = compile_order(task.order_by)
    for partition in sorted(set(task.partitions)):
        await work.settle(partition, None)
        begin = keys.table_prefix(group_of(partition), keys.ENTITY)
        for read, visible in work.batches(begin, keys.after(begin)):
            for key, record in visible:
                if fits(record):
                    place = order(_properties(record)) + key[3:35]
                    if place > task.after:
                        best.add(place, key, record)
            await work.spend(read, _weight(visible))
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


async def _count(task: CountTask, work: _Work) -> CountResult:
    fits = _fit(task.kind, task.labels, task.where)
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
            await work.spend(read, _weight(visible))
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


# Adjacency


async def _expand(task: ExpandTask, work: _Work) -> ExpandResult:
    await work.settle_each(task.partitions, task.vertices)
    result = await _entries(task, work)
    if task.outward and (task.where or task.weight is not None):
        await _read_out_records(task, work, result.outs)
    result.scanned = work.scanned
    return result


async def _entries(task: ExpandTask, work: _Work) -> ExpandResult:
    """The hot loop of traversals: 1,000 vertices with 10 edges each in about 10 ms.

    Far end and edge are in the entry itself, so no record is read.
    """
    oldest = _pack_u64(keys.TIMESTAMP_MAX - work.timestamp)
    result = ExpandResult(0, Adjacency([], [], [], []), Adjacency([], [], [], []))
    room = task.limit
    spans = _spans(task)
    loops_twice = task.inward and task.outward
    open_scan = work.engine.scan
    for index, (partition, vertex) in enumerate(zip(task.partitions, task.vertices, strict=True)):
        group = _pack_u16(group_of(partition))
        after = _after(group, vertex, task.after) if index == 0 and task.after else b""
        counts = {keys.IN: 0, keys.OUT: 0}
        last = b""
        for table, label in spans:
            begin = group + table + vertex + label
            end = begin[:-1] + b"\1" if label else begin + b"\xff"  # no label has this byte
            if after >= end:
                continue
            target = result.ins if table == keys.IN else result.outs
            fars, edges = target.fars, target.edges
            before = len(fars)
            scan = open_scan(DATA, max(begin, after), end)
            done = b""
            while pairs := scan.fetch():
                for key, far in pairs:
                    user_key = key[:-8]
                    if user_key == done or key[-8:] < oldest:
                        continue
                    done = user_key
                    if not far or (loops_twice and table == keys.IN and far == vertex):
                        continue  # a tombstone, or a self-loop, which OUT tells as well
                    if not room:
                        counts[table] += len(fars) - before
                        return _cut(result, counts, index, last, "")
                    room -= 1
                    last = user_key
                    fars.append(far)
                    edges.append(user_key[-32:])
                await work.spend(len(pairs))
                if work.exhausted:
                    counts[table] += len(fars) - before
                    return _cut(result, counts, index, last, "scanned")
            counts[table] += len(fars) - before
        result.ins.counts.append(counts[keys.IN])
        result.outs.counts.append(counts[keys.OUT])
    return result


def _spans(task: ExpandTask) -> list[tuple[bytes, bytes]]:
    """The tables and labels to read, in the order of their keys."""
    tables = [keys.IN] * task.inward + [keys.OUT] * task.outward
    labels = [b""]
    if task.labels is not None:
        labels = [label.encode() + b"\0" for label in sorted(set(task.labels))]
    return [(table, label) for table in tables for label in sorted(labels)]


def _after(group: bytes, vertex: Digest, position: bytes) -> bytes:
    """The smallest key after an entry, from ``table · label · 0 · edge``."""
    return group + position[:1] + vertex + position[1:] + _ALL_VERSIONS


def _cut(
    result: ExpandResult, counts: dict[bytes, int], index: int, last: bytes, bound: str
) -> ExpandResult:
    result.ins.counts.append(counts[keys.IN])
    result.outs.counts.append(counts[keys.OUT])
    result.next = index
    result.after = last[2:3] + last[35:]
    result.bound = bound or None
    return result


async def _read_out_records(task: ExpandTask, work: _Work, outs: Adjacency) -> None:
    """Filter the entries of OUT by their edges' records, which are in the same partition."""
    holds = predicate(task.where)
    places = [p for p, n in zip(task.partitions, outs.counts, strict=False) for _ in range(n)]
    await work.settle_each(places, outs.edges)
    kept = Adjacency([], [], [], [])
    at = 0
    for count in outs.counts:
        begin = len(kept.edges)
        for place in range(at, at + count):
            stored = work.read(places[place], outs.edges[place])
            await work.spend(1)
            if stored is not None and stored.record:
                _keep_entry(kept, outs, place, _properties(stored.record), holds, task.weight)
        kept.counts.append(len(kept.edges) - begin)
        at += count
    outs.counts, outs.fars, outs.edges, outs.weights = (
        kept.counts,
        kept.fars,
        kept.edges,
        kept.weights,
    )


def _keep_entry(
    kept: Adjacency,
    entries: Adjacency,
    place: int,
    properties: dict[str, Value],
    holds: Predicate | None,
    weight: str | None,
) -> None:
    if holds is not None and not holds(properties):
        return
    kept.fars.append(entries.fars[place])
    kept.edges.append(entries.edges[place])
    if weight is not None:
        kept.weights.append(properties.get(weight))
