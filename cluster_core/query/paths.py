"""shortest_path: breadth first from both ends, or Dijkstra's algorithm where edges have weights.

A path that a budget hides is not "no path": both raise TooLarge when one ends.
"""

from __future__ import annotations

import asyncio
from heapq import heappop, heappush
from typing import Final, NamedTuple

from cluster_core.errors import InvalidRequest, TooLarge
from cluster_core.graph.cid import cid_text
from cluster_core.graph.records import EDGE, VERTEX
from cluster_core.graph.values import Value
from cluster_core.query.gather import (
    Entries,
    Expansion,
    Gather,
    Hop,
    as_edge,
    as_vertex,
    flip,
    in_chunks,
)
from cluster_core.query.plan import ShortestPath
from cluster_core.query.results import Answer, PathRow
from cluster_core.query.tasks import Stored
from cluster_core.types import Digest

__all__ = ["shortest_path"]

PREFETCH_MAX: Final = 128
"""Vertices whose edges are read in one go for Dijkstra: the next of its queue come along, so that
not every vertex costs a round trip."""
PIECE_MIN: Final = 256
"""Entries of a level that are read at first, about 2 ms: then the other side has its turn."""
TURN_STEPS: Final = 1_000
"""Edges and labels handled in Dijkstra's algorithm between two pauses, at about 2 us each."""
SLICE: Final = 20_000
"""Vertices handled between two pauses where the work on each is one step of a dict."""


class _Step(NamedTuple):
    """An edge of a path, and where its record is."""

    vertex: Digest
    """The end that is nearer to where the search began."""
    edge: Digest
    source: Digest


async def shortest_path(query: ShortestPath, gather: Gather) -> Answer:
    """One row or none."""
    ends = [query.source, query.target]
    if not all(await gather.marks(ends, VERTEX)):
        return Answer(rows=[])
    length: float
    if query.weight is None:
        path = await _fewest_edges(query, gather)
        length = 0 if path is None else len(path)
    else:
        path, length = await _least_weight(query, query.weight, gather)
    if path is None:
        return Answer(rows=[])
    return await _answer(query, path, length, gather)


async def _answer(query: ShortestPath, path: list[_Step], length: float, gather: Gather) -> Answer:
    """``path`` holds its steps from source to target, each with the vertex that it leaves."""
    digests = [step.vertex for step in path] + [query.target]
    nodes = await gather.records(digests, kind=VERTEX)
    edges = await gather.records(
        [step.edge for step in path],
        kind=EDGE,
        partitions=[gather.home(step.source) for step in path],
    )
    if len(nodes) < len(digests) or len(edges) < len(path):
        size_max = gather.limits.query_bytes_max
        detail = f"the path is larger than {size_max} bytes"
        raise TooLarge.beyond("query_bytes_max", size_max, detail)
    if not (_all_live(nodes) and _all_live(edges)):
        return Answer(rows=[])  # an eventual read, which may see an edge before its ends
    row = PathRow(
        nodes=[as_vertex(stored) for stored in nodes if stored],
        edges=[as_edge(stored) for stored in edges if stored],
        length=length,
    )
    return Answer(rows=[row])


def _all_live(records: list[Stored | None]) -> bool:
    return all(stored is not None and stored.record for stored in records)


def _check_bounds(visited: int, gather: Gather) -> None:
    visited_max, scanned_max = gather.limits.query_visited_max, gather.limits.query_scanned_max
    if visited > visited_max:
        detail = f"no path among the first {visited_max} vertices"
        raise TooLarge.beyond("query_visited_max", visited_max, detail)
    if gather.bound is not None:
        detail = f"no path among the first {scanned_max} entries"
        raise TooLarge.beyond("query_scanned_max", scanned_max, detail)


# Fewest edges


class _Side:
    """The search from one end, level by level, each a piece at a time."""

    def __init__(self, start: Digest, hop: Hop, gather: Gather) -> None:
        self.steps: dict[Digest, _Step | None] = {start: None}
        """How each vertex of whole levels was reached; the start was not."""
        self.reached: dict[Digest, _Step] = {}
        """The level at work: each vertex by the smallest edge that leads there."""
        self.frontier = [start]
        self.depth = 0
        self.cost = 1
        """Of the level at work: vertices whose edges are read, and edges that were."""
        self._gather = gather
        self._hop = hop
        self._expansion: Expansion | None = None

    async def advance(self) -> bool:
        """Read a piece of the next level; True when it is whole."""
        if self._expansion is None:
            self._expansion = Expansion(
                self._gather, self.frontier, self._hop, self._consume, PIECE_MIN
            )
        if await self._expansion.read():
            return False
        self._expansion = None
        for chunk in in_chunks(self.reached.items(), SLICE):
            self.steps.update(chunk)
            await asyncio.sleep(0)
        self.frontier = list(self.reached)
        self.reached = {}
        self.cost = len(self.frontier)
        self.depth += 1
        return True

    def _consume(self, entries: Entries) -> None:
        known, reached = self.steps, self.reached
        columns = entries.entries
        self.cost += len(columns.edges)
        at = 0
        for vertex, number in zip(entries.vertices, columns.counts, strict=False):
            for place in range(at, at + number):
                far, edge = columns.fars[place], columns.edges[place]
                if far not in known:
                    step = reached.get(far)
                    if step is None or edge < step.edge:
                        source = vertex if entries.outward else far
                        reached[far] = _Step(vertex, edge, source)
            at += number

    async def meeting(self, other: _Side) -> Digest | None:
        """The smallest vertex of this level that the other side knows."""
        best: Digest | None = None
        for chunk in in_chunks(self.frontier, SLICE):
            best = min(
                (each for each in chunk if each in other.steps and (best is None or each < best)),
                default=best,
            )
            await asyncio.sleep(0)
        return best

    def trail(self, vertex: Digest) -> list[tuple[Digest, _Step]]:
        """The steps back to the start, each with the vertex that it reaches."""
        trail = []
        while (step := self.steps[vertex]) is not None:
            trail.append((vertex, step))
            vertex = step.vertex
        return trail


async def _fewest_edges(query: ShortestPath, gather: Gather) -> list[_Step] | None:
    """When whole levels a and b were searched without meeting, the distance is more than a + b;
    so the first level that meets the other side ends a shortest path, whichever vertex it is.

    Both sides read on, the one that has read less first: the edges of a hub are not read to their
    end while the other side has few, whatever its frontier looks like.
    """
    if query.source == query.target:
        return []
    near = _Side(query.source, Hop(direction=query.direction, labels=query.edge_labels), gather)
    back = Hop(direction=flip(query.direction), labels=query.edge_labels)
    far = _Side(query.target, back, gather)
    while near.depth + far.depth < query.max_depth and near.frontier and far.frontier:
        side, other = (near, far) if near.cost <= far.cost else (far, near)
        whole = await side.advance()
        _check_bounds(sum(len(one.steps) + len(one.reached) for one in (near, far)), gather)
        meeting = await side.meeting(other) if whole else None
        if meeting is not None:
            return _join(meeting, near, far)
    return None


def _join(meeting: Digest, near: _Side, far: _Side) -> list[_Step]:
    path = [step for _, step in reversed(near.trail(meeting))]
    # The far side's steps lead to the target's side: turned around, each leaves where it arrived.
    path += [_Step(vertex, step.edge, step.source) for vertex, step in far.trail(meeting)]
    return path


# Least weight


class _Arc(NamedTuple):
    far: Digest
    edge: Digest
    weight: float
    source: Digest


class _Label(NamedTuple):
    """One way to a vertex; the tuple's order is the queue's: the lightest, then the shortest."""

    weight: float
    hops: int
    vertex: Digest
    edge: Digest
    number: int
    """Of the label in the order in which they were made: the way on refers to it."""


async def _least_weight(
    query: ShortestPath, weight: str, gather: Gather
) -> tuple[list[_Step] | None, float]:
    """Dijkstra with the bound on edges: a vertex is taken up again where a heavier way has fewer
    edges, since that may still reach where the lighter one may not."""
    arcs = _Arcs(Hop(direction=query.direction, labels=query.edge_labels, weight=weight), gather)
    origins: list[tuple[int, _Step] | None] = [None]
    """Of each label the label before it, and the step between them."""
    queue = [_Label(0, 0, query.source, b"", 0)]
    fewest: dict[Digest, int] = {}
    turns = _Turns()
    while queue:
        label = heappop(queue)
        await turns.spend(1)
        if label.vertex == query.target:
            return _retrace(origins, label.number), label.weight
        if fewest.get(label.vertex, query.max_depth) <= label.hops:
            continue
        fewest[label.vertex] = label.hops
        _check_bounds(len(fewest), gather)
        for chunk in in_chunks(await arcs.of(label.vertex, queue), TURN_STEPS):
            for arc in chunk:
                hops = label.hops + 1
                if fewest.get(arc.far, hops + 1) <= hops:
                    continue
                step = _Step(label.vertex, arc.edge, arc.source)
                total = label.weight + arc.weight
                heappush(queue, _Label(total, hops, arc.far, arc.edge, len(origins)))
                origins.append((label.number, step))
            await turns.spend(len(chunk))
    return None, 0


def _retrace(origins: list[tuple[int, _Step] | None], number: int) -> list[_Step]:
    path = []
    while (origin := origins[number]) is not None:
        number, step = origin
        path.append(step)
    return path[::-1]


class _Turns:
    """Lets the event loop run when enough was done since it last did."""

    def __init__(self) -> None:
        self._steps = 0

    async def spend(self, steps: int) -> None:
        self._steps += steps
        if self._steps >= TURN_STEPS:
            self._steps = 0
            await asyncio.sleep(0)


class _Arcs:
    """The edges of vertices, read ahead."""

    def __init__(self, hop: Hop, gather: Gather) -> None:
        self._hop = hop
        self._gather = gather
        self._known: dict[Digest, list[_Arc]] = {}

    async def of(self, vertex: Digest, queue: list[_Label]) -> list[_Arc]:
        """The edges of ``vertex``. The front of the queue's heap comes along."""
        if vertex not in self._known:
            near = [label.vertex for label in queue[:PREFETCH_MAX]]
            wanted = [each for each in dict.fromkeys((vertex, *near)) if each not in self._known]
            for each in wanted:
                self._known[each] = []
            await self._gather.expand(wanted, self._hop, self._take)
            _check_bounds(0, self._gather)
        return self._known[vertex]

    def _take(self, entries: Entries) -> None:
        columns = entries.entries
        at = 0
        for vertex, number in zip(entries.vertices, columns.counts, strict=False):
            arcs = self._known[vertex]
            for place in range(at, at + number):
                far, edge = columns.fars[place], columns.edges[place]
                weight = _weight_of(edge, columns.weights[place], self._hop.weight)
                arcs.append(_Arc(far, edge, weight, vertex if entries.outward else far))
            at += number


def _weight_of(edge: Digest, value: Value, name: str | None) -> float:
    if value is None:
        return 1
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        why = f"edge {cid_text(edge)} has a {name} that is no number, or negative"
        raise InvalidRequest(why, errors=[{"where": "weight", "why": why}])
    return value
