from __future__ import annotations

import pytest

from cluster_core.config import LimitConfig
from cluster_core.errors import TooLarge
from cluster_core.graph.decompose import decompose
from cluster_core.graph.operations import (
    CreateEdge,
    CreateNode,
    DeleteEdge,
    DeleteNode,
    UpdateEdge,
    UpdateNode,
)
from cluster_core.graph.parts import (
    ChangeEdge,
    ChangeVertex,
    DropEdge,
    DropEdgeIn,
    DropVertex,
    HoldEdges,
    PutEdge,
    PutEdgeIn,
    PutVertex,
)
from cluster_core.graph.values import Value
from cluster_core.types import Digest, partition_of
from tests.cluster_core.graph.small_graph import SmallGraph


def two_apart(graph: SmallGraph) -> tuple[Digest, Digest]:
    """Two vertices in different partitions."""
    first = graph.node("A")
    while True:
        second = graph.node("B")
        if graph.view_of(first) is not graph.view_of(second):
            return first, second


def two_together(graph: SmallGraph) -> tuple[Digest, Digest]:
    """Two vertices in one partition."""
    first = graph.node("A")
    while True:
        second = graph.node("B")
        if graph.view_of(first) is graph.view_of(second):
            return first, second


def test_a_new_vertex_is_one_part_where_its_digest_puts_it() -> None:
    graph = SmallGraph()
    ((partition, part),) = graph.parts(CreateNode(("B", "A", "B"), {"x": 1}))
    assert isinstance(part, PutVertex)
    assert partition == partition_of(part.digest, graph.partition_count)
    assert part.labels == ("A", "B")
    assert not part.check


def test_a_new_edge_has_a_half_at_each_end() -> None:
    graph = SmallGraph()
    source, target = two_apart(graph)
    (home, out_half), (other, in_half) = graph.parts(CreateEdge("L", source, target))
    assert (home, other) == tuple(partition_of(v, graph.partition_count) for v in (source, target))
    assert isinstance(out_half, PutEdge)
    assert isinstance(in_half, PutEdgeIn)
    assert in_half == PutEdgeIn(out_half.digest, "L", source, target)


def test_an_edge_within_one_partition_has_both_halves_there() -> None:
    graph = SmallGraph()
    source, target = two_together(graph)
    assert len({partition for partition, _ in graph.parts(CreateEdge("L", source, target))}) == 1


def test_an_edge_that_was_created_before_has_only_the_half_that_knows() -> None:
    graph = SmallGraph()
    source, target = two_apart(graph)
    operation, nonce = CreateEdge("L", source, target), bytes(16)
    assert len(graph.parts(operation, nonce=nonce, check=True)) == 2
    graph.execute(operation, nonce=nonce, check=True)
    ((_, part),) = graph.parts(operation, nonce=nonce, check=True)
    assert isinstance(part, PutEdge)


def test_updates_are_one_part_at_home() -> None:
    graph = SmallGraph()
    source, target = two_apart(graph)
    edge = graph.edge(source, "L", target)
    ((_, part),) = graph.parts(UpdateNode(source, {"x": 1}, ("C",), target))
    assert part == ChangeVertex(source, {"x": 1}, ("C",), target)
    ((home, part),) = graph.parts(UpdateEdge(edge, {"x": 1}), at=source)
    assert part == ChangeEdge(edge, {"x": 1})
    assert home == partition_of(source, graph.partition_count)


def test_the_deletion_of_an_edge_reads_where_its_target_is() -> None:
    graph = SmallGraph()
    source, target = two_apart(graph)
    edge = graph.edge(source, "L", target)
    assert [part for _, part in graph.parts(DeleteEdge(edge, source, edge))] == [
        DropEdge(edge, "L", source, target, edge),
        DropEdgeIn(edge, "L", target),
    ]


@pytest.mark.parametrize("gone", ["unknown", "deleted", "a vertex"])
def test_the_deletion_of_no_edge_is_left_to_the_evaluation(gone: str) -> None:
    graph = SmallGraph()
    source, target = two_apart(graph)
    digest = {"unknown": b"x" * 32, "a vertex": source}.get(gone)
    if digest is None:
        digest = graph.edge(source, "L", target)
        graph.execute(DeleteEdge(digest, source))
    assert [part for _, part in graph.parts(DeleteEdge(digest, source))] == [DropEdge(digest)]


def test_detaching_deletes_every_edge_at_both_of_its_ends_and_a_loop_once() -> None:
    graph = SmallGraph()
    vertex, other = two_apart(graph)
    out, into = graph.edge(vertex, "OUT", other), graph.edge(other, "IN", vertex)
    loop = graph.edge(vertex, "LOOP", vertex)
    home, away = (partition_of(v, graph.partition_count) for v in (vertex, other))
    (first, drop), *rest = graph.parts(DeleteNode(vertex, detach=True))
    assert first == home
    assert isinstance(drop, DropVertex)
    expected = [
        (home, DropEdge(out, "OUT", vertex, other, detached=True)),
        (away, DropEdgeIn(out, "OUT", other)),
        (home, DropEdge(loop, "LOOP", vertex, vertex, detached=True)),
        (home, DropEdgeIn(loop, "LOOP", vertex)),
        (away, DropEdge(into, "IN", other, vertex, detached=True)),
        (home, DropEdgeIn(into, "IN", vertex)),
    ]
    assert sorted(map(repr, rest)) == sorted(map(repr, expected))


def test_detaching_has_a_bound() -> None:
    graph = SmallGraph(limits=LimitConfig(detach_edges_max=2))
    vertex, other = two_apart(graph)
    graph.edge(vertex, "L", other)
    graph.edge(other, "L", vertex)
    assert graph.parts(DeleteNode(vertex, detach=True))
    graph.edge(vertex, "L", other)
    with pytest.raises(TooLarge) as caught:
        graph.parts(DeleteNode(vertex, detach=True))
    assert caught.value.extra == {"limit": 2, "name": "detach_edges_max"}


def test_a_vertex_with_many_edges_is_deleted_in_chunks_for_which_every_partition_holds_it() -> None:
    graph = SmallGraph(limits=LimitConfig(detach_step_edges_max=2))
    vertex, other = two_apart(graph)
    for _ in range(3):
        graph.edge(vertex, "L", other)
    home = partition_of(vertex, graph.partition_count)
    (first, drop), *rest = graph.parts(DeleteNode(vertex, detach=True))
    assert (first, drop) == (home, DropVertex(vertex, chunked=True))
    others = [partition for partition in range(graph.partition_count) if partition != home]
    assert rest == [(partition, HoldEdges(vertex)) for partition in others]


def test_among_other_operations_all_edges_are_deleted_at_once_or_it_is_refused() -> None:
    limits = LimitConfig(detach_step_edges_max=1, transaction_detach_edges_max=2)
    graph = SmallGraph(limits=limits)
    vertex, other = two_apart(graph)
    view, operation = graph.view_of(vertex), DeleteNode(vertex, detach=True)
    for _ in range(2):
        graph.edge(vertex, "L", other)
    parts = decompose(operation, view, None, graph.partition_count, limits, among_others=True)
    assert len(parts) == 5
    graph.edge(vertex, "L", other)
    with pytest.raises(TooLarge, match="transaction_detach_edges_max") as caught:
        decompose(operation, view, None, graph.partition_count, limits, among_others=True)
    assert caught.value.extra == {"limit": 2, "name": "transaction_detach_edges_max"}


@pytest.mark.parametrize("kind", ["node", "edge"])
def test_an_entity_that_is_too_large_is_refused(kind: str) -> None:
    graph = SmallGraph(limits=LimitConfig(entity_bytes_max=500))
    source, target = two_apart(graph)

    def creation(size: int) -> CreateNode | CreateEdge:
        blob: dict[str, Value] = {"x": b"x" * size}
        return CreateNode((), blob) if kind == "node" else CreateEdge("L", source, target, blob)

    graph.execute(creation(250))
    with pytest.raises(TooLarge) as caught:
        graph.execute(creation(500))
    assert caught.value.extra == {"limit": 500, "name": "entity_bytes_max"}
