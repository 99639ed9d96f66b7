from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster_core.config import LimitConfig
from cluster_core.errors import (
    Conflict,
    HasEdges,
    InvalidRequest,
    NotFound,
    PreconditionFailed,
    RequestError,
    TooLarge,
)
from cluster_core.graph.blocks import decode_block, digest_of, link_of
from cluster_core.graph.cid import cid_text
from cluster_core.graph.entities import Edge, Vertex
from cluster_core.graph.operations import (
    CreateEdge,
    CreateNode,
    DeleteEdge,
    DeleteNode,
    Operation,
    UpdateEdge,
    UpdateNode,
)
from cluster_core.graph.parts import Answer, Change, Outcome, locks_of
from cluster_core.graph.records import record_block
from cluster_core.graph.values import Value
from cluster_core.storage import keys
from cluster_core.types import Digest, partition_of
from tests.cluster_core.graph.small_graph import SmallGraph

NONCE = bytes(range(16))


@pytest.fixture(params=[1, 4, 64], ids=lambda count: f"{count} partitions")
def graph(request: pytest.FixtureRequest) -> SmallGraph:
    return SmallGraph(request.param)


def vertex(graph: SmallGraph, digest: Digest) -> Vertex:
    found = graph.read(digest)
    assert isinstance(found, Vertex)
    return found


def edge(graph: SmallGraph, digest: Digest, source: Digest) -> Edge:
    found = graph.read(digest, at=source)
    assert isinstance(found, Edge)
    return found


def answer_of(outcome: Outcome) -> Answer:
    assert outcome.answer is not None
    return outcome.answer


# Creations


def test_a_vertex_is_read_as_it_was_created(graph: SmallGraph) -> None:
    outcome = graph.execute(CreateNode(("B", "A"), {"x": 1, "nothing": None, "list": [None]}))
    answer = answer_of(outcome)
    assert answer == Answer(answer.digest, answer.digest, created=True)
    found = vertex(graph, answer.digest)
    assert found == Vertex(
        answer.digest, answer.digest, ("A", "B"), {"x": 1, "list": [None]}, graph.now, graph.now
    )
    assert graph.changes == [Change("create_node", found.digest, found.digest, ("A", "B"))]
    assert not outcome.pointers, "the first version is found under the entity's own digest"


def test_an_edge_is_seen_from_both_of_its_ends(graph: SmallGraph) -> None:
    source, target = graph.node("A"), graph.node("B")
    digest = graph.edge(source, "KNOWS", target, since=2020)
    found = edge(graph, digest, source)
    assert (found.label, found.source, found.target) == ("KNOWS", source, target)
    assert found.properties == {"since": 2020}
    assert graph.out_edges(source) == [("KNOWS", digest, target)]
    assert graph.in_edges(target) == [("KNOWS", digest, source)]
    assert graph.out_edges(target) == graph.in_edges(source) == []
    assert graph.changes[-1] == Change("create_edge", digest, digest, ("KNOWS",))


def test_a_loop_is_an_edge_like_others(graph: SmallGraph) -> None:
    node = graph.node()
    digest = graph.edge(node, "L", node)
    assert graph.out_edges(node) == graph.in_edges(node) == [("L", digest, node)]


def test_an_edge_needs_both_of_its_ends_and_says_which_is_missing(graph: SmallGraph) -> None:
    node, gone = graph.node(), graph.node()
    graph.execute(DeleteNode(gone))
    for missing in (gone, b"x" * 32):
        with pytest.raises(NotFound, match="target") as caught:
            graph.edge(node, "L", missing)
        assert caught.value.extra == {"cid": cid_text(missing), "end": "target"}
        with pytest.raises(NotFound, match="source"):
            graph.edge(missing, "L", node)
    assert graph.out_edges(node) == graph.in_edges(node) == []


def test_an_edge_is_no_end_of_an_edge(graph: SmallGraph) -> None:
    node = graph.node()
    digest = graph.edge(node, "L", node)
    with pytest.raises(NotFound):
        graph.edge(node, "L", digest)


@pytest.mark.parametrize("later", ["nothing", "an update"])
def test_a_creation_that_comes_again_gives_the_first_answer_and_writes_nothing(
    graph: SmallGraph, later: str
) -> None:
    operation = CreateNode(("A",), {"x": 1})
    first = answer_of(graph.execute(operation, nonce=NONCE, check=True))
    at = graph.now
    if later == "an update":
        graph.execute(UpdateNode(first.digest, {"x": 2}))
    again = graph.execute(operation, nonce=NONCE, check=True)
    assert again.repeated
    assert not again.writes
    assert again.change is None
    assert again.answer == Answer(first.digest, first.version, created=True, timestamp=at)


def test_an_edge_that_comes_again_gives_the_first_answer_also_after_its_deletion(
    graph: SmallGraph,
) -> None:
    source, target = graph.node(), graph.node()
    operation = CreateEdge("L", source, target)
    parts = graph.parts(operation, nonce=NONCE, check=True)
    first = answer_of(graph.run(parts)[0])
    at = graph.now
    repeated = graph.run(parts)  # decomposed before the first one was there
    assert [outcome.writes for outcome in repeated] == [[], []]
    assert repeated[0].answer == Answer(first.digest, first.digest, True, at)
    graph.execute(DeleteEdge(first.digest, source))
    graph.execute(DeleteNode(target))
    for outcomes in (graph.run(parts), [graph.execute(operation, nonce=NONCE, check=True)]):
        assert not any(outcome.writes for outcome in outcomes)
        assert answer_of(outcomes[0]).digest == first.digest
        assert answer_of(outcomes[0]).timestamp is not None
    assert graph.in_edges(target) == graph.out_edges(source) == []


# Updates


def test_an_update_merges_and_removes_and_keeps_the_labels(graph: SmallGraph) -> None:
    digest = graph.node("A", age=30, nick="al", name="Alice")
    created = graph.now
    outcome = graph.execute(UpdateNode(digest, {"age": 31, "nick": None, "none": None}))
    found = vertex(graph, digest)
    assert found.properties == {"age": 31, "name": "Alice"}
    assert found.labels == ("A",)
    assert (found.created_at, found.updated_at) == (created, graph.now)
    assert found.version == answer_of(outcome).version != digest
    assert not answer_of(outcome).created
    assert graph.changes[-1] == Change("update_node", digest, found.version, ("A",))
    graph.execute(UpdateNode(digest, {"age": 32}))
    assert vertex(graph, digest).created_at == created


def test_labels_of_an_update_replace(graph: SmallGraph) -> None:
    digest = graph.node("A")
    graph.execute(UpdateNode(digest, {}, ("C", "B", "C")))
    assert vertex(graph, digest).labels == ("B", "C")
    graph.execute(UpdateNode(digest, {}, ()))
    assert vertex(graph, digest).labels == ()


def test_the_history_is_a_hash_chain(graph: SmallGraph) -> None:
    digest = graph.node("A")
    versions = [digest]
    for age in range(3):
        outcome = graph.execute(UpdateNode(digest, {"age": age}))
        versions.append(answer_of(outcome).version)
    view = graph.view_of(digest)
    stored = [record_block(r) for _, r in view.versions[keys.entity(view.group, digest)]]
    assert [digest_of(block) for block in stored] == versions
    for block, prev in zip(stored[1:], versions, strict=False):
        content = decode_block(block)
        assert (content["entity"], content["prev"]) == (link_of(digest), link_of(prev))
        assert "nonce" not in content
    for version in versions[1:]:
        assert view.pointers[keys.version(view.group, version)] == digest


def test_an_edge_keeps_its_label_and_ends(graph: SmallGraph) -> None:
    source, target = graph.node(), graph.node()
    digest = graph.edge(source, "L", target, x=1)
    graph.execute(UpdateEdge(digest, {"x": None, "y": 2}), at=source)
    found = edge(graph, digest, source)
    assert (found.label, found.source, found.target) == ("L", source, target)
    assert found.properties == {"y": 2}
    assert graph.changes[-1] == Change("update_edge", digest, found.version, ("L",))


def test_an_update_that_changes_nothing_answers_with_the_version_that_is(
    graph: SmallGraph,
) -> None:
    digest = graph.node("A", x=1)
    at = graph.now
    updates: list[UpdateNode] = [
        UpdateNode(digest),
        UpdateNode(digest, {"x": 1}),
        UpdateNode(digest, {"y": None}),
        UpdateNode(digest, {}, ("A", "A"), digest),
    ]
    for operation in updates:
        outcome = graph.execute(operation)
        assert not outcome.writes
        assert outcome.change is None
        assert outcome.answer == Answer(digest, digest, created=False, timestamp=at)
    source = graph.node()
    link = graph.edge(source, "L", source, x=[1])
    assert not graph.execute(UpdateEdge(link, {"x": [1]}, source)).writes


@pytest.mark.parametrize(
    ("before", "after"), [(1, 1.0), (1, True), (0.0, -0.0), ([1], [True]), ("a", b"a")]
)
def test_another_type_is_another_value(before: Value, after: Value) -> None:
    graph = SmallGraph()
    digest = graph.node(x=before)
    assert graph.execute(UpdateNode(digest, {"x": after})).writes


@pytest.mark.parametrize("operation", [UpdateNode, DeleteNode])
def test_what_is_not_there_is_not_found(operation: Any, graph: SmallGraph) -> None:
    gone, source = graph.node(), graph.node()
    graph.execute(DeleteNode(gone))
    link = graph.edge(source, "L", source)
    for digest in (gone, b"x" * 32):
        with pytest.raises(NotFound, match="there is no node") as caught:
            graph.execute(operation(digest, if_version=b"v" * 32))
        assert caught.value.extra == {"cid": cid_text(digest)}
    if graph.partition_count == 1:
        with pytest.raises(NotFound, match="is an edge, not a node"):
            graph.execute(operation(link))


@pytest.mark.parametrize("operation", [UpdateEdge, DeleteEdge])
def test_an_edge_that_is_not_there_is_not_found(operation: Any, graph: SmallGraph) -> None:
    source = graph.node()
    gone = graph.edge(source, "L", source)
    graph.execute(DeleteEdge(gone, source))
    for digest in (gone, b"x" * 32):
        with pytest.raises(NotFound, match="there is no edge"):
            graph.execute(operation(digest, source=source, if_version=b"v" * 32))
    with pytest.raises(NotFound, match="is a node, not an edge"):
        graph.execute(operation(source, source=source))


def test_if_version_holds_only_at_that_version(graph: SmallGraph) -> None:
    digest = graph.node(x=1)
    now = answer_of(graph.execute(UpdateNode(digest, {"x": 2}, None, digest))).version
    link = graph.edge(digest, "L", digest)
    operations: list[Operation] = [
        UpdateNode(digest, {"x": 3}, None, digest),
        UpdateNode(digest, {"x": 2}, None, digest),
        DeleteNode(digest, False, digest),
        DeleteNode(digest, True, digest),
    ]
    for operation in operations:
        with pytest.raises(PreconditionFailed) as caught:
            graph.execute(operation)
        assert caught.value.extra == {"cid": cid_text(digest), "version": cid_text(now)}
    for operation in (UpdateEdge(link, {}, digest, now), DeleteEdge(link, digest, now)):
        with pytest.raises(PreconditionFailed) as caught:
            graph.execute(operation)
        assert caught.value.extra["version"] == cid_text(link)
    graph.execute(DeleteEdge(link, digest, link))
    graph.execute(DeleteNode(digest, False, now))


def test_an_update_may_not_make_an_entity_too_large() -> None:
    graph = SmallGraph(limits=LimitConfig(entity_bytes_max=400, property_count_max=2))
    digest = graph.node(a=b"x" * 150)
    with pytest.raises(TooLarge):
        graph.execute(UpdateNode(digest, {"b": b"x" * 200}))
    with pytest.raises(InvalidRequest, match="would be 3"):
        graph.execute(UpdateNode(digest, {"b": 1, "c": 1}))
    graph.execute(UpdateNode(digest, {"a": None, "b": 1, "c": 1}))


# Deletions


def test_a_deleted_vertex_is_gone(graph: SmallGraph) -> None:
    digest = graph.node("A", "B")
    version = answer_of(graph.execute(UpdateNode(digest, {"x": 1}))).version
    answer = answer_of(graph.execute(DeleteNode(digest)))
    assert answer == Answer(digest, version, created=False)
    assert graph.read(digest) is None
    assert graph.changes[-1] == Change("delete_node", digest, None, ("A", "B"))


@pytest.mark.parametrize("direction", ["out", "in", "loop"])
def test_a_vertex_with_edges_stays(graph: SmallGraph, direction: str) -> None:
    node, other = graph.node(), graph.node()
    source, target = {"out": (node, other), "in": (other, node), "loop": (node, node)}[direction]
    link = graph.edge(source, "L", target)
    with pytest.raises(HasEdges) as caught:
        graph.execute(DeleteNode(node))
    assert caught.value.extra == {"cid": cid_text(node)}
    graph.execute(DeleteEdge(link, source))
    graph.execute(DeleteNode(node))
    assert graph.read(node) is None


def test_a_deleted_edge_is_gone_at_both_of_its_ends(graph: SmallGraph) -> None:
    source, target = graph.node(), graph.node()
    link, other = graph.edge(source, "L", target), graph.edge(source, "L", target)
    answer = answer_of(graph.execute(DeleteEdge(link), at=source))
    assert answer == Answer(link, link, created=False)
    assert graph.read(link, at=source) is None
    assert graph.out_edges(source) == [("L", other, target)]
    assert graph.in_edges(target) == [("L", other, source)]
    assert graph.changes[-1] == Change("delete_edge", link, None, ("L",))


def test_detaching_takes_all_edges_along_and_tells_of_each(graph: SmallGraph) -> None:
    node, *others = (graph.node() for _ in range(4))
    links = [graph.edge(node, "OUT", other) for other in others]
    links += [graph.edge(other, "IN", node) for other in others]
    links += [graph.edge(node, "LOOP", node)]
    kept = graph.edge(others[0], "KEPT", others[1])
    graph.changes.clear()
    graph.execute(DeleteNode(node, detach=True))
    assert graph.read(node) is None
    assert {change.entity for change in graph.changes} == {node, *links}
    assert len(graph.changes) == 1 + len(links)
    assert [e for o in others for _, e, _ in graph.out_edges(o)] == [kept]
    assert [e for o in others for _, e, _ in graph.in_edges(o)] == [kept]
    assert graph.out_edges(node) == graph.in_edges(node) == []


# What changed between decomposition and evaluation


def test_detaching_is_decomposed_anew_when_an_edge_came_or_went(graph: SmallGraph) -> None:
    node, other = graph.node(), graph.node()
    operation = DeleteNode(node, detach=True)
    parts = graph.parts(operation)
    link = graph.edge(other, "L", node)
    with pytest.raises(Conflict):
        graph.run(parts)
    parts = graph.parts(operation)
    graph.execute(DeleteEdge(link, other))
    with pytest.raises(Conflict):
        graph.run(parts)
    graph.execute(operation)


def test_an_edge_that_went_meanwhile_is_a_conflict_for_who_detaches() -> None:
    graph = SmallGraph(1)
    node, other = graph.node(), graph.node()
    link = graph.edge(other, "L", node)
    _, *rest = graph.parts(DeleteNode(node, detach=True))
    graph.execute(DeleteEdge(link, other))
    with pytest.raises(Conflict, match="deleted meanwhile"):
        graph.run(rest)


def test_an_edge_that_came_meanwhile_is_a_conflict_for_who_deletes_it() -> None:
    graph = SmallGraph(1)
    node = graph.node()
    creation = graph.parts(CreateEdge("L", node, node), nonce=NONCE)
    link = next(part.digest for _, part in creation)
    deletion = graph.parts(DeleteEdge(link, node))
    graph.run(creation)
    with pytest.raises(Conflict, match="created meanwhile"):
        graph.run(deletion)


def test_of_two_deletions_the_second_finds_nothing() -> None:
    graph = SmallGraph()
    node = graph.node()
    link = graph.edge(node, "L", node)
    parts = graph.parts(DeleteEdge(link, node))
    graph.run(parts)
    with pytest.raises(NotFound):
        graph.run(parts)


# All of it


class Model:
    """What the graph should hold: the simplest thing that could be right."""

    def __init__(self) -> None:
        self.nodes: dict[Digest, dict[str, Value]] = {}
        self.edges: dict[Digest, tuple[Digest, Digest]] = {}

    def detach(self, node: Digest) -> None:
        self.edges = {e: ends for e, ends in self.edges.items() if node not in ends}


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from([1, 3]))
def test_no_edge_ever_dangles(data: st.DataObject, partition_count: int) -> None:
    graph, model = SmallGraph(partition_count), Model()
    nodes: list[Digest] = [graph.node() for _ in range(3)]
    model.nodes = {node: {} for node in nodes}
    sources: dict[Digest, Digest] = {}
    pick = st.integers(0, 3).map(lambda index: nodes[index % len(nodes)])
    for _ in range(data.draw(st.integers(1, 15))):
        kind = data.draw(st.sampled_from(["node", "edge", "edge", "update", "delete", "detach"]))
        if kind == "node":
            nodes.append(graph.node())
            model.nodes[nodes[-1]] = {}
        elif kind == "edge":
            source, target = data.draw(pick), data.draw(pick)
            with suppress(NotFound):
                link = graph.edge(source, "L", target)
                assert source in model.nodes
                assert target in model.nodes
                model.edges[link] = (source, target)
                sources[link] = source
        elif kind == "update":
            node, value = data.draw(pick), data.draw(st.integers(0, 2))
            with suppress(NotFound):
                graph.execute(UpdateNode(node, {"x": value}))
                model.nodes[node] = {"x": value}
        elif kind == "delete" and sources:
            link = data.draw(st.sampled_from(sorted(sources)))
            with suppress(NotFound):
                graph.execute(DeleteEdge(link, sources[link]))
                del model.edges[link]
        else:
            node, detach = data.draw(pick), kind == "detach"
            with suppress(NotFound, HasEdges):
                graph.execute(DeleteNode(node, detach))
                del model.nodes[node]
                model.detach(node) if detach else None
        assert_same(graph, model, nodes, sources)


def assert_same(
    graph: SmallGraph, model: Model, nodes: list[Digest], sources: dict[Digest, Digest]
) -> None:
    for node in nodes:
        found = graph.read(node)
        assert (found.properties if found else None) == model.nodes.get(node)
        out = {(e, t) for e, (s, t) in model.edges.items() if s == node}
        into = {(e, s) for e, (s, t) in model.edges.items() if t == node}
        assert {(e, other) for _, e, other in graph.out_edges(node)} == out
        assert {(e, other) for _, e, other in graph.in_edges(node)} == into
    for link, source in sources.items():
        assert (graph.read(link, at=source) is not None) == (link in model.edges)


def test_outcomes_carry_the_locks_of_their_parts_and_stay_in_their_partition() -> None:
    graph = SmallGraph()
    a, b = graph.node(), graph.node()
    link = graph.edge(a, "L", b)
    operations: list[Operation] = [
        CreateNode(),
        CreateEdge("L", a, b),
        UpdateEdge(link, {"x": 1}, a),
        UpdateNode(a, {"x": 1}),
        DeleteEdge(link, a),
        DeleteNode(a, True),
    ]
    for operation in operations:
        placed = graph.parts(operation)
        for (partition, part), outcome in zip(placed, graph.run(placed), strict=True):
            assert outcome.locks == locks_of(part)
            prefix = keys.group_prefix(partition + 1)
            written = [*outcome.writes, *outcome.pointers]
            assert all(key.startswith(prefix) for key, _ in written)


def test_a_refused_operation_leaves_nothing_behind(graph: SmallGraph) -> None:
    node = graph.node()
    before = [dict(view.versions) for view in graph.views]
    for operation in (CreateEdge("L", node, b"x" * 32), DeleteNode(node, False, b"x" * 32)):
        with pytest.raises(RequestError):
            graph.execute(operation)
    assert [dict(view.versions) for view in graph.views] == before
    assert graph.view_of(node) is graph.views[partition_of(node, graph.partition_count)]
