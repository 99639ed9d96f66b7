"""A client that declares and drops property indexes, and asks through them what a scan knows too.

Whatever the indexes are at that moment (building, ready, on their way out, or not where a node
takes them to be), a query on a label gives what a scan of the same snapshot gives, which takes no
index since it names no label.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from cluster_core.errors import HistoryCollected, InvalidRequest, NotFound
from cluster_core.graph.entities import Edge, Vertex
from cluster_core.query.ordering import order_key
from cluster_core.query.plan import (
    AllOf,
    Comparison,
    Count,
    FindEdges,
    FindNodes,
    OrderBy,
    Query,
    Where,
)
from cluster_core.query.results import CountRow, QueryResult
from tests.simulation.workload import Client, NotExecuted, Unsure

__all__ = ["Librarian"]

_INDEXES: Final = [
    ("Thing", "value"),
    ("Odd", "value"),
    ("LINKS", "value"),
    ("Account", "balance"),
    ("Thing", "nothing"),
]
_ROWS: Final = 10_000


class Librarian(Client):
    """``disagreements`` that it finds end the run."""

    used = 0
    """Answers that a property index gave."""

    async def _do_something(self) -> None:
        kind = self.random.random()
        if kind < 0.12:
            await self.declare(*self.random.choice(_INDEXES))
        elif kind < 0.17:
            await self.drop(*self.random.choice(_INDEXES))
        else:
            await self.compare()

    async def declare(self, label: str, name: str) -> bool:
        """False when nobody knows what became of it."""
        try:
            await self._attempt(
                lambda cluster, timeout_ms: cluster.declare_index(
                    label, name, timeout_ms=timeout_ms
                )
            )
        except Unsure:
            return False
        self.world.note(f"{self.name} declares an index on {label}.{name}")
        return True

    async def drop(self, label: str, name: str) -> None:
        try:
            await self._attempt(
                lambda cluster, timeout_ms: cluster.drop_index(label, name, timeout_ms=timeout_ms)
            )
        except (Unsure, NotFound):
            return
        self.world.note(f"{self.name} drops the index on {label}.{name}")

    async def compare(self) -> None:
        """Ask with the label, then without it at the same time, and filter here."""
        label, name = self.random.choice(_INDEXES)
        where, descending = self._some_condition(name), self.random.random() < 0.5
        order = (OrderBy(name, descending),) if self.random.random() < 0.5 else ()
        limit = self.random.choice([3, _ROWS])
        query: FindNodes | FindEdges = FindNodes(
            labels=(label,), where=where, order_by=order, limit=limit
        )
        scan: FindNodes | FindEdges = FindNodes(where=where, limit=_ROWS)
        if label == "LINKS":
            query = FindEdges(label=label, where=where, order_by=order, limit=limit)
            scan = FindEdges(where=where, limit=_ROWS)
        try:
            found = await self._ask_query(query)
            every = await self._ask_query(scan, at=found.timestamp)
            of = "edges" if label == "LINKS" else "nodes"
            labels, edge_label = ((), label) if label == "LINKS" else ((label,), None)
            count = Count(of=of, labels=labels, label=edge_label, where=where)  # type: ignore[arg-type]
            counted = await self._ask_query(count, at=found.timestamp)
        except (Unsure, NotExecuted, HistoryCollected, InvalidRequest):
            return
        assert every.cursor is None
        rows = [row for row in every.rows if label in _labels_of(row)]
        self.used += "." in (found.statistics.index or "")
        number = len(rows)
        if order:
            rows.sort(key=_digest_of)
            rows.sort(key=lambda row: _key_of(row, name), reverse=descending)
        self._expect(query, found, found.rows, rows[:limit])
        (total,) = counted.rows
        assert isinstance(total, CountRow)
        self._expect(count, counted, [total.count], [number])

    def _some_condition(self, name: str) -> Where | None:
        newest = self.history.value()
        low, high = sorted(self.random.randint(max(0, newest - 300), newest) for _ in "ab")
        return self.random.choice(
            [
                None,
                Comparison(name, "ge", low),
                Comparison(name, "lt", high),
                AllOf((Comparison(name, "ge", low), Comparison(name, "le", high))),
                Comparison(name, "in", [*range(low, min(high, low + 20))]),
                Comparison(name, "exists", False),
            ]
        )

    async def _ask_query(self, query: Query, at: int | None = None) -> QueryResult:
        result, _ = await self._attempt(
            lambda cluster, timeout_ms: cluster.execute_query(
                query, as_of=at, timeout_ms=timeout_ms
            )
        )
        return result

    def _expect(
        self, query: Query, result: QueryResult, got: Sequence[Any], expected: Sequence[Any]
    ) -> None:
        if list(got) != list(expected):
            self.world.failures.append(
                f"{query} through {result.statistics.index} at {result.timestamp}:\n"
                f"{[_told(row) for row in got]}\nand a scan:\n{[_told(row) for row in expected]}"
            )


def _labels_of(row: Any) -> Sequence[str]:
    assert isinstance(row, Vertex | Edge)
    return (row.label,) if isinstance(row, Edge) else row.labels


def _digest_of(row: Any) -> bytes:
    assert isinstance(row, Vertex | Edge)
    return row.digest


def _key_of(row: Any, name: str) -> bytes:
    assert isinstance(row, Vertex | Edge)
    return order_key(row.properties.get(name))


def _told(row: Any) -> str:
    if isinstance(row, Vertex | Edge):
        return f"{row.digest[:4].hex()} {row.properties} {row.updated_at}"
    return str(row)
