from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_core.graph.entities import Edge, Vertex
from cluster_core.graph.indexes import (
    VALUE_BYTES_MAX,
    IndexDefinition,
    IndexState,
    decode_definition,
    encode_definition,
    entry_keys,
    maintained,
    value_key,
)
from cluster_core.graph.operations import (
    DeleteEdge,
    DeleteNode,
    UpdateEdge,
    UpdateNode,
)
from cluster_core.graph.records import EDGE, VERTEX
from cluster_core.graph.values import Value
from cluster_core.storage import keys
from cluster_core.types import Digest
from tests.cluster_core.graph.small_graph import SmallGraph

INDEXES = {"A": (("p", 1), ("q", 2)), "K": (("p", 3),)}
LONG = "z" * 700
VALUES: list[Value] = [None, 0, 1.0, 1, True, "x", LONG, LONG + "!", b"x", [1]]


def live_entries(graph: SmallGraph) -> set[bytes]:
    return {
        key
        for view in graph.views
        for key, versions in view.versions.items()
        if key[2:3] in (keys.LABEL, keys.PROPERTY) and versions[-1][1]
    }


def entries_of(graph: SmallGraph, entity: Vertex | Edge) -> list[bytes]:
    if isinstance(entity, Vertex):
        group = graph.view_of(entity.digest).group
        digest, labels = entity.digest, entity.labels
        return entry_keys(group, VERTEX, digest, labels, entity.properties, INDEXES)
    group = graph.view_of(entity.source).group
    return entry_keys(group, EDGE, entity.digest, [entity.label], entity.properties, INDEXES)


@pytest.mark.parametrize("seed", range(20))
def test_entries_follow_every_operation(seed: int) -> None:
    random = Random(seed)
    graph = SmallGraph()
    for view in graph.views:
        view.indexes = INDEXES

    def some() -> dict[str, Value]:
        return {name: random.choice(VALUES) for name in ("p", "q") if random.random() < 0.6}

    def some_labels() -> tuple[str, ...]:
        return tuple(random.sample(["A", "B", "C"], random.randint(0, 3)))

    vertices: list[Digest] = []
    edges: dict[Digest, Digest] = {}
    for _ in range(60):
        act = random.random()
        if act < 0.25 or len(vertices) < 2:
            vertices.append(graph.node(*some_labels(), **some()))
        elif act < 0.45:
            source, target = random.choice(vertices), random.choice(vertices)
            edges[graph.edge(source, random.choice(["K", "L"]), target, **some())] = source
        elif act < 0.75:
            labels = random.choice([None, some_labels()])
            graph.execute(UpdateNode(random.choice(vertices), some(), labels))
        elif act < 0.85 and edges:
            edge = random.choice(list(edges))
            graph.execute(UpdateEdge(edge, some()), at=edges[edge])
        elif act < 0.93 and edges:
            edge = random.choice(list(edges))
            graph.execute(DeleteEdge(edge), at=edges.pop(edge))
        else:
            vertex = vertices.pop(random.randrange(len(vertices)))
            graph.execute(DeleteNode(vertex, detach=True))
            edges = {e: s for e, s in edges.items() if graph.read(e, at=s) is not None}
        entities = [graph.read(vertex) for vertex in vertices]
        entities += [graph.read(edge, at=source) for edge, source in edges.items()]
        wanted = [key for one in entities if one is not None for key in entries_of(graph, one)]
        assert live_entries(graph) == set(wanted)
        assert len(wanted) == len(set(wanted))


def test_a_property_that_is_missing_has_an_entry_under_null() -> None:
    graph = SmallGraph()
    for view in graph.views:
        view.indexes = INDEXES
    digest = graph.node("A")
    group = graph.view_of(digest).group
    assert keys.valued(group, 1, VERTEX, value_key(None), digest) in live_entries(graph)


def test_an_update_that_keeps_a_value_writes_no_entry() -> None:
    graph = SmallGraph()
    for view in graph.views:
        view.indexes = INDEXES
    digest = graph.node("A", p=1)
    outcome = graph.execute(UpdateNode(digest, {"other": 2}))
    assert [key[2:3] for key, _ in outcome.writes] == [keys.ENTITY]


@given(st.lists(st.text(max_size=3).map(lambda text: LONG[:505] + text), min_size=2, max_size=4))
def test_cut_values_keep_their_order_and_none_begins_another(texts: list[str]) -> None:
    cut = [value_key(text) for text in sorted(set(texts))]
    assert all(len(key) <= VALUE_BYTES_MAX for key in cut)
    assert cut == sorted(cut)
    for one in cut:
        assert not any(other != one and other.startswith(one) for other in cut)


def test_what_is_maintained_follows_from_the_states() -> None:
    definitions = [
        IndexDefinition(number, "A", f"p{number}", state, 7)
        for number, state in enumerate(IndexState, start=1)
    ]
    assert maintained(definitions) == {"A": (("p1", 1), ("p2", 2))}


def test_a_definition_is_read_as_it_was_written() -> None:
    definition = IndexDefinition(3, "Person", "näme", IndexState.READY, 1 << 60)
    assert decode_definition(encode_definition(definition)) == definition
