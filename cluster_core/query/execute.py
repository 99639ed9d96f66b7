"""execute: the entry of the query engine."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import zip_longest
from typing import NamedTuple

from cluster_core.config import LimitConfig
from cluster_core.errors import NotFound, OutcomeUnknown
from cluster_core.graph.cid import cid_text
from cluster_core.graph.entities import Edge, Entity
from cluster_core.graph.records import EDGE, VERTEX, decode_record, record_block
from cluster_core.query.cursor import encode_cursor, position_of
from cluster_core.query.gather import Gather, Hop, decode_rows, in_chunks
from cluster_core.query.host import QueryHost, ReadPoint
from cluster_core.query.paths import shortest_path
from cluster_core.query.plan import (
    Blocks,
    Count,
    FindEdges,
    FindNodes,
    Get,
    History,
    Neighbours,
    Query,
    ShortestPath,
    Traverse,
    check_query,
)
from cluster_core.query.results import Answer, BlockRow, QueryResult, Row, Statistics, VersionRow
from cluster_core.query.scans import count, find
from cluster_core.query.tasks import (
    ExpandResult,
    HistoryResult,
    HistoryTask,
    Stored,
)
from cluster_core.query.traverse import traverse
from cluster_core.query.work import PAUSE_AFTER
from cluster_core.storage import keys
from cluster_core.types import Digest

__all__ = ["execute"]


async def execute(
    query: Query, host: QueryHost, point: ReadPoint, limits: LimitConfig, deadline: float
) -> QueryResult:
    """Answer ``query`` from the snapshot ``point``; ``deadline`` is a time of the event loop.

    A query with a cursor must come with the point that ``cursor_timestamp`` names. Raises
    InvalidRequest, NotFound (neighbours, history), TooLarge (a bound was met and the rows so
    far would mislead), OutcomeUnknown at the deadline, ReadAgain (execute once more, at its time),
    and what the host raises. Cancelling the call ends the work on this node at its next pause.
    """
    check_query(query, limits)
    begin_s = host.steady_s()
    gather = Gather(host, point, limits, deadline)
    try:
        async with asyncio.timeout_at(deadline):
            answer = await _answer(query, gather)
    except TimeoutError:
        detail = "the query's timeout_ms was over before its answer was complete"
        raise OutcomeUnknown(detail, bound="timeout_ms") from None
    return QueryResult(
        rows=answer.rows,
        timestamp=point.timestamp,
        statistics=Statistics(
            partitions=gather.partitions,
            cluster_nodes=gather.cluster_nodes,
            scanned=gather.scanned,
            elapsed_ms=(host.steady_s() - begin_s) * 1000,
            index=gather.index,
        ),
        cursor=answer.cursor,
        truncated=answer.bound is not None,
        bound=answer.bound,
        found=answer.found,
    )


async def _answer(query: Query, gather: Gather) -> Answer:
    match query:
        case Get():
            return await _get(query, gather)
        case FindNodes() | FindEdges():
            return await find(query, gather)
        case Count():
            return await count(query, gather)
        case Traverse():
            return await traverse(query, gather)
        case ShortestPath():
            return await shortest_path(query, gather)
        case Neighbours():
            return await _neighbours(query, gather)
        case History():
            return await _history(query, gather)
        case Blocks():
            return await _blocks(query, gather)


# Entities


async def _get(query: Get, gather: Gather) -> Answer:
    """First where a vertex (or an edge of the hinted source) would be, then everywhere."""
    asked = list(dict.fromkeys(query.cids))
    known: dict[Digest, Stored] = {}
    if not query.exact:
        await _get_at_home(asked, None, gather, known)
        if query.source is not None:
            await _get_at_home(asked, gather.home(query.source), gather, known)
    unknown = [digest for digest in asked if digest not in known]
    all_located = await _get_anywhere(unknown, query.exact, gather, known)
    # A deletion that is known is not looked for elsewhere, and is no row.
    live = [digest for digest in query.cids if digest in known and known[digest].record]
    shown = _as_many_as_fit(live, known, gather)
    answer = Answer(rows=list(await decode_rows(known[digest] for digest in shown)))
    for place, digest in enumerate(shown):
        answer.found.setdefault(digest, place)
    answer.bound = None if all_located and len(shown) == len(live) else "bytes"
    return answer


async def _get_at_home(
    asked: Sequence[Digest], partition: int | None, gather: Gather, known: dict[Digest, Stored]
) -> None:
    digests = [digest for digest in asked if digest not in known]
    partitions = None if partition is None else [partition] * len(digests)
    records = await gather.records(digests, partitions=partitions)
    known.update(
        (digest, stored) for digest, stored in zip(digests, records, strict=False) if stored
    )


async def _get_anywhere(
    digests: Sequence[Digest], exact: bool, gather: Gather, known: dict[Digest, Stored]
) -> bool:
    """False where not all of them could be looked for."""
    located, is_whole = await gather.locate(digests, exact=exact)
    known.update((digest, one.version) for digest, one in located.items())
    return is_whole


def _as_many_as_fit(
    digests: Sequence[Digest], known: dict[Digest, Stored], gather: Gather
) -> Sequence[Digest]:
    size = 0
    for place, digest in enumerate(digests):
        if size >= gather.limits.query_bytes_max:
            return digests[:place]
        size += len(known[digest].record)
    return digests


class _Named(NamedTuple):
    """An entity's newest or named version, and where it lives."""

    partition: int
    version: Stored


async def _find(digest: Digest, gather: Gather) -> _Named:
    (stored,) = await gather.records([digest])
    if stored is not None:
        return _Named(gather.home(digest), stored)
    located = (await gather.locate([digest]))[0].get(digest)
    if located is None:
        cid = cid_text(digest)
        raise NotFound(f"nothing here has the CID {cid}", cid=cid)
    return _Named(located.partition, located.version)


async def _history(query: History, gather: Gather) -> Answer:
    named = await _find(query.digest, gather)
    task = HistoryTask(named.partition, named.version.digest, query.limit)
    result = await gather.ask(gather.node_of(named.partition), task, HistoryResult)
    rows: list[Row] = []
    for chunk in in_chunks(result.versions, PAUSE_AFTER):
        rows += [VersionRow(timestamp=each.timestamp, entity=_entity(each)) for each in chunk]
        await asyncio.sleep(0)
    return Answer(rows=rows, bound=result.bound)


def _entity(stored: Stored) -> Entity | None:
    if not stored.record:
        return None
    return decode_record(stored.digest, stored.timestamp, stored.record)


async def _blocks(query: Blocks, gather: Gather) -> Answer:
    """First where each is said to be, or where it would be as the first version of a vertex."""
    asked = dict(zip_longest(query.cids, query.sources))
    places = [gather.home(source or digest) for digest, source in asked.items()]
    records = await gather.records(list(asked), partitions=places, exact=True)
    looked_for = list(asked)[: len(records)]
    known = {one: stored for one, stored in zip(looked_for, records, strict=True) if stored}
    unknown = [one for one in looked_for if one not in known and asked[one] is None]
    all_located = await _get_anywhere(unknown, True, gather, known)
    found = [digest for digest in looked_for if digest in known]
    shown = _as_many_as_fit(found, known, gather)
    is_whole = all_located and len(records) == len(asked) and len(shown) == len(found)
    rows: list[Row] = [BlockRow(digest=one, block=record_block(known[one].record)) for one in shown]
    return Answer(rows=rows, bound=None if is_whole else "bytes")


# Edges of one vertex


async def _neighbours(query: Neighbours, gather: Gather) -> Answer:
    """Reads the page and one entry more, however many edges there are."""
    after = position_of(query, gather.point.timestamp) or b""
    if not all(await gather.marks([query.vertex], VERTEX)):
        cid = cid_text(query.vertex)
        raise NotFound(f"there is no node {cid}", cid=cid)
    labels = None if query.label is None else (query.label,)
    hop = Hop(direction=query.direction, labels=labels)
    node = gather.node_of(gather.home(query.vertex))
    result = await gather.expand_some(node, [query.vertex], hop, query.limit, after)
    edges, over_size = await _edges_of(result, query.vertex, gather)
    answer = Answer(rows=list(edges), bound="bytes" if over_size else result.bound)
    position = _position(edges[-1], query) if over_size else result.after
    if position:
        answer.cursor = encode_cursor(query, gather.point.timestamp, position)
    return answer


def _position(edge: Entity, query: Neighbours) -> bytes:
    """Where the entry of an edge is in the order of the page."""
    assert isinstance(edge, Edge)
    outward = edge.source == query.vertex and query.direction != "in"
    table = keys.OUT if outward else keys.IN
    return table + edge.label.encode() + b"\0" + edge.digest


async def _edges_of(
    result: ExpandResult, vertex: Digest, gather: Gather
) -> tuple[list[Entity], bool]:
    """The edges, and whether there was no room for all of them."""
    home = gather.home
    digests = result.ins.edges + result.outs.edges
    partitions = list(map(home, result.ins.fars)) + [home(vertex)] * len(result.outs.edges)
    records = await gather.records(digests, kind=EDGE, partitions=partitions)
    live = [stored for stored in records if stored is not None and stored.record]
    return await decode_rows(live), len(records) < len(digests)
