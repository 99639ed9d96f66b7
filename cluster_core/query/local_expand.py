"""The task that follows edges: the inner loop of traversals, paths and pages of neighbours."""

from __future__ import annotations

from struct import Struct
from typing import Final

from cluster_core.graph.values import Value
from cluster_core.ports import DATA
from cluster_core.query.predicates import Predicate, predicate
from cluster_core.query.tasks import Adjacency, ExpandResult, ExpandTask, as_weight
from cluster_core.query.work import Work, properties_of
from cluster_core.storage import keys
from cluster_core.types import Digest, group_of

__all__ = ["expand"]

_pack_u16: Final = Struct(">H").pack
_pack_u64: Final = Struct(">Q").pack


async def expand(task: ExpandTask, work: Work) -> ExpandResult:
    await work.settle_each(task.partitions, task.vertices)
    result = await _entries(task, work)
    if await _settle_far_ends(task, work, result):
        result = await _entries(task, work)
    if task.outward and (task.where or task.weight is not None):
        await _read_out_records(task, work, result.outs)
    result.scanned = work.scanned
    return result


async def _settle_far_ends(task: ExpandTask, work: Work, result: ExpandResult) -> bool:
    """Wait where an edge was met that goes with the vertex at its other end."""
    waited = False
    for partition in sorted(set(task.partitions)):
        if work.host.detaching(partition):
            waited |= await work.settle_ends(partition, (*result.ins.fars, *result.outs.fars))
    return waited


async def _entries(task: ExpandTask, work: Work) -> ExpandResult:
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
    return group + position[:1] + vertex + position[1:] + keys.ALL_VERSIONS


def _cut(
    result: ExpandResult, counts: dict[bytes, int], index: int, last: bytes, bound: str
) -> ExpandResult:
    result.ins.counts.append(counts[keys.IN])
    result.outs.counts.append(counts[keys.OUT])
    result.next = index
    result.after = last[2:3] + last[35:]
    result.bound = bound or None
    return result


async def _read_out_records(task: ExpandTask, work: Work, outs: Adjacency) -> None:
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
                _keep_entry(kept, outs, place, properties_of(stored.record), holds, task.weight)
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
        kept.weights.append(as_weight(properties.get(weight)))
