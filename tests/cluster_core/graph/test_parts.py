from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_core.graph.parts import (
    LARGE_DETACH,
    Change,
    ChangeEdge,
    ChangeVertex,
    DropEdge,
    DropEdgeIn,
    DropVertex,
    HoldEdges,
    LockKind,
    Part,
    PutEdge,
    PutEdgeIn,
    PutVertex,
    decode_change,
    decode_part,
    decode_parts,
    encode_change,
    encode_part,
    guards_of,
    locks_of,
)
from cluster_core.graph.values import Value
from tests.cluster_core.graph.small_graph import SmallGraph
from tests.cluster_core.graph.strategies import digests, exact, labels, properties

E, S, T = b"e" * 32, b"s" * 32, b"t" * 32

PARTS: list[Part] = [
    PutVertex(S, ("A",), b"block", check=True),
    ChangeVertex(S, {"x": None}, (), T),
    DropVertex(S, T, b"adjacency"),
    DropVertex(S, chunked=True),
    HoldEdges(S),
    PutEdge(E, "L", S, T, b"block"),
    PutEdgeIn(E, "L", S, T, check=True),
    ChangeEdge(E, {"x": b"\0"}, T),
    DropEdge(E, "L", S, T, None, detached=True),
    DropEdgeIn(E, "L", T),
]


@pytest.mark.parametrize("part", PARTS, ids=lambda part: type(part).__name__)
def test_a_part_survives_the_way_between_nodes(part: Part) -> None:
    assert decode_part(encode_part(part)) == part


def test_many_parts_travel_together() -> None:
    assert decode_parts(encode_part(PARTS)) == PARTS


@given(digests, properties)
def test_the_values_of_a_change_survive_the_way(digest: bytes, drawn: dict[str, Value]) -> None:
    travelled = decode_part(encode_part(ChangeVertex(digest, drawn)))
    assert isinstance(travelled, ChangeVertex)
    assert exact(travelled.properties) == exact(drawn)


@given(digests, st.one_of(st.none(), digests), labels)
def test_a_change_survives_the_feed(
    entity: bytes, version: bytes | None, drawn: tuple[str, ...]
) -> None:
    change = Change("update_node", entity, version, drawn)
    assert decode_change(entity, encode_change(change)) == change


def test_a_new_edge_lets_its_vertices_be_shared_and_nothing_else() -> None:
    edge = (E, LockKind.EXCLUSIVE)
    assert locks_of(PutEdge(E, "L", S, T, b"")) == [edge, (S, LockKind.SHARED)]
    assert locks_of(PutEdgeIn(E, "L", S, T)) == [edge, (T, LockKind.SHARED)]


def test_an_edge_that_goes_changes_the_adjacency_of_its_vertices() -> None:
    edge = (E, LockKind.EXCLUSIVE)
    assert locks_of(DropEdge(E, "L", S, T)) == [edge, (S, LockKind.SHARED)]
    assert locks_of(DropEdgeIn(E, "L", T)) == [edge, (T, LockKind.SHARED)]
    assert locks_of(DropEdge(E)) == [edge]


def test_a_deletion_in_chunks_holds_the_vertex_in_every_partition_and_is_the_only_one() -> None:
    held = [(LARGE_DETACH, LockKind.EXCLUSIVE), (S, LockKind.EXCLUSIVE)]
    assert locks_of(DropVertex(S, chunked=True)) == held
    assert locks_of(HoldEdges(S)) == held


def test_who_depends_on_an_edge_holds_the_vertex_at_its_far_end() -> None:
    graph = SmallGraph()
    source, target = graph.node(), graph.node()
    edge = graph.edge(source, "L", target)
    home, away = graph.view_of(source), graph.view_of(target)
    assert guards_of([PutEdge(E, "L", S, T, b"")], home) == [(T, LockKind.SHARED)]
    assert guards_of([PutEdgeIn(E, "L", S, T)], away) == [(S, LockKind.SHARED)]
    assert guards_of([DropEdge(E, "L", S, T)], home) == [(T, LockKind.SHARED)]
    both = [(source, LockKind.SHARED), (target, LockKind.SHARED)]
    assert guards_of([ChangeEdge(edge, {})], home) == both
    assert guards_of([DropVertex(source)], home) == [(target, LockKind.SHARED)]
    assert guards_of([DropVertex(target)], away) == [(source, LockKind.SHARED)]
    assert guards_of([ChangeVertex(S, {}), DropVertex(S, chunked=True), HoldEdges(S)], home) == []


def test_vertices_appear_and_go_alone_and_updates_write() -> None:
    assert locks_of(PutVertex(S, (), b"")) == [(S, LockKind.EXCLUSIVE)]
    assert locks_of(DropVertex(S)) == [(S, LockKind.EXCLUSIVE)]
    assert locks_of(ChangeVertex(S, {})) == [(S, LockKind.WRITE)]
    assert locks_of(ChangeEdge(E, {})) == [(E, LockKind.WRITE)]
