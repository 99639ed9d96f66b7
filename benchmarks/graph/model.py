"""The graph of the benchmark, the same for the same seed, and what is true of it."""

from __future__ import annotations

import csv
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

__all__ = ["CITIES", "Graph", "name_of"]

SEED: Final = 20_260_101
CITIES: Final = 100
_UNIFORM_SHARE: Final = 0.1
"""So many of the ends are drawn from all vertices alike, so that none stays without edges."""


def name_of(vertex: int) -> str:
    return f"person-{vertex:07}"


@dataclass(slots=True)
class Graph:
    """Who follows whom, by preferential attachment (Barabási and Albert 1999): each vertex, as it
    arrives, follows earlier ones, and who has many edges gets more."""

    vertices: int
    edges: list[tuple[int, int]] = field(default_factory=list)
    followed: list[list[int]] = field(default_factory=list)
    """Whom each vertex follows."""
    followers: list[list[int]] = field(default_factory=list)

    @classmethod
    def grow(cls, vertices: int, edges: int, seed: int = SEED) -> Graph:
        """A graph of exactly so many vertices and edges, no two of them alike."""
        graph = cls(vertices, [], [[] for _ in range(vertices)], [[] for _ in range(vertices)])
        draw = random.Random(seed)
        ends = [0]
        share = edges / vertices
        for vertex in range(1, vertices):
            wanted = int(share * (vertex + 1)) - len(graph.edges)
            for target in sorted(_targets(draw, ends, vertex, min(wanted, vertex))):
                graph._add(vertex, target)
                ends += (vertex, target)
        while len(graph.edges) < edges:
            source, target = draw.randrange(vertices), draw.choice(ends)
            if source != target and target not in graph.followed[source]:
                graph._add(source, target)
        return graph

    def _add(self, source: int, target: int) -> None:
        self.edges.append((source, target))
        self.followed[source].append(target)
        self.followers[target].append(source)

    def write(self, folder: Path) -> tuple[Path, Path]:
        """As two files that ``kotoba import`` reads."""
        nodes, edges = folder / "people.csv", folder / "follows.csv"
        _write(
            nodes,
            (":ID", "name", "age:int", "city"),
            ((n, name_of(n), 18 + n % 70, f"city-{n % CITIES:02}") for n in range(self.vertices)),
        )
        _write(
            edges,
            (":START_ID", ":END_ID", "since:int"),
            ((a, b, 1990 + (a + b) % 35) for a, b in self.edges),
        )
        return nodes, edges

    def reached(self, start: int, depth: int) -> int:
        """How many others are reached from ``start`` over at most ``depth`` edges."""
        seen = {start}
        border = [start]
        for _ in range(depth):
            border = sorted({b for a in border for b in self.followed[a]} - seen)
            seen.update(border)
        return len(seen) - 1

    def distance(self, source: int, target: int) -> int | None:
        """Edges between two vertices, followed in either direction; None without a path."""
        seen = {source}
        border, length = {source}, 0
        while border:
            if target in seen:
                return length
            border = {
                far for one in border for far in (*self.followed[one], *self.followers[one])
            } - seen
            seen |= border
            length += 1
        return None


def _targets(draw: random.Random, ends: list[int], vertex: int, count: int) -> set[int]:
    targets: set[int] = set()
    while len(targets) < count:
        uniform = draw.random() < _UNIFORM_SHARE or len(targets) * 2 >= vertex
        targets.add(draw.randrange(vertex) if uniform else draw.choice(ends))
    return targets


def _write(path: Path, header: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        writer.writerows(rows)
