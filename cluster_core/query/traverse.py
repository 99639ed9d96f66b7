"""traverse: breadth first, a hop at a time, the frontier of each hop grouped by cluster node.

Adjacency entries name the far end, so a hop without conditions reads no record; those of the rows
are read once, at the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, MutableMapping, Sequence
from heapq import nsmallest
from typing import Final, NamedTuple

from cluster_core.graph.records import EDGE, VERTEX
from cluster_core.query.gather import Entries, Gather, Hop, as_edge, as_vertex, in_chunks
from cluster_core.query.plan import Traverse
from cluster_core.query.predicates import encode_where
from cluster_core.query.results import Answer, Row, TraversedEdge, TraversedVertex
from cluster_core.query.tasks import Stored
from cluster_core.query.work import PAUSE_AFTER
from cluster_core.types import Digest

__all__ = ["traverse"]

SLICE: Final = 20_000
"""Digests handled between two pauses where the work on each is one step of a set or a dict."""


async def traverse(query: Traverse, gather: Gather) -> Answer:
    """The rows, or as many of them as the limit and the budgets allow."""
    walk = _EdgeWalk(query, gather) if query.return_ == "edges" else _VertexWalk(query, gather)
    start = await _existing(dict.fromkeys(query.start), gather, b"")
    walk.seen.update(start)
    frontier = start
    if query.min_depth == 0:
        await walk.begin(start)
    for depth in range(1, query.max_depth + 1):
        if not frontier or walk.is_full or gather.bound is not None:
            break
        frontier = await walk.hop(frontier, depth)
    return await walk.answer()


async def _existing(digests: Iterable[Digest], gather: Gather, where: bytes) -> list[Digest]:
    """Those that are vertices and satisfy ``where``."""
    passed: list[Digest] = []
    for chunk in in_chunks(digests, SLICE):
        marks = await gather.marks(chunk, VERTEX, where)
        passed += [digest for digest, mark in zip(chunk, marks, strict=True) if mark]
    return passed


async def _smallest(digests: Iterable[Digest], count: int) -> list[Digest]:
    """The first ``count`` in order, without holding up the event loop for millions of them."""
    best: list[Digest] = []
    for chunk in in_chunks(digests, SLICE):
        best = nsmallest(count, best + chunk) if count < len(best) + len(chunk) else best + chunk
        await asyncio.sleep(0)
    return sorted(best)


class _Place(NamedTuple):
    """A row before its record is read."""

    depth: int
    digest: Digest
    partition: int
    via: Digest | None = None


class _Walk:
    """What both kinds of traversal share: what was seen, and the bounds."""

    kind: int

    def __init__(self, query: Traverse, gather: Gather) -> None:
        self.query = query
        self.gather = gather
        self.seen: set[Digest] = set()
        """Every vertex reached, at the depths before the one at work."""
        self.rows: list[_Place] = []
        """In the order of the answer, at most one more than the limit."""
        self._where_node = encode_where(query.where_node)
        self._hop = Hop(
            direction=query.direction,
            labels=query.edge_labels,
            where=encode_where(query.where_edge),
        )

    @property
    def is_full(self) -> bool:
        """One row more than the limit tells that there are more."""
        return len(self.rows) > self.query.limit

    async def begin(self, start: list[Digest]) -> None:
        """Take the rows of depth 0."""

    async def hop(self, frontier: list[Digest], depth: int) -> list[Digest]:
        """Take the rows of ``depth``; returns the next frontier."""
        raise NotImplementedError

    def row(self, place: _Place, stored: Stored) -> Row:
        raise NotImplementedError

    async def smallest(self, digests: Iterable[Digest]) -> list[Digest]:
        """The first of ``digests`` in order, as many as there is room for in the rows."""
        return await _smallest(digests, self.query.limit + 1 - len(self.rows))

    async def answer(self) -> Answer:
        places = self.rows[: self.query.limit]
        records = await self.gather.records(
            [place.digest for place in places],
            kind=self.kind,
            partitions=[place.partition for place in places],
        )
        rows: list[Row] = []
        for chunk in in_chunks(zip(places, records, strict=False), PAUSE_AFTER):
            # An ``eventual`` read may see an edge before the vertex at its other end.
            rows += [self.row(place, found) for place, found in chunk if found and found.record]
            await asyncio.sleep(0)
        bound = "limit" if self.is_full else self.gather.bound
        return Answer(rows=rows, bound="bytes" if len(records) < len(places) else bound)

    async def expand(
        self, frontier: Sequence[Digest], reached: MutableMapping[Digest, Digest]
    ) -> None:
        """Fill ``reached`` with new vertices, each with the smallest edge that leads there."""
        seen = self.seen
        room = self.gather.limits.query_visited_max - len(seen)

        def consume(entries: Entries) -> None:
            if len(reached) > room:
                self.gather.bound = "visited"
                return
            for far, edge in zip(entries.entries.fars, entries.entries.edges, strict=True):
                if far not in seen:
                    known = reached.get(far)
                    if known is None or edge < known:
                        reached[far] = edge
            self.followed(entries)

        await self.gather.expand(frontier, self._hop, consume)
        if len(reached) > room:
            self.gather.bound = "visited"
            for far in list(reached)[room:]:
                del reached[far]

    def followed(self, entries: Entries) -> None:
        """Edges that were followed in this hop."""

    async def enter(self, reached: Iterable[Digest]) -> list[Digest]:
        """The vertices of ``reached`` that count; all of them are seen from now on."""
        passed: list[Digest] = []
        for chunk in in_chunks(reached, SLICE):
            self.seen.update(chunk)
            if self._where_node:
                passed += await _existing(chunk, self.gather, self._where_node)
            else:
                passed += chunk
            await asyncio.sleep(0)
        return passed


class _VertexWalk(_Walk):
    """Rows are vertices, by depth and digest."""

    kind = VERTEX

    async def begin(self, start: list[Digest]) -> None:
        passed = await _existing(start, self.gather, self._where_node)
        home = self.gather.home
        self.rows += [_Place(0, each, home(each)) for each in await self.smallest(passed)]

    async def hop(self, frontier: list[Digest], depth: int) -> list[Digest]:
        reached: dict[Digest, Digest] = {}
        await self.expand(frontier, reached)
        passed = await self.enter(reached)
        if depth >= self.query.min_depth:
            home = self.gather.home
            for each in await self.smallest(passed):
                self.rows.append(_Place(depth, each, home(each), reached[each]))
        return passed

    def row(self, place: _Place, stored: Stored) -> Row:
        return TraversedVertex(node=as_vertex(stored), depth=place.depth, via=place.via)


class _EdgeWalk(_Walk):
    """Rows are edges, by the depth of their far ends and digest."""

    kind = EDGE

    def __init__(self, query: Traverse, gather: Gather) -> None:
        super().__init__(query, gather)
        self._told: set[Digest] = set()
        """Edges of the hops before this one."""
        self._ends: dict[Digest, tuple[Digest, Digest]] = {}
        """Source and far end of each edge followed in this hop."""
        self._refused: set[Digest] = set()
        """Vertices reached that do not satisfy ``where_node``."""

    def followed(self, entries: Entries) -> None:
        ends, told, columns = self._ends, self._told, entries.entries
        at = 0
        for vertex, number in zip(entries.vertices, columns.counts, strict=False):
            for place in range(at, at + number):
                edge, far = columns.edges[place], columns.fars[place]
                if edge not in told:
                    ends[edge] = (vertex if entries.outward else far, far)
            at += number

    async def hop(self, frontier: list[Digest], depth: int) -> list[Digest]:
        self._ends = {}
        reached: dict[Digest, Digest] = {}
        await self.expand(frontier, reached)
        passed = await self.enter(reached)
        if self._where_node:
            self._refused.update(reached)
            self._refused.difference_update(passed)
        sources = await self._counting_sources()
        if depth >= self.query.min_depth:
            home = self.gather.home
            for edge in await self.smallest(sources):
                self.rows.append(_Place(depth, edge, home(sources[edge])))
        return passed

    async def _counting_sources(self) -> dict[Digest, Digest]:
        """Of this hop's edges those that lead to vertices that count, with their sources."""
        sources: dict[Digest, Digest] = {}
        for chunk in in_chunks(self._ends.items(), SLICE):
            for edge, (source, far) in chunk:
                # A far end that was never entered fell to the bound on visited vertices.
                if far not in self._refused and far in self.seen:
                    sources[edge] = source
            self._told.update(edge for edge, _ in chunk)
            await asyncio.sleep(0)
        return sources

    def row(self, place: _Place, stored: Stored) -> Row:
        return TraversedEdge(edge=as_edge(stored), depth=place.depth)
