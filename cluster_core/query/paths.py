"""shortest_path: breadth first from both ends, or Dijkstra's algorithm where edges have weights.

A path that a budget hides is not "no path": both raise TooLarge when one ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from heapq import heappop, heappush, heapreplace
from math import isinf
from typing import Final, NamedTuple

from cluster_core.errors import InvalidRequest, TooLarge
from cluster_core.graph.cid import cid_text
from cluster_core.graph.records import EDGE, VERTEX
from cluster_core.graph.values import INT_MAX, Value
from cluster_core.query.gather import (
    Entries,
    Expansion,
    Gather,
    Hop,
    as_edge,
    as_vertex,
    flip,
    in_chunks,
    together,
)
from cluster_core.query.plan import ShortestPath
from cluster_core.query.results import Answer, PathRow
from cluster_core.query.tasks import Stored
from cluster_core.types import Digest

__all__ = ["shortest_path"]

AHEAD_MAX: Final = 128
"""Vertices that are read ahead at a time for Dijkstra's algorithm: those that come next, so that
not every vertex costs a round trip."""
AHEAD_ENTRIES_MAX: Final = 1_024
"""Entries that each cluster node reads ahead at a time: a hub that comes next is not read to its
end for it."""
RUN_MAX: Final = 1_024
"""Arcs that are sorted in one go, in less than 1 ms."""
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
        path, length = await _Dijkstra(query, query.weight, gather).search()
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
    """An edge as a way to go; the tuple's order is that of a run: the lightest first."""

    weight: float
    far: Digest
    edge: Digest
    source: Digest


class _Label(NamedTuple):
    """One way to a vertex; the tuple's order is the queue's: the lightest, then the shortest."""

    weight: float
    hops: int
    vertex: Digest
    edge: Digest
    parent: int
    """The label that it goes on from, by its place among those that were expanded."""
    run: Sequence[_Arc]
    """Where its last arc is from, at ``place``: the next one there follows it in the queue."""
    place: int


class _Dijkstra:
    """Dijkstra's algorithm with the bound on edges: a vertex is expanded again where a heavier way
    has fewer edges, since that may still reach where the lighter one may not.

    The arcs of a vertex are held once, in sorted runs, and of each run that a label goes on by only
    the lightest arc that is left is in the queue. So an expansion costs one label and one place in
    the queue for each run, however often a hub is expanded and however many edges it has.
    """

    def __init__(self, query: ShortestPath, weight: str, gather: Gather) -> None:
        self._query = query
        self._gather = gather
        hop = Hop(direction=query.direction, labels=query.edge_labels, weight=weight)
        self._arcs = _Arcs(hop, gather)
        self._expanded: list[_Label] = []
        self._fewest: dict[Digest, int] = {}
        """Of each vertex that was expanded, the fewest edges that lead there."""
        self._queue: list[_Label] = []
        self._turns = _Turns()

    async def search(self) -> tuple[list[_Step] | None, float]:
        """The steps of a lightest path and the sum of its weights."""
        source, target = self._query.source, self._query.target
        label = _Label(0, 0, source, b"", -1, (), 0)
        while label.vertex != target:
            if self._fewest.get(label.vertex, self._query.max_depth) > label.hops:
                await self._expand(label)
            if not self._queue:
                return None, 0
            label = self._pop()
            await self._turns.spend(1)
        return self._retrace(label), _length_of(label.weight)

    async def _expand(self, label: _Label) -> None:
        self._fewest[label.vertex] = label.hops
        _check_bounds(len(self._fewest), self._gather)
        if label.vertex not in self._arcs.runs:
            await self._read(label.vertex)
        number = len(self._expanded)
        self._expanded.append(label)
        for run in self._arcs.runs[label.vertex]:
            first = self._following(number, run, 0)
            if first is not None:
                heappush(self._queue, first)
            await self._turns.spend(len(run) if first is None else first.place + 1)
        _check_held(self._held, self._gather)

    @property
    def _held(self) -> int:
        return self._arcs.held + len(self._queue) + len(self._expanded)

    async def _read(self, vertex: Digest) -> None:
        """The arcs of ``vertex``; those of the vertices that come next along with them, where that
        leaves half of each bound to what the search cannot do without."""
        limits = self._gather.limits
        reads = [self._arcs.read(vertex)]
        if 2 * self._gather.scanned < limits.query_scanned_max and (
            2 * self._held < limits.query_held_max
        ):
            reads.append(self._arcs.read_ahead(self._coming(vertex)))
        await together(reads)

    def _coming(self, vertex: Digest) -> list[Digest]:
        """About those that are expanded next, after ``vertex``."""
        front = self._queue[:AHEAD_MAX]
        share = AHEAD_MAX // max(1, len(front))
        fars = [
            arc.far
            for label in front
            if label.hops < self._query.max_depth
            for arc in label.run[label.place : label.place + share]
        ]
        return [far for far in dict.fromkeys(fars) if far not in (vertex, self._query.target)]

    def _pop(self) -> _Label:
        """The first of the queue. What follows it in its run takes its place."""
        label = self._queue[0]
        following = self._following(label.parent, label.run, label.place + 1)
        if following is None:
            return heappop(self._queue)
        return heapreplace(self._queue, following)

    def _following(self, parent: int, run: Sequence[_Arc], place: int) -> _Label | None:
        """The label of the first arc of ``run`` at ``place`` or behind it that leads to a vertex
        which was not expanded with as few edges."""
        near = self._expanded[parent]
        hops = near.hops + 1
        for at in range(place, len(run)):
            arc = run[at]
            if self._fewest.get(arc.far, hops + 1) > hops:
                return _Label(near.weight + arc.weight, hops, arc.far, arc.edge, parent, run, at)
        return None

    def _retrace(self, label: _Label) -> list[_Step]:
        path = []
        while label.parent >= 0:
            near = self._expanded[label.parent]
            path.append(_Step(near.vertex, label.edge, label.run[label.place].source))
            label = near
        return path[::-1]


def _length_of(total: float) -> float:
    """An int where 64 bits hold it, as of every value; else a float."""
    if isinf(total):
        why = "the weights of the lightest path add up to more than a number can be"
        raise InvalidRequest(why, errors=[{"where": "weight", "why": why}])
    return total if isinstance(total, float) or total <= INT_MAX else float(total)


def _check_held(held: int, gather: Gather) -> None:
    held_max = gather.limits.query_held_max
    if held > held_max:
        detail = f"no path among the first {held_max} edges and ways"
        raise TooLarge.beyond("query_held_max", held_max, detail)


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
    """The arcs of vertices: of parallel edges the lightest, which is as good as any of them."""

    def __init__(self, hop: Hop, gather: Gather) -> None:
        self.runs: dict[Digest, list[list[_Arc]]] = {}
        """Of each vertex that was read to its end, all its arcs, each run sorted."""
        self.held = 0
        """Arcs in all the runs."""
        self._hop = hop
        self._gather = gather
        self._tried: set[Digest] = set()
        """What was read ahead, to its end or not: once is enough."""

    async def read(self, vertex: Digest) -> None:
        """Raises TooLarge when a bound ends before the vertex does."""
        arcs: dict[Digest, _Arc] = {}

        def consume(entries: Entries) -> None:
            self._collect({vertex: arcs}, entries)
            _check_held(self.held + len(arcs), self._gather)

        await self._gather.expand([vertex], self._hop, consume)
        _check_bounds(0, self._gather)
        await self._keep(vertex, arcs)

    async def read_ahead(self, vertices: Iterable[Digest]) -> None:
        """One piece at most of each: those that it ends with are as if they were read."""
        fresh = [
            vertex for vertex in vertices if vertex not in self.runs and vertex not in self._tried
        ]
        for ones, result in await self._gather.expand_ahead(fresh, self._hop, AHEAD_ENTRIES_MAX):
            whole = ones if result.next is None else ones[: result.next]
            self._tried.update(ones[: len(whole) + 1])
            arcs: dict[Digest, dict[Digest, _Arc]] = {vertex: {} for vertex in ones}
            try:
                self._collect(arcs, Entries(ones, False, result.ins))
                self._collect(arcs, Entries(ones, True, result.outs))
            except InvalidRequest:
                continue  # to be told when the search comes there
            for vertex in whole:
                await self._keep(vertex, arcs[vertex])

    async def _keep(self, vertex: Digest, arcs: Mapping[Digest, _Arc]) -> None:
        runs = self.runs.setdefault(vertex, [])
        for chunk in in_chunks(arcs.values(), RUN_MAX):
            chunk.sort()
            runs.append(chunk)
            self.held += len(chunk)
            await asyncio.sleep(0)

    def _collect(self, arcs: Mapping[Digest, dict[Digest, _Arc]], entries: Entries) -> None:
        columns = entries.entries
        at = 0
        for vertex, number in zip(entries.vertices, columns.counts, strict=False):
            lightest = arcs[vertex]
            for place in range(at, at + number):
                far, edge = columns.fars[place], columns.edges[place]
                weight = _weight_of(edge, columns.weights[place], self._hop.weight)
                known = lightest.get(far)
                if known is None or (weight, edge) < (known.weight, known.edge):
                    source = vertex if entries.outward else far
                    lightest[far] = _Arc(weight, far, edge, source)
            at += number


def _weight_of(edge: Digest, value: Value, name: str | None) -> float:
    if value is None:
        return 1
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        why = f"edge {cid_text(edge)} has a {name} that is no number, or negative"
        raise InvalidRequest(why, errors=[{"where": "weight", "why": why}])
    return value
