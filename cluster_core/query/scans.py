"""find_nodes, find_edges, count: all partitions asked at the same time, the results merged."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from cluster_core.errors import HistoryCollected, InvalidRequest, TooLarge
from cluster_core.graph.entities import Edge, Entity
from cluster_core.graph.records import EDGE, VERTEX
from cluster_core.graph.values import Value
from cluster_core.query.cursor import encode_cursor, position_of
from cluster_core.query.gather import Gather, decode_rows, in_chunks
from cluster_core.query.local_scan import scan_position
from cluster_core.query.ordering import compile_order, order_key
from cluster_core.query.plan import Count, FindEdges, FindNodes
from cluster_core.query.planner import choose_access
from cluster_core.query.predicates import encode_where
from cluster_core.query.results import Answer, CountRow
from cluster_core.query.tasks import Access, CountResult, CountTask, ScanResult, ScanTask
from cluster_core.query.work import PAUSE_AFTER

__all__ = ["count", "find"]


class _Found(NamedTuple):
    place: bytes
    """Where the row stands in the order of the query; no two rows stand at one."""
    entity: Entity
    size: int


async def find(query: FindNodes | FindEdges, gather: Gather) -> Answer:
    """One page. What a node holds back lies behind its last row, so rows of others that lie
    behind that wait for the next page."""
    place_of = _placing(query, gather)
    after = await _begin(query, gather)
    results = await _scan_all(query, gather, after)
    found: list[_Found] = []
    horizons: list[bytes] = []
    for result in results:
        placed: list[_Found] = []
        for chunk in in_chunks(result.rows, PAUSE_AFTER):
            entities = await decode_rows(chunk)
            placed += [
                _Found(place_of(entity), entity, len(row.record))
                for entity, row in zip(entities, chunk, strict=True)
            ]
        found += placed
        if result.bound == "scanned":
            horizons.append(result.stopped)
        elif result.more or result.bound is not None:
            horizons.append(placed[-1].place)
    bound = _first_bound(results)
    if query.order_by and bound == "scanned":
        # The best rows of those that were looked at; there is no place to go on from.
        page, _ = _page(found, query.limit, gather.limits.query_bytes_max)
        return Answer(rows=[each.entity for each in page], bound=bound)
    horizon = min(horizons) if horizons else None
    ready = [each for each in found if horizon is None or each.place <= horizon]
    page, cut = _page(ready, query.limit, gather.limits.query_bytes_max)
    answer = Answer(rows=[each.entity for each in page])
    if cut or horizon is not None:
        last = _position(page[-1].entity, gather) if page else b""
        if not cut and horizon is not None and not query.order_by:
            last = horizon
        answer.cursor = encode_cursor(query, gather.point.timestamp, last)
        if len(page) < query.limit:
            answer.bound = bound or "bytes"
    return answer


def _page(found: list[_Found], limit: int, size_max: int) -> tuple[list[_Found], bool]:
    """The first rows, and whether there were more."""
    found.sort(key=lambda each: each.place)
    size = 0
    for index, each in enumerate(found):
        if index >= limit or size >= size_max:
            return found[:index], True
        size += each.size
    return found, False


def _first_bound(results: list[ScanResult]) -> str | None:
    bounds = [result.bound for result in results if result.bound is not None]
    return "scanned" if "scanned" in bounds else (bounds[0] if bounds else None)


def _placing(query: FindNodes | FindEdges, gather: Gather) -> Callable[[Entity], bytes]:
    if not query.order_by:
        return lambda entity: _position(entity, gather)
    order = compile_order(query.order_by)
    return lambda entity: order(entity.properties) + entity.digest


def _position(entity: Entity, gather: Gather) -> bytes:
    home = gather.home(entity.source if isinstance(entity, Edge) else entity.digest)
    return scan_position(home, entity.digest)


async def _begin(query: FindNodes | FindEdges, gather: Gather) -> bytes:
    """The place after which the page begins.

    A cursor names an entity, whatever the order: the key that places it can be as large as its
    properties, and is computed anew from the snapshot.
    """
    position = position_of(query, gather.point.timestamp)
    if position is None or not query.order_by:
        return position or b""
    partition, digest = int.from_bytes(position[:2], "big"), position[2:]
    if len(digest) != 32 or partition >= gather.host.partition_count:
        why = "not a cursor of this database"
        raise InvalidRequest(f"cursor: {why}", errors=[{"where": "cursor", "why": why}])
    (stored,) = await gather.records([digest], partitions=[partition])
    if stored is None or not stored.record:
        raise HistoryCollected("the snapshot that this cursor reads is no longer kept")
    (entity,) = await decode_rows([stored])
    return compile_order(query.order_by)(entity.properties) + digest


async def _scan_all(query: FindNodes | FindEdges, gather: Gather, after: bytes) -> list[ScanResult]:
    if isinstance(query, FindNodes):
        kind, labels = VERTEX, list(query.labels)
    else:
        kind, labels = EDGE, [] if query.label is None else [query.label]
    where, order_by, limit = encode_where(query.where), query.order_by, query.limit
    access = _access(query, gather)
    asked = await gather.ask_each(
        {
            node: ScanTask(partitions, kind, labels, where, order_by, limit, after, access)
            for node, partitions in gather.every_partition().items()
        },
        ScanResult,
    )
    _note_index(gather, access, any(result.refused for _, result in asked))
    return [result for _, result in asked]


def _access(query: FindNodes | FindEdges | Count, gather: Gather) -> Access:
    timestamp = gather.point.timestamp
    usable = [one for one in gather.host.indexes() if one.since <= timestamp]
    return choose_access(query, usable)


def _note_index(gather: Gather, access: Access, refused: bool) -> None:
    gather.index = access.label if refused else access.name


async def count(query: Count, gather: Gather) -> Answer:
    """A truncated count is a lower bound."""
    kind = VERTEX if query.of == "nodes" else EDGE
    labels = list(query.labels) if query.label is None else [query.label]
    groups_max = gather.limits.query_rows_max
    where, group_by = encode_where(query.where), query.group_by
    access = _access(query, gather)
    asked = await gather.ask_each(
        {
            node: CountTask(partitions, kind, labels, where, group_by, groups_max, access)
            for node, partitions in gather.every_partition().items()
        },
        CountResult,
    )
    _note_index(gather, access, any(result.refused for _, result in asked))
    bounds = {result.bound for _, result in asked}
    counts: dict[bytes, tuple[Value, int]] = {}
    for _, result in asked:
        for chunk in in_chunks(result.groups, PAUSE_AFTER):
            for value, number in chunk:
                key = order_key(value)
                counts[key] = (value, counts.get(key, (value, 0))[1] + number)
            await asyncio.sleep(0)
    if "groups" in bounds or len(counts) > groups_max:
        detail = f"group_by makes more than {groups_max} groups"
        raise TooLarge.beyond("query_rows_max", groups_max, detail)
    size_max = gather.limits.query_bytes_max
    if "bytes" in bounds or sum(map(len, counts)) > size_max:
        detail = f"group_by makes groups of more than {size_max} bytes"
        raise TooLarge.beyond("query_bytes_max", size_max, detail)
    bound = "scanned" if "scanned" in bounds else None
    if query.group_by is None:
        return Answer(rows=[CountRow(count=sum(n for _, n in counts.values()))], bound=bound)
    ordered = sorted(counts.items(), key=lambda item: (-item[1][1], item[0]))
    return Answer(rows=[CountRow(count=n, group=value) for _, (value, n) in ordered], bound=bound)
