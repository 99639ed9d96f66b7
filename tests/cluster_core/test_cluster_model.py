"""Random operations on a whole node, and every kind of query of now and of the past, against plain
Python over the whole graph: single operations, batches and transactions, deletions with all edges
in one step and in chunks.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, cast

import pytest

from cluster_core.cluster import KotobaCluster
from cluster_core.config import ClusterConfig, LimitConfig
from cluster_core.errors import KotobaError, NotFound
from cluster_core.graph.entities import Edge, Entity, Vertex
from cluster_core.graph.operations import (
    BatchOperation,
    CreateEdge,
    CreateNode,
    DeleteEdge,
    DeleteNode,
    Operation,
    OperationResult,
    UpdateEdge,
    UpdateNode,
)
from cluster_core.graph.values import Value
from cluster_core.query.plan import (
    GROUP_BY_LABEL,
    Comparison,
    Count,
    FindEdges,
    FindNodes,
    Get,
    History,
    Neighbours,
    OrderBy,
    Query,
    ShortestPath,
    Traverse,
    Where,
)
from cluster_core.query.results import CountRow, PathRow, TraversedVertex, VersionRow
from cluster_core.types import Digest, Timestamp
from tests.cluster_core.query.test_execute_model import bfs, fits, lightest, steps
from tests.cluster_core.query.two_nodes import Snapshot
from tests.cluster_core.single_node import single_node

LIMITS = LimitConfig(detach_step_edges_max=3, detach_chunk_keys_max=4)
STEPS = 60
ROWS = 10_000


@dataclass
class Model:
    """The graph, and what it was after each change. Entities are told by their results."""

    random: Random
    graph: Snapshot = field(default_factory=Snapshot)
    past: list[tuple[Timestamp, Snapshot]] = field(default_factory=list)
    versions: dict[Digest, list[Entity | None]] = field(default_factory=dict)
    """Of each entity, oldest first; None: it was deleted."""

    def some_operation(self) -> Operation:
        vertices, edges = list(self.graph.vertices), list(self.graph.edges)
        kind = self.random.random()
        if len(vertices) < 4 or kind < 0.15:
            return CreateNode(self._labels(), self._properties())
        if kind < 0.55 or not edges:
            source, target = self._near(vertices), self._near(vertices)
            return CreateEdge(self.random.choice("KL"), source, target, self._properties())
        if kind < 0.68:
            labels = self.random.choice([None, self._labels()])
            return UpdateNode(self._near(vertices), self._changes(), labels)
        if kind < 0.8:
            edge = self.graph.edges[self.random.choice(edges)]
            return UpdateEdge(edge.digest, self._changes(), self.random.choice([None, edge.source]))
        if kind < 0.9:
            edge = self.graph.edges[self.random.choice(edges)]
            return DeleteEdge(edge.digest, self.random.choice([None, edge.source]))
        return DeleteNode(self._near(vertices), detach=self.random.random() < 0.8)

    def _near(self, vertices: list[Digest]) -> Digest:
        """Mostly the first ones, so that some have many edges."""
        return vertices[min(int(self.random.expovariate(0.5)), len(vertices) - 1)]

    def _labels(self) -> tuple[str, ...]:
        return tuple(sorted(self.random.sample("ABC", self.random.randint(0, 2))))

    def _properties(self) -> dict[str, Value]:
        return {name: self.random.randint(0, 3) for name in "pq" if self.random.random() < 0.7}

    def _changes(self) -> dict[str, Value]:
        return {name: self.random.choice([None, 1, 2]) for name in "pq"}

    def allows(self, operation: Operation, taken: set[Digest]) -> bool:
        """Whether it will succeed after operations on ``taken``, which it must have nothing to do
        with."""
        named = {operation.digest} if not isinstance(operation, CreateNode | CreateEdge) else set()
        if isinstance(operation, CreateEdge):
            named = {operation.source, operation.target}
        if isinstance(operation, DeleteNode):
            around = steps(self.graph, operation.digest, "both", None)
            if around and not operation.detach:
                return False
            named |= {one for far, edge in around for one in (far, edge.digest)}
        elif named and (edge := self.graph.edges.get(min(named))) is not None:
            named |= {edge.source, edge.target}
        if named & taken:
            return False
        taken |= named
        return True

    def apply(self, operation: Operation, result: OperationResult) -> None:
        digest, version, at = result.digest, result.version, result.timestamp
        graph = self.graph
        entity: Entity | None = None
        match operation:
            case CreateNode(labels, properties):
                entity = Vertex(digest, version, labels, properties, at, at)
            case CreateEdge(label, source, target, properties):
                entity = Edge(digest, version, label, source, target, properties, at, at)
            case UpdateNode(labels=given):
                old = graph.vertices[digest]
                if version == old.version:
                    return
                labels = old.labels if given is None else given
                properties = _merged(old, operation.properties)
                entity = Vertex(digest, version, labels, properties, old.created_at, at)
            case UpdateEdge():
                was = graph.edges[digest]
                if version == was.version:
                    return
                properties = _merged(was, operation.properties)
                ends = (was.label, was.source, was.target)
                entity = Edge(digest, version, *ends, properties, was.created_at, at)
            case DeleteNode():
                for _, edge in steps(graph, digest, "both", None):
                    self._keep(edge.digest, None)
        self._keep(digest, entity)

    def _keep(self, digest: Digest, entity: Entity | None) -> None:
        self.versions.setdefault(digest, []).append(entity)
        self.graph.vertices.pop(digest, None) if entity is None else None
        self.graph.edges.pop(digest, None) if entity is None else None
        if isinstance(entity, Vertex):
            self.graph.vertices[digest] = entity
        elif isinstance(entity, Edge):
            self.graph.edges[digest] = entity

    def remember(self, timestamp: Timestamp) -> None:
        graph = Snapshot(dict(self.graph.vertices), dict(self.graph.edges))
        self.past.append((timestamp, graph))


def _merged(old: Entity, changes: dict[str, Value]) -> dict[str, Value]:
    merged = {**old.properties, **changes}
    return {name: value for name, value in merged.items() if value is not None}


class Comparer:
    """Asks the node and the model the same."""

    def __init__(self, cluster: KotobaCluster, model: Model) -> None:
        self.cluster = cluster
        self.model = model
        self.random = model.random

    async def change(self) -> None:
        count = self.random.choice([1, 1, 1, 3, 5])
        taken: set[Digest] = set()
        chosen = [self.model.some_operation() for _ in range(count)]
        operations = [one for one in chosen if self.model.allows(one, taken)]
        if not operations:
            return
        batch = [BatchOperation(one) for one in operations]
        kind = self.random.choice(["batch", "transaction", "refused"])
        if len(operations) == 1:
            results: list[Any] = [await self.cluster.execute_operation(operations[0])]
        elif kind == "batch":
            results = await self.cluster.execute_batch(batch)
        elif kind == "transaction":
            results = (await self.cluster.execute_transaction(batch)).results
        else:
            batch.append(BatchOperation(UpdateNode(b"?" * 32, {"p": 1})))
            with pytest.raises(NotFound) as caught:
                await self.cluster.execute_transaction(batch)
            assert caught.value.extra["index"] == len(operations)
            return
        for operation, result in zip(operations, results, strict=True):
            assert not isinstance(result, KotobaError), (operation, result)
            self.model.apply(operation, result)
        self.model.remember(self.cluster.now())

    async def compare(self) -> None:
        await self.compare_at(self.model.graph, None)
        timestamp, graph = self.random.choice(self.model.past)
        await self.compare_at(graph, timestamp)

    async def _rows(self, query: Query, at: Timestamp | None) -> list[Any]:
        result = await self.cluster.execute_query(query, as_of=at)
        assert not result.truncated
        return result.rows

    async def compare_at(self, graph: Snapshot, at: Timestamp | None) -> None:
        known = sorted(self.model.versions)
        everything: dict[Digest, Entity] = {**graph.vertices, **graph.edges}
        got = await self._rows(Get(cids=tuple(known)), at)
        assert got == [everything[one] for one in known if one in everything]
        await self._compare_finds(graph, at)
        await self._compare_counts(graph, at)
        for vertex in self.random.sample(known, 3):
            await self._compare_around(graph, vertex, at)

    def _where(self) -> Where | None:
        op = self.random.choice(["eq", "ne", "lt", "ge", "exists"])
        value: Value = self.random.random() < 0.5 if op == "exists" else self.random.randint(0, 3)
        return self.random.choice([None, Comparison("p", op, value)])  # type: ignore[arg-type]

    async def _compare_finds(self, graph: Snapshot, at: Timestamp | None) -> None:
        where, order = self._where(), (OrderBy("p"),) if self.random.random() < 0.5 else ()
        nodes = FindNodes(labels=("A",), where=where, order_by=order, limit=ROWS)
        expected = {
            one.digest: one
            for one in graph.vertices.values()
            if "A" in one.labels and fits(where, one)
        }
        assert {one.digest: one for one in await self._rows(nodes, at)} == expected
        edges = FindEdges(label="K", where=where, order_by=order, limit=ROWS)
        expected_edges = {
            one.digest: one for one in graph.edges.values() if one.label == "K" and fits(where, one)
        }
        assert {one.digest: one for one in await self._rows(edges, at)} == expected_edges

    async def _compare_counts(self, graph: Snapshot, at: Timestamp | None) -> None:
        rows = cast("list[CountRow]", await self._rows(Count(of="edges"), at))
        assert [row.count for row in rows] == [len(graph.edges)]
        by_label = Count(of="edges", group_by=GROUP_BY_LABEL)
        rows = cast("list[CountRow]", await self._rows(by_label, at))
        assert {row.group: row.count for row in rows} == Counter(
            one.label for one in graph.edges.values()
        )
        for where in (None, self._where()):
            by_value = Count(labels=("A",), where=where, group_by="p")
            rows = cast("list[CountRow]", await self._rows(by_value, at))
            assert {row.group: row.count for row in rows} == Counter(
                one.properties.get("p")
                for one in graph.vertices.values()
                if "A" in one.labels and fits(where, one)
            )

    async def _compare_around(self, graph: Snapshot, vertex: Digest, at: Timestamp | None) -> None:
        other = self.random.choice(sorted(self.model.versions))
        traverse = Traverse(start=(vertex,), direction="both", max_depth=3, limit=ROWS)
        rows = cast("list[TraversedVertex]", await self._rows(traverse, at))
        assert [(row.node.digest, row.depth, row.via) for row in rows] == bfs(graph, traverse)[0]
        path = ShortestPath(source=vertex, target=other, direction="both")
        paths = cast("list[PathRow]", await self._rows(path, at))
        length = lightest(graph, path)
        assert [row.length for row in paths] == ([] if length is None else [length])
        neighbours = Neighbours(vertex=vertex, direction="both", limit=ROWS)
        if vertex in graph.vertices:
            found = {one.digest for one in await self._rows(neighbours, at)}
            assert found == {one.digest for _, one in steps(graph, vertex, "both", None)}
        else:
            with pytest.raises(NotFound):
                await self._rows(neighbours, at)
        if at is None:
            told = cast("list[VersionRow]", await self._rows(History(digest=vertex), at))
            assert [row.entity for row in told] == self.model.versions[vertex][::-1]


@pytest.mark.parametrize("seed", range(3))
async def test_a_node_and_the_model_give_the_same_answers(seed: int) -> None:
    config = replace(ClusterConfig(partition_count=4), limits=LIMITS)
    async with single_node(config) as cluster:
        await cluster.declare_index("A", "p")
        comparer = Comparer(cluster, Model(Random(seed)))
        for step in range(STEPS):
            await comparer.change()
            if step % 4 == 3:
                await comparer.compare()
