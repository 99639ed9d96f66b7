"""Every kind of query over random small graphs, against plain Python over the whole graph.

The graph lies on two cluster nodes, so most queries cross the wire. Answers must not depend on
which node is asked or how the partitions are spread.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from random import Random
from typing import Any, cast
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from cluster_core.errors import NotFound
from cluster_core.graph.entities import Edge, Vertex
from cluster_core.graph.indexes import IndexDefinition
from cluster_core.graph.values import Value
from cluster_core.query import paths, traverse
from cluster_core.query.ordering import order_key
from cluster_core.query.plan import (
    GROUP_BY_LABEL,
    AllOf,
    AnyOf,
    Comparison,
    Count,
    Direction,
    FindEdges,
    FindNodes,
    Get,
    History,
    Negation,
    Neighbours,
    OrderBy,
    Query,
    ShortestPath,
    Traverse,
    Where,
)
from cluster_core.query.predicates import compile_where
from cluster_core.query.results import (
    CountRow,
    PathRow,
    TraversedEdge,
    TraversedVertex,
    VersionRow,
)
from cluster_core.types import Digest
from tests.cluster_core.query.two_nodes import Snapshot, TwoNodes

LABELS = ["A", "B", "C"]
EDGE_LABELS = ["K", "L", "LL"]
LONG = "x" * 600
VALUES: list[Value] = [0, 1, 2.5, True, "x", "xy", b"x", [1, "x"], LONG + "a", LONG + "b"]
NAMES = ["p", "q"]
DIRECTIONS: list[Direction] = ["out", "in", "both"]

comparisons: st.SearchStrategy[Where] = st.builds(
    Comparison,
    st.sampled_from(NAMES),
    st.sampled_from(["eq", "ne", "ge", "gt", "le", "lt"]),
    st.sampled_from(VALUES),
)
existences = st.builds(
    Comparison, st.sampled_from(NAMES), st.just("exists"), st.sampled_from([True, False])
)
pieces = st.builds(
    Comparison, st.sampled_from(NAMES), st.just("contains"), st.sampled_from(["x", 1, b"x"])
)
prefixes = st.builds(
    Comparison,
    st.sampled_from(NAMES),
    st.just("starts_with"),
    st.sampled_from(["", "x", "xy", b"x", LONG]),
)
memberships = st.builds(
    Comparison,
    st.sampled_from(NAMES),
    st.just("in"),
    st.lists(st.sampled_from([None, 1, 2.5, "x", LONG + "b"]), max_size=3),
)
comparisons = st.one_of(comparisons, comparisons, prefixes, memberships, existences, pieces)
conditions = st.one_of(
    st.none(),
    comparisons,
    st.builds(Negation, comparisons),
    st.builds(lambda *inner: AnyOf(inner), comparisons, comparisons),
    st.builds(lambda *inner: AllOf(inner), comparisons, comparisons),
)
label_sets = st.one_of(
    st.lists(st.sampled_from(LABELS), max_size=2, unique=True).map(tuple),
    st.just(("A",)),
    st.just(("B", "A")),
)
edge_labels = st.one_of(st.none(), st.lists(st.sampled_from(EDGE_LABELS), max_size=2).map(tuple))
orders = st.builds(OrderBy, st.sampled_from(NAMES), st.booleans())
order_bys = st.one_of(st.lists(orders, max_size=2), st.lists(orders, min_size=1, max_size=1))


@st.composite
def graphs(draw: st.DrawFn) -> TwoNodes:
    """Vertices and edges, some of which changed or went, and property indexes on some of them:
    complete since some time, still being built, or dropped, which a node need not have heard of.

    Only the seed is Hypothesis's: left to itself it prefers graphs with next to no edges.
    """
    random = Random(draw(st.integers(0, 1 << 32)))
    cluster = TwoNodes(nodes=random.randint(1, 3))

    building: list[IndexDefinition] = []
    ready: list[IndexDefinition] = []

    def some_properties() -> dict[str, Value]:
        return {name: random.choice(VALUES) for name in NAMES if random.random() < 0.7}

    def look_after_indexes() -> None:
        while random.random() < 0.6:
            label = random.choice(["A", "A", "B", "K", "K", "L"])
            building.append(cluster.begin_index(label, random.choice(NAMES)))
        while building and random.random() < 0.6:
            ready.append(cluster.finish_index(building.pop(0)))
        if ready and random.random() < 0.2:
            cluster.drop_index(ready.pop(), known=random.random() < 0.5)

    vertices = [
        cluster.add_vertex(*random.sample(LABELS, random.randint(0, 2)), **some_properties())
        for _ in range(random.randint(1, 9))
    ]
    look_after_indexes()
    edges = [
        cluster.add_edge(
            random.choice(EDGE_LABELS),
            random.choice(vertices),
            random.choice(vertices),
            **some_properties(),
        )
        for _ in range(random.randint(0, 24))
    ]
    for digest in random.choices(vertices + edges, k=random.randint(0, 6)):
        look_after_indexes()
        cluster.update(digest, **some_properties())
    look_after_indexes()
    for digest in random.choices(vertices + edges, k=random.randint(0, 3)):
        if digest in cluster.graph.vertices or digest in cluster.graph.edges:
            cluster.delete(digest)
            look_after_indexes()
    return cluster


def random_graph_test(test: Any) -> Any:
    return settings(max_examples=60, deadline=None)(given(graphs(), st.data())(test))


def moment(cluster: TwoNodes, data: st.DataObject) -> tuple[int, Snapshot]:
    """Now, or some time before."""
    times = [*cluster.snapshots]
    at = data.draw(st.sampled_from([*[cluster.now] * 8, *times[-8:], *times[::9]]))
    return at, cluster.snapshots[at]


def some_vertex(cluster: TwoNodes, data: st.DataObject) -> Digest:
    """A vertex of any time."""
    known = sorted({each for shot in cluster.snapshots.values() for each in shot.vertices})
    return data.draw(st.sampled_from(known))


def fits(where: Where | None, entity: Vertex | Edge) -> bool:
    return where is None or compile_where(where)(entity.properties)


def steps(
    graph: Snapshot,
    vertex: Digest,
    direction: Direction,
    labels: tuple[str, ...] | None,
    where: Where | None = None,
) -> list[tuple[Digest, Edge]]:
    """Far ends and edges of a vertex; a loop once."""
    found = []
    for edge in graph.edges.values():
        if (labels is not None and edge.label not in labels) or not fits(where, edge):
            continue
        if direction != "in" and edge.source == vertex:
            found.append((edge.target, edge))
        elif direction != "out" and edge.target == vertex:
            found.append((edge.source, edge))
    return found


# Entities


@random_graph_test
async def test_get_finds_entities_and_versions_by_any_cid(
    cluster: TwoNodes, data: st.DataObject
) -> None:
    at, graph = moment(cluster, data)
    by_cid: dict[Digest, Vertex | Edge] = {}
    for time, snapshot in cluster.snapshots.items():
        entities: list[Vertex | Edge] = [*snapshot.vertices.values(), *snapshot.edges.values()]
        for entity in entities:
            if entity.version != entity.digest and time <= at:
                by_cid[entity.version] = entity
    everything = {*by_cid, *cluster.graph.vertices, *cluster.graph.edges, b"?" * 32}
    by_cid.update(graph.vertices)
    by_cid.update(graph.edges)
    asked = tuple(data.draw(st.lists(st.sampled_from(sorted(everything)), max_size=12)))
    result = await cluster.ask(Get(cids=asked), at=at)
    assert result.rows == [by_cid[cid] for cid in asked if cid in by_cid]
    assert set(result.found) == {cid for cid in asked if cid in by_cid}
    assert all(result.rows[place] == by_cid[cid] for cid, place in result.found.items())


@random_graph_test
async def test_history_tells_every_version_and_the_deletion(
    cluster: TwoNodes, data: st.DataObject
) -> None:
    digest = some_vertex(cluster, data)
    expected: list[VersionRow] = []
    for at, snapshot in cluster.snapshots.items():
        entity = snapshot.vertices.get(digest)
        if entity is not None and entity.updated_at == at:
            expected.insert(0, VersionRow(timestamp=at, entity=entity))
        if entity is None and expected and expected[0].entity is not None:
            expected.insert(0, VersionRow(timestamp=at, entity=None))
    assert (await cluster.ask(History(digest=digest))).rows == expected


# Scans


@random_graph_test
async def test_find_pages_through_one_snapshot(cluster: TwoNodes, data: st.DataObject) -> None:
    at, graph = moment(cluster, data)
    where, limit = data.draw(conditions), data.draw(st.integers(1, 12))
    order_by = tuple(data.draw(order_bys))
    query: FindNodes | FindEdges
    if data.draw(st.booleans()):
        labels = data.draw(label_sets)
        query = FindNodes(labels=labels, where=where, order_by=order_by, limit=limit)
        entities: list[Vertex | Edge] = [
            each for each in graph.vertices.values() if set(labels) <= set(each.labels)
        ]
    else:
        label = data.draw(st.sampled_from([None, "K", "K", *EDGE_LABELS]))
        query = FindEdges(label=label, where=where, order_by=order_by, limit=limit)
        entities = [each for each in graph.edges.values() if label in (None, each.label)]
    expected = [each for each in entities if fits(where, each)]
    if order_by:
        expected.sort(key=lambda each: each.digest)
        for order in reversed(order_by):
            expected.sort(
                key=lambda each: order_key(each.properties.get(order.property)),
                reverse=order.descending,
            )
    else:
        expected.sort(key=lambda each: (cluster.home_of(each), each.digest))
    rows: list[object] = []
    cursor = None
    for page in range(40):
        result = await cluster.ask(structs.replace(query, cursor=cursor), at=at)
        assert len(result.rows) <= limit
        assert not result.truncated
        rows += result.rows
        cursor = result.cursor
        if cursor is None:
            break
        assert len(result.rows) == limit, f"page {page} is short"
    assert cursor is None
    assert rows == expected


@random_graph_test
async def test_count_counts_groups(cluster: TwoNodes, data: st.DataObject) -> None:
    at, graph = moment(cluster, data)
    where = data.draw(conditions)
    group_by = data.draw(st.sampled_from([None, "p", GROUP_BY_LABEL]))
    if data.draw(st.booleans()):
        labels = data.draw(label_sets)
        query = Count(labels=labels, where=where, group_by=group_by)
        entities: list[Vertex | Edge] = [
            each for each in graph.vertices.values() if set(labels) <= set(each.labels)
        ]
    else:
        query = Count(of="edges", label="K", where=where, group_by=group_by)
        entities = [each for each in graph.edges.values() if each.label == "K"]
    result = await cluster.ask(query, at=at)
    rows = cast("list[CountRow]", result.rows)
    counter: Counter[bytes] = Counter()
    for entity in entities:
        if fits(where, entity):
            counter.update(map(order_key, _groups(entity, group_by)))
    if group_by is None:
        assert [row.count for row in rows] == [counter.total()]
    else:
        assert {order_key(row.group): row.count for row in rows} == counter
        assert [row.count for row in rows] == sorted(counter.values(), reverse=True)


def _groups(entity: Vertex | Edge, group_by: str | None) -> list[Value]:
    if group_by is None:
        return [None]
    if group_by != GROUP_BY_LABEL:
        return [entity.properties.get(group_by)]
    return [entity.label] if isinstance(entity, Edge) else [*entity.labels] or [None]


# Edges and paths


@random_graph_test
async def test_neighbours_pages_through_the_edges_of_a_vertex(
    cluster: TwoNodes, data: st.DataObject
) -> None:
    at, graph = moment(cluster, data)
    vertex, direction = some_vertex(cluster, data), data.draw(st.sampled_from(DIRECTIONS))
    label, limit = data.draw(st.sampled_from([None, "L"])), data.draw(st.integers(1, 4))
    query = Neighbours(vertex=vertex, direction=direction, label=label, limit=limit)
    if vertex not in graph.vertices:
        with pytest.raises(NotFound):
            await cluster.ask(query, at=at)
        return
    found = steps(graph, vertex, direction, None if label is None else (label,))

    def place(edge: Edge) -> tuple[bool, str, Digest]:
        return edge.source == vertex and direction != "in", edge.label + "\0", edge.digest

    expected = sorted((edge for _, edge in found), key=place)
    rows: list[object] = []
    cursor = None
    while True:
        result = await cluster.ask(structs.replace(query, cursor=cursor), at=at)
        rows += result.rows
        cursor = result.cursor
        if cursor is None:
            break
        assert len(result.rows) == limit
    assert rows == expected


def bfs(graph: Snapshot, query: Traverse) -> tuple[list[Any], list[Any]]:
    """(vertex, depth, via) and (edge, depth), by depth and digest."""
    start = [each for each in dict.fromkeys(query.start) if each in graph.vertices]
    depths = dict.fromkeys(start, 0)
    nodes: list[Any] = [
        (each, 0, None) for each in start if fits(query.where_node, graph.vertices[each])
    ]
    followed: dict[Digest, int] = {}
    refused: set[Digest] = set()
    frontier = start
    for depth in range(1, query.max_depth + 1):
        via: dict[Digest, Digest] = {}
        for vertex in frontier:
            for far, edge in steps(
                graph, vertex, query.direction, query.edge_labels, query.where_edge
            ):
                if far not in depths and not fits(query.where_node, graph.vertices[far]):
                    refused.add(far)
                if far in refused:
                    continue
                followed.setdefault(edge.digest, depth)
                if far not in depths:
                    via[far] = min(via.get(far, edge.digest), edge.digest)
        depths.update(dict.fromkeys(via, depth))
        nodes += [(far, depth, via[far]) for far in via]
        frontier = list(via)
    nodes = [row for row in nodes if row[1] >= query.min_depth]
    edges = [(edge, depth) for edge, depth in followed.items() if depth >= query.min_depth]
    return (
        sorted(nodes, key=lambda row: (row[1], row[0])),
        sorted(edges, key=lambda row: (row[1], row[0])),
    )


@random_graph_test
async def test_traverse_reaches_each_vertex_and_edge_at_its_smallest_depth(
    cluster: TwoNodes, data: st.DataObject
) -> None:
    at, graph = moment(cluster, data)
    max_depth = data.draw(st.integers(0, 4))
    query = Traverse(
        start=tuple(some_vertex(cluster, data) for _ in range(data.draw(st.integers(1, 2)))),
        direction=data.draw(st.sampled_from(DIRECTIONS)),
        edge_labels=data.draw(edge_labels),
        min_depth=data.draw(st.integers(0, max_depth)),
        max_depth=max_depth,
        where_node=data.draw(conditions),
        where_edge=data.draw(conditions),
        limit=data.draw(st.integers(1, 30)),
        return_=data.draw(st.sampled_from(["nodes", "edges"])),
    )
    nodes, edges = bfs(graph, query)
    with patch.object(traverse, "PIECE_MIN", data.draw(st.sampled_from([1, 256]))):
        node = data.draw(st.sampled_from(sorted(cluster.mesh)))
        result = await cluster.ask(query, at=at, node=node)
    got: list[Any]
    if query.return_ == "nodes":
        rows = cast("list[TraversedVertex]", result.rows)
        got, expected = [(row.node.digest, row.depth, row.via) for row in rows], nodes
        assert all(row.node == graph.vertices[row.node.digest] for row in rows)
    else:
        links = cast("list[TraversedEdge]", result.rows)
        got, expected = [(row.edge.digest, row.depth) for row in links], edges
        assert all(row.edge == graph.edges[row.edge.digest] for row in links)
    assert result.truncated == (len(expected) > query.limit)
    if result.truncated:
        _check_cut(graph, query, got, expected)
    else:
        assert got == expected
    assert result.bound == ("limit" if result.truncated else None)


def _check_cut(graph: Snapshot, query: Traverse, got: list[Any], expected: list[Any]) -> None:
    """All rows of the depths before the last one, and of that as many as there is room for."""
    assert len(got) == query.limit
    last = got[-1][1]
    whole = [row for row in expected if row[1] < last]
    assert got[: len(whole)] == whole
    rest = got[len(whole) :]
    assert [row[0] for row in rest] == sorted({row[0] for row in rest})
    assert {row[:2] for row in rest} <= {row[:2] for row in expected if row[1] == last}
    if query.return_ == "nodes" and last > 0:
        followed = dict(bfs(graph, structs.replace(query, min_depth=0))[1])
        for vertex, _, via in rest:
            assert followed[via] == last
            assert vertex in (graph.edges[via].source, graph.edges[via].target)


def lightest(graph: Snapshot, query: ShortestPath) -> float | None:
    """Bellman-Ford: the least weight with at most that many edges."""
    if query.source not in graph.vertices or query.target not in graph.vertices:
        return None
    best: dict[Digest, float] = {query.source: 0}
    for _ in range(query.max_depth):
        further = dict(best)
        for vertex, length in best.items():
            for far, edge in steps(graph, vertex, query.direction, query.edge_labels):
                total = length + weight_of(edge, query)
                further[far] = min(further.get(far, total), total)
        best = further
    return best.get(query.target)


def weight_of(edge: Edge, query: ShortestPath) -> float:
    if query.weight is None:
        return 1
    return cast("float", edge.properties.get(query.weight, 1))


@random_graph_test
async def test_a_shortest_path_is_a_path_and_shortest(
    cluster: TwoNodes, data: st.DataObject
) -> None:
    for digest in list(cluster.graph.edges):
        weight = data.draw(st.sampled_from([None, 0, 1, 2, 0.5, 7]))
        cluster.update(digest, **({} if weight is None else {"w": weight}))
    graph = cluster.graph
    query = ShortestPath(
        source=some_vertex(cluster, data),
        target=some_vertex(cluster, data),
        direction=data.draw(st.sampled_from(DIRECTIONS)),
        edge_labels=data.draw(edge_labels),
        max_depth=data.draw(st.integers(0, 6)),
        weight=data.draw(st.sampled_from([None, "w"])),
    )
    size = data.draw(st.sampled_from([1, 2, 5, 1_024]))
    with patch.multiple(paths, RUN_MAX=size, AHEAD_ENTRIES_MAX=size):
        result = await cluster.ask(query)
    expected = lightest(graph, query)
    if expected is None:
        assert result.rows == []
        return
    (path,) = cast("list[PathRow]", result.rows)
    assert path.length == pytest.approx(expected)
    assert len(path.edges) <= query.max_depth
    assert [path.nodes[0].digest, path.nodes[-1].digest] == [query.source, query.target]
    assert path.nodes == [graph.vertices[node.digest] for node in path.nodes]
    for (near, far), edge in zip(pairwise(path.nodes), path.edges, strict=True):
        found = steps(graph, near.digest, query.direction, query.edge_labels)
        assert (far.digest, edge) in found
    assert path.length == pytest.approx(sum(weight_of(edge, query) for edge in path.edges))


@settings(max_examples=20, deadline=None)
@given(graphs(), st.data())
async def test_every_node_gives_the_same_answer(cluster: TwoNodes, data: st.DataObject) -> None:
    start = (some_vertex(cluster, data),)
    queries: list[Query] = [
        FindNodes(order_by=(OrderBy("p"),), limit=5),
        Traverse(start=start, direction="both", max_depth=5),
        ShortestPath(source=start[0], target=some_vertex(cluster, data), direction="both"),
    ]
    for query in queries:
        answers = [await cluster.ask(query, node=name) for name in cluster.mesh]
        assert all(answer.rows == answers[0].rows for answer in answers)
        assert all(answer.cursor == answers[0].cursor for answer in answers)
