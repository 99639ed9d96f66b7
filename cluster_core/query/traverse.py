"""traverse: breadth first, a hop at a time, the frontier of each hop grouped by cluster node.

Adjacency entries name the far end, so a hop without conditions reads no record; those of the rows
are read once, at the end. A hop that has rows ends as soon as there are more than the limit, so of
a hub only as many edges are read as are wanted.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterable
from heapq import nsmallest
from typing import Final, NamedTuple

from cluster_core.graph.records import EDGE, VERTEX
from cluster_core.query.gather import (
    ENTRIES_MAX,
    Entries,
    Expansion,
    Gather,
    Hop,
    as_edge,
    as_vertex,
    in_chunks,
)
from cluster_core.query.plan import Traverse
from cluster_core.query.predicates import encode_where
from cluster_core.query.results import Answer, Row, TraversedEdge, TraversedVertex
from cluster_core.query.tasks import Stored
from cluster_core.query.work import PAUSE_AFTER
from cluster_core.types import Digest

__all__ = ["traverse"]

PIECE_MIN: Final = 256
"""Entries that are read at first where a few rows are wanted: about 2 ms."""
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


class _Walk(ABC):
    """What both kinds of traversal share: what was seen, and the bounds. Where one of them has
    nothing to do at a step (B027), it leaves the method as it is."""

    kind: int

    def __init__(self, query: Traverse, gather: Gather) -> None:
        self.query = query
        self.gather = gather
        self.seen: set[Digest] = set()
        """Every vertex reached, at the depths before the one at work."""
        self.rows: list[_Place] = []
        """In the order of the answer, at most one more than the limit."""
        self.reached: dict[Digest, Digest] = {}
        """New vertices of this hop, each with the smallest edge that was seen to lead there."""
        self.passed: list[Digest] = []
        """Those of them that count."""
        self._fresh: list[Digest] = []
        """Those of them that were reached since the last look."""
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

    async def begin(self, start: list[Digest]) -> None:  # noqa: B027
        """Take the rows of depth 0."""

    @abstractmethod
    def row(self, place: _Place, stored: Stored) -> Row:
        """What the answer says of ``place``."""

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

    async def hop(self, frontier: list[Digest], depth: int) -> list[Digest]:
        """Take the rows of ``depth``; returns the next frontier."""
        self.reached, self.passed = {}, []
        await self._expand(frontier, depth)
        for chunk in in_chunks(self.reached, SLICE):
            self.seen.update(chunk)
            await asyncio.sleep(0)
        if depth >= self.query.min_depth:
            await self.take(depth)
        return self.passed

    async def _expand(self, frontier: list[Digest], depth: int) -> None:
        """Follow the edges of ``frontier``: all of them, or where this depth has rows, until there
        are enough."""
        has_rows = depth >= self.query.min_depth
        missing = self.query.limit + 1 - len(self.rows)
        piece = max(missing, PIECE_MIN) if has_rows else ENTRIES_MAX
        expansion = Expansion(self.gather, frontier, self._hop, self._reach, piece)
        more = True
        while more and not (has_rows and self.found() >= missing):
            more = await expansion.read()
            await self._look()

    def _reach(self, entries: Entries) -> None:
        seen, reached, fresh = self.seen, self.reached, self._fresh
        room = self.gather.limits.query_visited_max - len(seen)
        for far, edge in zip(entries.entries.fars, entries.entries.edges, strict=True):
            if far not in seen:
                known = reached.get(far)
                if known is None:
                    if len(reached) >= room:
                        self.gather.bound = "visited"
                        break
                    reached[far] = edge
                    fresh.append(far)
                elif edge < known:
                    reached[far] = edge
        self.followed(entries)

    def followed(self, entries: Entries) -> None:  # noqa: B027
        """Edges that were followed in this hop."""

    async def _look(self) -> None:
        """Which of the vertices reached since the last look count."""
        fresh, self._fresh = self._fresh, []
        passed = fresh
        if self._where_node:
            passed = await _existing(fresh, self.gather, self._where_node)
        self.passed += passed
        self.looked(fresh, passed)

    def looked(self, fresh: list[Digest], passed: list[Digest]) -> None:  # noqa: B027
        """Of the vertices ``fresh`` those that count are ``passed``."""

    @abstractmethod
    def found(self) -> int:
        """How many rows this hop has at least."""

    @abstractmethod
    async def take(self, depth: int) -> None:
        """Add the rows of this hop."""


class _VertexWalk(_Walk):
    """Rows are vertices, by depth and digest."""

    kind = VERTEX

    async def begin(self, start: list[Digest]) -> None:
        passed = await _existing(start, self.gather, self._where_node)
        home = self.gather.home
        self.rows += [_Place(0, each, home(each)) for each in await self.smallest(passed)]

    def found(self) -> int:
        return len(self.passed)

    async def take(self, depth: int) -> None:
        home, reached = self.gather.home, self.reached
        for each in await self.smallest(self.passed):
            self.rows.append(_Place(depth, each, home(each), reached[each]))

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
        self._fresh_fars: list[Digest] = []
        """Far ends of the edges that were followed since the last look."""
        self._found = 0

    async def hop(self, frontier: list[Digest], depth: int) -> list[Digest]:
        self._ends, self._found = {}, 0
        passed = await super().hop(frontier, depth)
        for chunk in in_chunks(self._ends, SLICE):
            self._told.update(chunk)
            await asyncio.sleep(0)
        return passed

    def followed(self, entries: Entries) -> None:
        ends, told, columns = self._ends, self._told, entries.entries
        room = self.gather.limits.query_visited_max - len(told)
        at = 0
        for vertex, number in zip(entries.vertices, columns.counts, strict=False):
            for place in range(at, at + number):
                edge, far = columns.edges[place], columns.fars[place]
                if edge not in told and edge not in ends:
                    if len(ends) >= room:
                        self.gather.bound = "visited"
                        return
                    ends[edge] = (vertex if entries.outward else far, far)
                    self._fresh_fars.append(far)
            at += number

    def looked(self, fresh: list[Digest], passed: list[Digest]) -> None:
        if len(passed) < len(fresh):
            self._refused.update(fresh)
            self._refused.difference_update(passed)
        self._found += sum(map(self._counts, self._fresh_fars))
        self._fresh_fars = []

    def _counts(self, far: Digest) -> bool:
        """A far end that was never entered fell to the bound on visited vertices."""
        return far not in self._refused and (far in self.seen or far in self.reached)

    def found(self) -> int:
        return self._found

    async def take(self, depth: int) -> None:
        sources = await self._counting_sources()
        home = self.gather.home
        for edge in await self.smallest(sources):
            self.rows.append(_Place(depth, edge, home(sources[edge])))

    async def _counting_sources(self) -> dict[Digest, Digest]:
        """Of this hop's edges those that lead to vertices that count, with their sources."""
        sources: dict[Digest, Digest] = {}
        for chunk in in_chunks(self._ends.items(), SLICE):
            sources.update((edge, source) for edge, (source, far) in chunk if self._counts(far))
            await asyncio.sleep(0)
        return sources

    def row(self, place: _Place, stored: Stored) -> Row:
        return TraversedEdge(edge=as_edge(stored), depth=place.depth)
