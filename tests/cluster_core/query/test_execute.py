"""Bounds, pages, read points and failures of queries."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, cast

import pytest
from msgspec import structs

from cluster_core.config import LimitConfig
from cluster_core.errors import (
    HistoryCollected,
    InvalidRequest,
    NoLeader,
    OutcomeUnknown,
    TooLarge,
    Unreachable,
)
from cluster_core.graph.blocks import digest_of
from cluster_core.graph.entities import Edge, Vertex
from cluster_core.query import gather
from cluster_core.query.cursor import cursor_timestamp
from cluster_core.query.host import ReadAgain, ReadPoint
from cluster_core.query.plan import (
    Blocks,
    Comparison,
    Count,
    Direction,
    FindEdges,
    FindNodes,
    Get,
    History,
    Neighbours,
    OrderBy,
    Query,
    ShortestPath,
    Traverse,
)
from cluster_core.query.results import (
    BlockRow,
    CountRow,
    PathRow,
    QueryResult,
    TraversedEdge,
    TraversedVertex,
    VersionRow,
)
from cluster_core.query.work import PAUSE_AFTER
from cluster_core.types import Digest
from tests.cluster_core.query.two_nodes import PARTITIONS, TwoNodes

SMALL_ANSWERS = LimitConfig(query_bytes_max=6_000)


@pytest.fixture
def cluster() -> TwoNodes:
    return TwoNodes()


def star(cluster: TwoNodes, size: int) -> tuple[Digest, list[Digest]]:
    """A hub and its edges to as many vertices."""
    hub = cluster.add_vertex("Hub")
    edges = [cluster.add_edge("K", hub, cluster.add_vertex("Ray", n=n), n=n) for n in range(size)]
    return hub, edges


def chain(cluster: TwoNodes, size: int) -> list[Digest]:
    vertices = [cluster.add_vertex() for _ in range(size)]
    for near, far in pairwise(vertices):
        cluster.add_edge("NEXT", near, far)
    return vertices


# Entities


async def test_a_version_that_is_newer_than_the_read_is_not_there(cluster: TwoNodes) -> None:
    vertex = cluster.add_vertex(n=1)
    before = cluster.now
    version = cluster.update(vertex, n=2)
    assert (await cluster.ask(Get(cids=(version,)), at=before)).rows == []
    (row,) = (await cluster.ask(Get(cids=(vertex,)), at=before)).rows
    assert cast("Vertex", row).properties == {"n": 1}


async def test_exact_tells_the_first_version_from_the_entity(cluster: TwoNodes) -> None:
    vertex = cluster.add_vertex(n=1)
    cluster.update(vertex, n=2)
    (now,) = (await cluster.ask(Get(cids=(vertex,)))).rows
    (first,) = (await cluster.ask(Get(cids=(vertex,), exact=True))).rows
    assert cast("Vertex", now).properties == {"n": 2}
    assert cast("Vertex", first).properties == {"n": 1}
    assert cast("Vertex", first).version == vertex


async def test_the_source_of_an_edge_is_a_hint_that_saves_asking_everybody(
    cluster: TwoNodes,
) -> None:
    source, target = cluster.add_vertex(), cluster.add_vertex()
    edge = cluster.add_edge("K", source, target)
    everywhere = await cluster.ask(Get(cids=(edge,)))
    hinted = await cluster.ask(Get(cids=(edge,), source=source))
    misled = await cluster.ask(Get(cids=(edge,), source=target))
    assert everywhere.rows == hinted.rows == misled.rows == [cluster.graph.edges[edge]]
    assert everywhere.statistics.partitions == PARTITIONS
    assert hinted.statistics.partitions <= 2


async def test_a_block_is_named_by_its_digest(cluster: TwoNodes) -> None:
    source, target = cluster.add_vertex(), cluster.add_vertex()
    edge = cluster.add_edge("K", source, target)
    version = cluster.update(edge, n=1)
    asked = (version, b"?" * 32, edge, source)
    anywhere = await cluster.ask(Blocks(cids=asked))
    assert block_digests(anywhere) == [version, edge, source]
    assert not anywhere.truncated


async def test_blocks_are_looked_for_only_where_they_are_said_to_be(cluster: TwoNodes) -> None:
    source = cluster.add_vertex()
    targets = (cluster.add_vertex() for _ in range(100))
    target = next(one for one in targets if cluster.home(one) != cluster.home(source))
    edge = cluster.add_edge("K", source, target)
    first, last = cluster.update(edge, n=1), cluster.update(source, n=1)
    cluster.update(edge, n=2)
    cluster.delete(source)
    there = Blocks(cids=(first, edge, last, source), sources=(source,) * 4)
    result = await cluster.ask(there)
    assert block_digests(result) == [first, edge, last, source]
    assert result.statistics.partitions == 1
    assert (await cluster.ask(Blocks(cids=(first, edge), sources=(target,) * 2))).rows == []


async def test_a_version_may_be_of_any_transaction_that_is_not_decided_yet(
    cluster: TwoNodes,
) -> None:
    vertex = cluster.add_vertex(n=1)
    version = cluster.update(vertex, n=2)
    home = cluster.home(vertex)
    node = cluster.alpha.serving_node(home)
    await cluster.ask(Blocks(cids=(version,), sources=(vertex,)), node=node)
    assert cluster.mesh[node].settled == [(home, cluster.now, None)]


async def test_a_block_that_is_newer_than_the_read_is_not_there(cluster: TwoNodes) -> None:
    vertex = cluster.add_vertex(n=1)
    before = cluster.now
    version = cluster.update(vertex, n=2)
    for sources in ((), (vertex, vertex)):
        result = await cluster.ask(Blocks(cids=(version, vertex), sources=sources), at=before)
        assert block_digests(result) == [vertex]


@pytest.mark.parametrize("is_hinted", [False, True])
async def test_blocks_that_fill_an_answer_leave_the_rest_for_the_next(
    cluster: TwoNodes, is_hinted: bool
) -> None:
    hub, edges = star(cluster, 3 * gather.LOCATED_MAX)
    asked = (*edges, hub, b"?" * 32)
    told: list[Digest] = []
    answers = 0
    while rest := asked[len(told) :]:
        sources = (hub,) * len(rest) if is_hinted else ()
        result = await cluster.ask(Blocks(cids=rest, sources=sources), limits=SMALL_ANSWERS)
        told += block_digests(result)
        answers += 1
        if not result.truncated:
            break
        assert result.bound == "bytes"
    assert told == [*edges, hub]
    assert answers >= 3


async def test_entities_that_are_looked_for_everywhere_fill_an_answer_too(
    cluster: TwoNodes,
) -> None:
    _, edges = star(cluster, 3 * gather.LOCATED_MAX)
    result = await cluster.ask(Get(cids=tuple(edges)), limits=SMALL_ANSWERS)
    assert (result.truncated, result.bound) == (True, "bytes")
    assert [cast("Edge", row).digest for row in result.rows] == edges[: len(result.rows)]
    assert result.statistics.scanned < len(edges) * PARTITIONS, "nobody looked for the last ones"


def block_digests(result: QueryResult) -> list[Digest]:
    """What the blocks of an answer are named by, which is what they hash to."""
    rows = [cast("BlockRow", row) for row in result.rows]
    assert [digest_of(row.block) for row in rows] == [row.digest for row in rows]
    return [row.digest for row in rows]


async def test_a_history_whose_beginning_is_not_kept_any_more_says_so(cluster: TwoNodes) -> None:
    vertex = cluster.add_vertex(n=0)
    versions = [cluster.update(vertex, n=n) for n in range(1, 5)]
    whole = await cluster.ask(History(digest=vertex))
    assert (len(whole.rows), whole.bound) == (5, None)
    cluster.move_horizon(cluster.now - 1)
    result = await cluster.ask(History(digest=vertex))
    cluster.collect(cluster.now - 1)
    assert (await cluster.ask(History(digest=vertex))).rows == result.rows
    kept = [cast("VersionRow", row).entity for row in result.rows]
    assert [cast("Vertex", entity).version for entity in kept] == versions[:-3:-1]
    assert (result.truncated, result.bound) == (True, "history")
    cut = await cluster.ask(History(digest=vertex, limit=1))
    assert cut.bound == "limit"


@pytest.mark.parametrize(
    "query",
    [
        FindNodes(limit=4),
        FindNodes(limit=4, order_by=(OrderBy("n"),)),
        FindEdges(limit=4),
        Neighbours(vertex=b"", limit=4),
    ],
)
async def test_a_page_of_a_snapshot_that_is_gone_is_refused_and_not_short(
    cluster: TwoNodes, query: Query
) -> None:
    hub, _ = star(cluster, 12)
    if isinstance(query, Neighbours):
        query = structs.replace(query, vertex=hub)
    first = await cluster.ask(query)
    at = cluster.now
    cluster.delete(hub)
    following = structs.replace(query, cursor=first.cursor)
    cluster.collect(at)
    assert len((await cluster.ask(following, at=at)).rows) == 4
    cluster.collect(at + 1)
    with pytest.raises(HistoryCollected):
        await cluster.ask(following, at=at)


async def test_the_history_is_cut_at_its_limit_and_says_so(cluster: TwoNodes) -> None:
    vertex = cluster.add_vertex()
    versions = [cluster.update(vertex, n=n) for n in range(5)]
    result = await cluster.ask(History(digest=versions[2], limit=3))
    assert [cast("Vertex", row.entity).version for row in result.rows] == versions[:1:-1]  # type: ignore[union-attr]
    assert (result.truncated, result.bound) == (True, "limit")


async def test_a_long_history_is_whole(cluster: TwoNodes) -> None:
    vertex = cluster.add_vertex()
    versions = [vertex] + [cluster.update(vertex, n=n) for n in range(PAUSE_AFTER + 1)]
    result = await cluster.ask(History(digest=vertex, limit=10_000))
    assert [cast("Vertex", row.entity).version for row in result.rows] == versions[::-1]  # type: ignore[union-attr]


async def test_the_time_of_a_query_is_told_finer_than_by_milliseconds(
    cluster: TwoNodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = iter((7.0, 7.000_125))
    monkeypatch.setattr(cluster.alpha, "steady_s", lambda: next(readings))
    result = await cluster.ask(Count())
    assert result.statistics.elapsed_ms == pytest.approx(0.125)


# Pages


@pytest.mark.parametrize(
    "query",
    [
        FindNodes(limit=4),
        FindNodes(limit=4, order_by=(OrderBy("n", descending=True),)),
        FindEdges(limit=4),
    ],
)
async def test_pages_show_the_snapshot_of_the_first(cluster: TwoNodes, query: Query) -> None:
    hub, edges = star(cluster, 12)
    assert isinstance(query, FindNodes | FindEdges)
    first = await cluster.ask(query)
    at = cluster.now
    assert first.cursor is not None
    for edge in edges[3:]:
        cluster.update(edge, n=0)
    cluster.delete(hub)
    rows = list(first.rows)
    cursor: str | None = first.cursor
    while cursor is not None:
        following = type(query)(limit=4, order_by=query.order_by, cursor=cursor)
        assert cursor_timestamp(following) == at
        result = await cluster.ask(following, at=at)
        rows += result.rows
        cursor = result.cursor
    then = cluster.snapshots[at]
    expected = then.edges if isinstance(query, FindEdges) else then.vertices
    assert {cast("Vertex", row).digest: row for row in rows} == expected


@pytest.mark.parametrize("cursor", ["", "x", "####", "AAAA", "A" * 100, "é"])
async def test_a_cursor_that_is_not_ours_is_refused(cluster: TwoNodes, cursor: str) -> None:
    with pytest.raises(InvalidRequest, match="cursor"):
        await cluster.ask(FindNodes(cursor=cursor))


async def test_a_cursor_belongs_to_its_query_and_its_time(cluster: TwoNodes) -> None:
    star(cluster, 5)
    cursor = (await cluster.ask(FindNodes(limit=2))).cursor
    await cluster.ask(FindNodes(limit=3, cursor=cursor))
    with pytest.raises(InvalidRequest, match="another query"):
        await cluster.ask(FindNodes(labels=("Ray",), cursor=cursor))
    with pytest.raises(InvalidRequest, match="another query"):
        await cluster.ask(FindEdges(cursor=cursor))
    with pytest.raises(InvalidRequest, match="another point in time"):
        await cluster.ask(FindNodes(cursor=cursor), at=cluster.now - 1)


async def test_a_page_of_a_hub_reads_one_entry_more_than_it_shows(cluster: TwoNodes) -> None:
    hub, _ = star(cluster, 3_000)
    result = await cluster.ask(Neighbours(vertex=hub, limit=5))
    assert len(result.rows) == 5
    assert result.cursor is not None
    assert result.statistics.scanned < 200


@pytest.mark.parametrize("return_", ["nodes", "edges"])
@pytest.mark.parametrize("where_node", [None, Comparison("n", "ge", 5)])
async def test_a_traversal_reads_little_more_of_a_hub_than_it_shows(
    cluster: TwoNodes, return_: Literal["nodes", "edges"], where_node: Comparison | None
) -> None:
    hub, _ = star(cluster, 3_000)
    leaf = cluster.add_vertex(n=7)
    cluster.add_edge("K", leaf, hub)
    cluster.update(hub, n=8)
    for start, max_depth in ((hub, 1), (leaf, 2), (leaf, 4)):
        query = Traverse(
            start=(start,), max_depth=max_depth, limit=5, return_=return_, where_node=where_node
        )
        result = await cluster.ask(query)
        assert (len(result.rows), result.bound) == (5, "limit")
        assert result.statistics.scanned < 700


async def test_a_traversal_stops_in_the_middle_of_a_hub_at_its_bounds(cluster: TwoNodes) -> None:
    hub, _ = star(cluster, 3_000)
    query = Traverse(start=(hub,), max_depth=1, limit=10_000)
    result = await cluster.ask(query, limits=LimitConfig(query_visited_max=100))
    assert (len(result.rows), result.bound) == (99, "visited")
    assert result.statistics.scanned < 3_500
    cluster.alpha.delay = cluster.mesh["beta"].delay = 0.2
    with pytest.raises(OutcomeUnknown, match="timeout_ms"):
        await cluster.ask(query, timeout=0.1)


@pytest.mark.parametrize("direction", ["out", "in", "both"])
async def test_a_path_does_not_read_a_hub_to_its_end(
    cluster: TwoNodes, direction: Direction
) -> None:
    """Whichever end it is, and where it lies between them: the other side has few edges."""
    hub, edges = star(cluster, 3_000)
    near = cluster.graph.edges[edges[7]].target
    end = cluster.add_vertex()
    cluster.add_edge("K", near, end)
    for source, target, length in ((hub, end, 2), (hub, near, 1)):
        ends = (target, source) if direction == "in" else (source, target)
        query = ShortestPath(source=ends[0], target=ends[1], direction=direction)
        result = await cluster.ask(query)
        assert [cast("PathRow", row).length for row in result.rows] == [length]
        assert result.statistics.scanned < 700


# Bounds


@pytest.mark.parametrize("query", [FindNodes(), FindEdges()])
async def test_a_scan_that_ends_early_goes_on_at_its_cursor(
    cluster: TwoNodes, query: Query
) -> None:
    assert isinstance(query, FindNodes | FindEdges)
    star(cluster, 300)
    limits = LimitConfig(query_scanned_max=100)
    rows: list[object] = []
    cursor, bounds = None, set()
    for _ in range(200):
        result = await cluster.ask(type(query)(cursor=cursor), limits=limits)
        rows += result.rows
        bounds.add(result.bound)
        cursor = result.cursor
        if cursor is None:
            break
    graph = cluster.graph
    entities: list[Vertex | Edge] = list(graph.vertices.values())
    if isinstance(query, FindEdges):
        entities = list(graph.edges.values())
    assert rows == sorted(entities, key=lambda each: (cluster.home_of(each), each.digest))
    assert "scanned" in bounds


async def test_an_ordered_scan_that_ends_early_has_no_cursor(cluster: TwoNodes) -> None:
    star(cluster, 300)
    limits = LimitConfig(query_scanned_max=100)
    result = await cluster.ask(FindNodes(order_by=(OrderBy("n"),)), limits=limits)
    assert (result.cursor, result.truncated, result.bound) == (None, True, "scanned")


async def test_a_count_that_ends_early_is_a_lower_bound(cluster: TwoNodes) -> None:
    star(cluster, 300)
    result = await cluster.ask(Count(), limits=LimitConfig(query_scanned_max=100))
    assert 0 < cast("CountRow", result.rows[0]).count < 301
    assert result.bound == "scanned"


async def test_too_many_groups_are_an_error(cluster: TwoNodes) -> None:
    star(cluster, 30)
    limits = LimitConfig(query_rows_max=10)
    with pytest.raises(TooLarge, match="query_rows_max"):
        await cluster.ask(Count(labels=("Ray",), group_by="n"), limits=limits)


@pytest.mark.parametrize("indexed", [False, True])
async def test_groups_of_too_many_bytes_are_an_error(cluster: TwoNodes, indexed: bool) -> None:
    """Those of one node, or of all of them together; without their values on the way."""
    for n in range(12):
        cluster.add_vertex("L", text=f"{n}" + "x" * 400)
    if indexed:
        cluster.finish_index(cluster.begin_index("L", "text"))
    query = Count(labels=("L",), group_by="text")
    assert len((await cluster.ask(query)).rows) == 12
    for size_max in (1_000, 4_000):
        with pytest.raises(TooLarge, match="query_bytes_max"):
            await cluster.ask(query, limits=LimitConfig(query_bytes_max=size_max))


@pytest.mark.parametrize("order_by", [(), (OrderBy("n"),)])
async def test_pages_end_before_they_are_too_many_bytes(
    cluster: TwoNodes, order_by: tuple[OrderBy, ...]
) -> None:
    for n in range(40):
        cluster.add_vertex(n=n, text="x" * 1_000)
    limits = SMALL_ANSWERS
    rows: list[object] = []
    cursor = None
    while True:
        result = await cluster.ask(FindNodes(order_by=order_by, cursor=cursor), limits=limits)
        assert len(result.rows) <= 6
        rows += result.rows
        cursor = result.cursor
        if cursor is None:
            break
        assert result.bound == "bytes"
    if order_by:
        assert [cast("Vertex", row).properties["n"] for row in rows] == list(range(40))
    assert {cast("Vertex", row).digest for row in rows} == set(cluster.graph.vertices)


async def test_rows_of_any_kind_end_before_they_are_too_many_bytes(cluster: TwoNodes) -> None:
    hub = cluster.add_vertex()
    far = [cluster.add_vertex(text="x" * 1_000) for _ in range(20)]
    edges = [cluster.add_edge("K", hub, each, text="x" * 1_000) for each in far]
    limits = SMALL_ANSWERS
    queries: list[Query] = [Get(cids=tuple(far)), Traverse(start=(hub,))]
    for query in queries:
        result = await cluster.ask(query, limits=limits)
        assert 0 < len(result.rows) <= 6
        assert (result.truncated, result.bound) == (True, "bytes")
    rows: list[object] = []
    cursor = None
    while True:
        result = await cluster.ask(Neighbours(vertex=hub, cursor=cursor), limits=limits)
        rows += result.rows
        cursor = result.cursor
        if cursor is None:
            break
    assert [cast("Edge", row).digest for row in rows] == sorted(edges)


async def test_a_traversal_visits_no_more_than_its_bound(cluster: TwoNodes) -> None:
    hub, _ = star(cluster, 50)
    limits = LimitConfig(query_visited_max=20)
    result = await cluster.ask(Traverse(start=(hub,), max_depth=2), limits=limits)
    assert len(result.rows) == 19
    assert (result.truncated, result.bound) == (True, "visited")
    edges = await cluster.ask(Traverse(start=(hub,), max_depth=2, return_="edges"), limits=limits)
    assert len(edges.rows) == 19
    assert edges.bound == "visited"


async def test_a_traversal_follows_no_more_edges_than_its_bound(cluster: TwoNodes) -> None:
    """Many edges between few vertices, in one hop and in several."""
    a, b = cluster.add_vertex(), cluster.add_vertex()
    for _ in range(30):
        cluster.add_edge("K", a, b)
        cluster.add_edge("K", b, a)
    for depth, visited_max in ((1, 20), (2, 50)):
        query = Traverse(start=(a,), max_depth=depth, return_="edges")
        result = await cluster.ask(query, limits=LimitConfig(query_visited_max=visited_max))
        assert len({cast("TraversedEdge", row).edge.digest for row in result.rows}) == visited_max
        assert (result.truncated, result.bound) == (True, "visited")
    assert not (await cluster.ask(query, limits=LimitConfig(query_visited_max=60))).truncated


async def test_a_traversal_reads_no_more_than_its_bound(cluster: TwoNodes) -> None:
    hub, _ = star(cluster, 2_000)
    limits = LimitConfig(query_scanned_max=500)
    result = await cluster.ask(Traverse(start=(hub,)), limits=limits)
    assert (result.truncated, result.bound) in {(True, "scanned"), (True, "limit")}
    assert result.statistics.scanned < 1_000


@pytest.mark.parametrize("weight", [None, "n"])
async def test_a_path_that_a_bound_hides_is_an_error_and_not_no_path(
    cluster: TwoNodes, weight: str | None
) -> None:
    vertices = chain(cluster, 30)
    query = ShortestPath(source=vertices[0], target=vertices[-1], max_depth=40, weight=weight)
    (row,) = (await cluster.ask(query)).rows
    assert cast("PathRow", row).length == 29
    with pytest.raises(TooLarge, match="query_visited_max"):
        await cluster.ask(query, limits=LimitConfig(query_visited_max=10))
    with pytest.raises(TooLarge, match="query_scanned_max"):
        await cluster.ask(query, limits=LimitConfig(query_scanned_max=15))


# Paths


async def test_a_heavier_way_with_fewer_edges_may_be_the_only_one(cluster: TwoNodes) -> None:
    """The lightest way to the middle has too many edges to go on from there."""
    a, b, c, d, e = (cluster.add_vertex() for _ in range(5))
    cluster.add_edge("K", a, b, w=1)
    cluster.add_edge("K", b, c, w=1)
    cluster.add_edge("K", a, c, w=5)
    cluster.add_edge("K", c, d, w=1)
    cluster.add_edge("K", d, e, w=1)
    lengths = []
    for max_depth in (4, 3, 2):
        query = ShortestPath(source=a, target=e, weight="w", max_depth=max_depth)
        lengths.append([cast("PathRow", row).length for row in (await cluster.ask(query)).rows])
    assert lengths == [[4], [7], []]


async def test_a_vertex_is_expanded_again_at_next_to_no_cost(cluster: TwoNodes) -> None:
    """Each vertex of the chain leads to the hub as well: the fewer edges, the heavier."""
    hub, _ = star(cluster, 400)
    vertices = chain(cluster, 10)
    for hops, vertex in enumerate(vertices):
        cluster.add_edge("K", vertex, hub, n=40 - 3 * hops)
    target = cluster.add_vertex()
    cluster.add_edge("K", vertices[0], target, n=50)
    for ray in cluster.graph.edges.copy():
        if cluster.graph.edges[ray].source == hub:
            cluster.update(ray, n=100)
    query = ShortestPath(source=vertices[0], target=target, weight="n")
    result = await cluster.ask(query, limits=LimitConfig(query_held_max=500))
    assert [cast("PathRow", row).length for row in result.rows] == [50]
    assert result.statistics.scanned < 1_500


async def test_of_parallel_edges_only_the_lightest_is_held(cluster: TwoNodes) -> None:
    a, b, c = (cluster.add_vertex() for _ in range(3))
    edges = [cluster.add_edge("K", a, b, n=abs(70 - n)) for n in range(150)]
    cluster.add_edge("K", b, c, n=1)
    query = ShortestPath(source=a, target=c, weight="n")
    (row,) = (await cluster.ask(query, limits=LimitConfig(query_held_max=10))).rows
    path = cast("PathRow", row)
    assert (path.length, path.edges[0].digest) == (1, edges[70])


async def test_a_path_with_weights_holds_no_more_edges_than_its_bound(cluster: TwoNodes) -> None:
    hub, edges = star(cluster, 300)
    query = ShortestPath(source=hub, target=cluster.graph.edges[edges[9]].target, weight="n")
    assert (await cluster.ask(query, limits=LimitConfig(query_held_max=400))).rows
    with pytest.raises(TooLarge, match="query_held_max") as caught:
        await cluster.ask(query, limits=LimitConfig(query_held_max=200))
    assert caught.value.extra == {"limit": 200, "name": "query_held_max"}


async def test_a_hub_that_comes_next_is_read_only_where_the_search_comes_to_it(
    cluster: TwoNodes,
) -> None:
    hub, _ = star(cluster, 3_000)
    source, middle, target = (cluster.add_vertex() for _ in range(3))
    cluster.add_edge("K", source, middle, w=2)
    cluster.add_edge("K", middle, target, w=2)
    limits = LimitConfig(query_scanned_max=5_000)
    query = ShortestPath(source=source, target=target, weight="w")
    to_hub = cluster.add_edge("K", source, hub, w=5)
    result = await cluster.ask(query, limits=limits)
    assert [cast("PathRow", row).length for row in result.rows] == [4]
    assert result.statistics.scanned < 3_000
    cluster.update(to_hub, w=3)
    with pytest.raises(TooLarge, match="query_scanned_max"):
        await cluster.ask(query, limits=limits)


async def test_a_path_with_weights_reads_the_vertices_that_come_next_along(
    cluster: TwoNodes,
) -> None:
    hub, edges = star(cluster, 100)
    target = cluster.add_vertex()
    for edge in edges:
        cluster.add_edge("K", cluster.graph.edges[edge].target, target, n=200)
    cluster.alpha.requests = 0
    query = ShortestPath(source=hub, target=target, weight="n")
    (row,) = (await cluster.ask(query)).rows
    assert cast("PathRow", row).length == 200
    assert cluster.alpha.requests <= 8


@pytest.mark.parametrize(("weights", "length"), [([3], 3), ([(1 << 63) - 1], (1 << 63) - 1)])
async def test_whole_weights_add_up_to_a_whole_length(
    cluster: TwoNodes, weights: list[int], length: int
) -> None:
    found = await length_of_chain(cluster, weights)
    assert (found, type(found)) == (length, int)


async def test_a_length_beyond_64_bits_is_a_float(cluster: TwoNodes) -> None:
    found = await length_of_chain(cluster, [(1 << 63) - 1] * 3)
    assert (found, type(found)) == (3 * 2.0**63, float)


async def test_a_length_that_is_no_number_is_an_error(cluster: TwoNodes) -> None:
    with pytest.raises(InvalidRequest, match="the weights of the lightest path") as caught:
        await length_of_chain(cluster, [1e308, 1e308])
    assert [problem["where"] for problem in caught.value.extra["errors"]] == ["weight"]


async def length_of_chain(cluster: TwoNodes, weights: Sequence[float]) -> float:
    vertices = [cluster.add_vertex() for _ in range(len(weights) + 1)]
    for near, far, weight in zip(vertices, vertices[1:], weights, strict=False):
        cluster.add_edge("K", near, far, w=weight)
    query = ShortestPath(source=vertices[0], target=vertices[-1], weight="w")
    (row,) = (await cluster.ask(query)).rows
    return cast("PathRow", row).length


async def test_a_weight_that_is_none_matters_only_where_the_search_comes_to_it(
    cluster: TwoNodes,
) -> None:
    source, middle, aside, target = (cluster.add_vertex() for _ in range(4))
    cluster.add_edge("K", source, middle, w=1)
    last = cluster.add_edge("K", middle, target, w=1)
    cluster.add_edge("K", source, aside, w=4)
    cluster.add_edge("K", aside, target, w="heavy")
    query = ShortestPath(source=source, target=target, weight="w")
    (row,) = (await cluster.ask(query)).rows
    assert cast("PathRow", row).length == 2
    cluster.update(last, w=9)
    with pytest.raises(InvalidRequest, match="edge bafyrei"):
        await cluster.ask(query)


@pytest.mark.parametrize("inward", [False, True])
async def test_a_weight_that_is_no_number_does_not_travel(
    cluster: TwoNodes, monkeypatch: pytest.MonkeyPatch, inward: bool
) -> None:
    a, b = cluster.add_vertex(), cluster.add_vertex()
    while cluster.alpha.serving_node(cluster.home(a)) == "alpha":
        a = cluster.add_vertex()
    cluster.add_edge("K", a, b, w="x" * 100_000)
    answers: list[bytes] = []
    run_remote = cluster.alpha.run_remote

    async def recorded(node: str, task: bytes) -> bytes:
        answers.append(await run_remote(node, task))
        return answers[-1]

    monkeypatch.setattr(cluster.alpha, "run_remote", recorded)
    ends = {"source": b, "target": a, "direction": "in"} if inward else {"source": a, "target": b}
    with pytest.raises(InvalidRequest, match="no number"):
        await cluster.ask(ShortestPath(weight="w", **ends))
    assert answers
    assert max(map(len, answers)) < 1_000


@pytest.mark.parametrize("weight", [-1, "heavy", True])
async def test_a_weight_that_is_none_is_refused_with_its_edge(
    cluster: TwoNodes, weight: int | str
) -> None:
    a, b = cluster.add_vertex(), cluster.add_vertex()
    cluster.add_edge("K", a, b, w=weight)
    with pytest.raises(InvalidRequest, match="edge bafyrei"):
        await cluster.ask(ShortestPath(source=a, target=b, weight="w"))


async def test_a_path_from_a_vertex_to_itself_is_the_vertex(cluster: TwoNodes) -> None:
    vertex = cluster.add_vertex()
    cluster.add_edge("K", vertex, vertex)
    for weight in (None, "w"):
        query = ShortestPath(source=vertex, target=vertex, weight=weight)
        (row,) = (await cluster.ask(query)).rows
        assert row == PathRow(nodes=[cluster.graph.vertices[vertex]], edges=[], length=0)


# Between nodes


async def test_a_hop_sends_one_request_to_each_other_node(cluster: TwoNodes) -> None:
    hub = next(each for each, _ in (star(cluster, 40) for _ in range(1)))
    cluster.alpha.requests = 0
    await cluster.ask(Traverse(start=(hub,), max_depth=1, limit=100))
    # Whether the start exists, its edges, the rows: each of them a request at most.
    assert cluster.alpha.requests <= 3
    cluster.alpha.requests = 0
    await cluster.ask(Count())
    assert cluster.alpha.requests == 1


async def test_hubs_and_wide_frontiers_are_read_in_pieces(
    cluster: TwoNodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, edges = star(cluster, 60)
    for edge in edges[::3]:
        cluster.add_edge("L", cluster.graph.edges[edge].target, hub)
    query = Traverse(start=(hub,), direction="both", max_depth=2, limit=200)
    where_edge = Comparison("n", "ge", 5)
    queries = [
        query,
        Traverse(start=(hub,), direction="both", max_depth=2, limit=200, return_="edges"),
        Traverse(start=(hub,), direction="both", max_depth=2, limit=200, where_edge=where_edge),
    ]
    whole = [(await cluster.ask(each)).rows for each in queries]
    monkeypatch.setattr(gather, "CHUNK", 7)
    monkeypatch.setattr(gather, "ENTRIES_MAX", 1)
    assert [(await cluster.ask(each)).rows for each in queries] == whole
    assert [len(rows) for rows in whole] == [60, 80, 55]


async def test_a_replica_waits_until_it_has_applied_the_read_point(cluster: TwoNodes) -> None:
    vertex = cluster.add_vertex()
    home = cluster.home(vertex)
    serving = cluster.mesh[cluster.alpha.serving_node(home)]
    await cluster.ask(Get(cids=(vertex,)), point=ReadPoint(cluster.now, {home: 7}))
    assert serving.waited == [(home, 7)]
    assert serving.settled == [(home, cluster.now, [vertex])]


async def test_a_replica_that_is_replaced_while_others_catch_up_counts_for_nothing(
    cluster: TwoNodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new one may have applied less."""
    star(cluster, 5)

    async def replace_it(_partition: int, _index: int) -> None:
        cluster.alpha.replica += 1

    monkeypatch.setattr(cluster.alpha, "wait_applied", replace_it)
    everywhere = dict.fromkeys(range(PARTITIONS), 7)
    with pytest.raises(NoLeader):
        await cluster.ask(Count(), point=ReadPoint(cluster.now, everywhere))


async def test_an_eventual_read_takes_what_is_there(cluster: TwoNodes) -> None:
    hub, edges = star(cluster, 5)
    point = ReadPoint(cluster.now, skip_intents=True)
    queries: list[Query] = [
        FindNodes(),
        Get(cids=(edges[0],)),
        Traverse(start=(hub,), where_edge=Comparison("n", "ge", 0)),
        ShortestPath(source=hub, target=cluster.graph.edges[edges[0]].target),
        Neighbours(vertex=hub),
        Count(),
    ]
    for query in queries:
        assert (await cluster.ask(query, point=point)).rows
    assert all(node.settled == [] for node in cluster.mesh.values())


@pytest.mark.parametrize("name", ["alpha", "beta"])
async def test_a_transaction_that_committed_later_restarts_the_whole_query(
    cluster: TwoNodes, name: str
) -> None:
    star(cluster, 5)
    cluster.mesh[name].fault = ReadAgain(cluster.now + 5)
    with pytest.raises(ReadAgain) as again:
        await cluster.ask(Count())
    assert again.value.timestamp == cluster.now + 5


async def test_a_node_that_fails_fails_the_query_with_its_own_error(cluster: TwoNodes) -> None:
    star(cluster, 5)
    cluster.mesh["beta"].fault = Unreachable("beta is gone")
    with pytest.raises(Unreachable, match="beta is gone"):
        await cluster.ask(FindNodes())


# Time


async def test_the_deadline_is_an_error_that_names_its_bound(cluster: TwoNodes) -> None:
    star(cluster, 5)
    cluster.alpha.delay = 30
    with pytest.raises(OutcomeUnknown) as late:
        await cluster.ask(FindNodes(), timeout=0.05)
    assert late.value.extra == {"bound": "timeout_ms"}


async def test_a_long_scan_lets_others_run_and_can_be_cancelled() -> None:
    cluster = TwoNodes(nodes=1)
    star(cluster, 3 * PAUSE_AFTER)
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    other = asyncio.create_task(count_turns())
    await cluster.ask(FindNodes(where=Comparison("n", "eq", -1)))
    assert turns >= 5
    scan = asyncio.create_task(cluster.ask(FindNodes(where=Comparison("n", "eq", -1))))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not scan.done()
    scan.cancel()
    with pytest.raises(asyncio.CancelledError):
        await scan
    other.cancel()


async def test_statistics_say_what_was_read_where(cluster: TwoNodes) -> None:
    star(cluster, 5)
    statistics = (await cluster.ask(FindNodes())).statistics
    assert (statistics.partitions, statistics.cluster_nodes) == (PARTITIONS, 2)
    assert statistics.scanned == 11
    assert statistics.elapsed_ms > 0
    assert statistics.index is None


async def test_via_is_the_smallest_edge_from_the_depth_before(cluster: TwoNodes) -> None:
    start, far = [cluster.add_vertex() for _ in range(6)], cluster.add_vertex()
    edges = [cluster.add_edge(label, each, far) for each in start for label in ("K", "L")]
    for first in (start, start[::-1]):
        (row,) = (await cluster.ask(Traverse(start=tuple(first)))).rows
        assert cast("TraversedVertex", row).via == min(edges)


async def test_rows_at_depth_zero_are_the_start(cluster: TwoNodes) -> None:
    vertex, gone = cluster.add_vertex("A"), cluster.add_vertex()
    cluster.delete(gone)
    query = Traverse(start=(gone, vertex, vertex, b"?" * 32), min_depth=0, max_depth=0)
    (row,) = (await cluster.ask(query)).rows
    node = cluster.graph.vertices[vertex]
    assert row == TraversedVertex(node=node, depth=0, via=None)
