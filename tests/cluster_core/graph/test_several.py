"""Several operations as one do what they do one after the other, or nothing."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster_core.config import LimitConfig
from cluster_core.errors import HasEdges, InvalidRequest, KotobaError, NotFound, TooLarge
from cluster_core.graph.entities import Edge
from cluster_core.graph.operations import (
    BatchOperation,
    CreateEdge,
    CreateNode,
    DeleteEdge,
    DeleteNode,
    Operation,
    UpdateEdge,
    UpdateNode,
    create,
)
from cluster_core.graph.parts import Part
from cluster_core.graph.records import decode_record
from cluster_core.graph.several import (
    PlacedOperation,
    decompose_several,
    evaluate_several,
    fingerprint_several,
    fold_updates,
    locks_of_several,
    show,
    wanted,
)
from cluster_core.storage import keys
from cluster_core.types import Digest, GroupId, partition_of, partition_of_group
from tests.cluster_core.graph.small_graph import SmallGraph


class Several:
    """What a home leader and its participants do with a transaction, without the cluster."""

    def __init__(self, graph: SmallGraph) -> None:
        self.graph = graph

    def execute(self, operations: list[PlacedOperation]) -> dict[int, Any]:
        """The answers; raises the first error. Nothing is written when one is raised."""
        graph = self.graph
        shown = {
            want.group: show(want, graph.views[partition_of_group(want.group)], graph.limits)
            for want in wanted(operations)
        }
        parts = decompose_several(operations, shown, graph.partition_count, graph.limits)
        by_partition: dict[int, list[tuple[int, Part]]] = {}
        for index, partition, part in parts:
            by_partition.setdefault(partition, []).append((index, part))
        evaluated, errors = {}, []
        for partition, own in by_partition.items():
            try:
                evaluated[partition] = evaluate_several(
                    [part for _, part in own],
                    graph.views[partition],
                    graph.limits,
                    [index for index, _ in own],
                )
            except KotobaError as error:
                errors.append(error)
        if errors:
            raise min(errors, key=lambda error: error.extra["index"])
        graph.now += 1
        answers: dict[int, Any] = {}
        for partition, done in evaluated.items():
            for key, value in done.writes:
                graph.views[partition].versions.setdefault(key, []).append((graph.now, value))
            assert len({key for key, _ in done.writes}) == len(done.writes), "each key once"
            answers.update(done.answers)
        return answers


def alive(graph: SmallGraph) -> dict[bytes, bytes]:
    """Every live key with its value; of records the version and the content, not the block, whose
    predecessor differs."""
    found: dict[bytes, Any] = {}
    for view in graph.views:
        for key, versions in view.versions.items():
            value = versions[-1][1]
            if not value:
                continue
            if key[2:3] == b"E":
                entity = graph_entity(graph, view.group, key[3:])
                found[key] = (
                    entity.properties,
                    (entity.label, entity.source, entity.target)
                    if isinstance(entity, Edge)
                    else entity.labels,
                )
            else:
                found[key] = value
    return found


def graph_entity(graph: SmallGraph, group: GroupId, digest: Digest) -> Any:
    newest = graph.views[partition_of_group(group)].newest(keys.entity(group, digest))
    assert newest is not None
    return decode_record(digest, *newest)


@st.composite
def plans(draw: st.DrawFn) -> list[tuple[str, int, int, int]]:
    """(what, which, which other, value): numbers choose among what exists by then."""
    kinds = ["node", "edge", "update", "update edge", "delete", "detach", "delete edge", "guard"]
    number = st.integers(0, 30)
    step = st.tuples(st.sampled_from(kinds), number, number, st.integers(0, 3))
    return draw(st.lists(step, min_size=1, max_size=12))


def operations_of(
    plan: list[tuple[str, int, int, int]],
    vertices: list[Digest],
    edges: list[tuple[Digest, Digest]],
    partition_count: int,
) -> list[PlacedOperation]:
    """Operations over what is there and what the plan itself creates (never updated: those are
    folded before they come here)."""
    vertices, edges = list(vertices), list(edges)
    old_vertices, old_edges = list(vertices), list(edges)
    placed: list[PlacedOperation] = []
    for index, (what, one, other, value) in enumerate(plan):
        nonce = (1000 + index).to_bytes(16, "big")
        vertex, target = vertices[one % len(vertices)], vertices[other % len(vertices)]
        operation: Operation
        home = vertex
        if what == "node":
            operation = CreateNode(("L",), {"v": value})
            home = create(operation, nonce, partition_count).digest
            vertices.append(home)
        elif what == "edge":
            operation = CreateEdge("K", vertex, target, {"v": value})
            edges.append((create(operation, nonce, partition_count).digest, vertex))
        elif what == "update":
            home = old_vertices[one % len(old_vertices)]
            operation = UpdateNode(home, {"v": value, "w": None})
        elif what == "guard":
            operation = UpdateNode(vertex, {})
        elif what == "update edge":
            edge, home = old_edges[one % len(old_edges)]
            operation = UpdateEdge(edge, {"v": value}, home)
        elif what == "delete edge":
            edge, home = edges[one % len(edges)]
            operation = DeleteEdge(edge, home)
        else:
            operation = DeleteNode(vertex, detach=what == "detach")
        made = nonce if isinstance(operation, CreateNode | CreateEdge) else b""
        placed.append(PlacedOperation(index, partition_of(home, partition_count), operation, made))
    return placed


@settings(max_examples=300, deadline=None)
@given(plan=plans(), partition_count=st.sampled_from([1, 3, 16]))
def test_together_is_the_same_as_one_after_the_other(
    plan: list[tuple[str, int, int, int]], partition_count: int
) -> None:
    apart, together = SmallGraph(partition_count), SmallGraph(partition_count)
    for graph in (apart, together):
        vertices = [graph.node("L", v=-1, w=1) for _ in range(4)]
        edges = [
            (graph.edge(vertices[a], "K", vertices[b], v=-1), vertices[a])
            for a, b in [(0, 1), (1, 0), (2, 2), (0, 2)]
        ]
    operations = operations_of(plan, vertices, edges, partition_count)
    failed: tuple[int, type[KotobaError]] | None = None
    for one in operations:
        try:
            apart.execute(
                one.operation,
                at=one.operation.source if isinstance(one.operation, DeleteEdge) else None,
                nonce=one.nonce or None,
            )
        except KotobaError as error:
            failed = (one.index, type(error))
            break
    before = alive(together)
    if failed is None:
        answers = Several(together).execute(operations)
        assert answers.keys() == {one.index for one in operations}
        assert alive(together) == alive(apart)
        return
    with pytest.raises(failed[1]) as caught:
        Several(together).execute(operations)
    assert caught.value.extra["index"] == failed[0]
    assert alive(together) == before


@settings(max_examples=100, deadline=None)
@given(plan=plans())
def test_locks_are_the_strongest_of_all_parts(plan: list[tuple[str, int, int, int]]) -> None:
    graph = SmallGraph(1)
    vertices = [graph.node() for _ in range(2)]
    edges = [(graph.edge(vertices[0], "K", vertices[1]), vertices[0])]
    operations = operations_of(plan, vertices, edges, 1)
    shown = {want.group: show(want, graph.views[0], graph.limits) for want in wanted(operations)}
    parts = [part for _, _, part in decompose_several(operations, shown, 1, graph.limits)]
    locks = locks_of_several(parts)
    assert len({digest for digest, _ in locks}) == len(locks)
    for part in parts:
        strongest = dict(locks)
        assert all(strongest[digest] >= kind for digest, kind in locks_of_several([part]))


def test_what_comes_and_goes_leaves_nothing_behind() -> None:
    graph = SmallGraph(1)
    (vertex,) = [graph.node()]
    node = CreateNode(("L",), {})
    made = create(node, bytes(16), 1)
    edge = CreateEdge("K", vertex, made.digest)
    link = create(edge, bytes(16), 1)
    before = deepcopy(graph.views[0].versions)
    answers = Several(graph).execute(
        [
            PlacedOperation(0, 0, node, bytes(16)),
            PlacedOperation(1, 0, edge, bytes(16)),
            PlacedOperation(2, 0, DeleteEdge(link.digest, vertex)),
            PlacedOperation(3, 0, DeleteNode(made.digest)),
        ]
    )
    assert graph.views[0].versions == before
    assert [answers[index].digest for index in range(4)] == [
        made.digest,
        link.digest,
        link.digest,
        made.digest,
    ]


def test_a_transaction_that_writes_too_much_is_too_large() -> None:
    graph = SmallGraph(1, LimitConfig(transaction_bytes_max=1_000))
    node = CreateNode((), {"text": "x" * 600})
    several = [PlacedOperation(n, 0, node, n.to_bytes(16, "big")) for n in range(2)]
    Several(graph).execute(several[:1])
    with pytest.raises(TooLarge) as caught:
        Several(graph).execute(several)
    assert caught.value.extra == {"limit": 1_000, "name": "transaction_bytes_max", "index": 1}


# Folding


def folded(*operations: BatchOperation) -> list[tuple[Operation, int]]:
    return [(one.operation, worker) for one, worker in fold_updates(operations)]


def test_an_update_of_what_is_created_becomes_part_of_the_creation() -> None:
    result = folded(
        BatchOperation(CreateNode(("A",), {"x": 1, "y": 2}), "n"),
        BatchOperation(UpdateNode(b"", {"x": 3, "y": None}, ("B",)), "again", {"cid": "n"}),
        BatchOperation(UpdateNode(b"", {"z": 4}), None, {"cid": "again"}),
    )
    assert result[0] == (CreateNode(("B",), {"x": 3, "y": None, "z": 4}), 0)
    assert [worker for _, worker in result] == [0, 0, 0]


def test_an_update_behind_a_deletion_is_not_folded() -> None:
    for deletion in (
        BatchOperation(DeleteEdge(b""), None, {"cid": "e"}),
        BatchOperation(DeleteNode(b"", detach=True), None, {"cid": "n"}),
    ):
        result = folded(
            BatchOperation(CreateNode(), "n"),
            BatchOperation(CreateEdge("K", b"", bytes(32)), "e", {"source_cid": "n"}),
            deletion,
            BatchOperation(UpdateEdge(b"", {"x": 1}), None, {"cid": "e"}),
        )
        assert [worker for _, worker in result] == [0, 1, 2, 3]


def test_an_update_with_a_version_or_of_another_kind_is_not_folded() -> None:
    result = folded(
        BatchOperation(CreateNode(), "n"),
        BatchOperation(UpdateNode(b"", {}, None, bytes(32)), None, {"cid": "n"}),
        BatchOperation(UpdateEdge(b"", {"x": 1}), None, {"cid": "n"}),
    )
    assert [worker for _, worker in result] == [0, 1, 2]


def test_fingerprints_tell_transactions_apart() -> None:
    a, b = BatchOperation(CreateNode(), "n"), BatchOperation(CreateNode(("L",)))
    edge = CreateEdge("K", b"", bytes(32))
    prints = [
        fingerprint_several(one)
        for one in (
            [a],
            [b],
            [a, b],
            [b, a],
            [a, BatchOperation(edge, None, {"source_cid": "n"})],
            [a, BatchOperation(edge, None, {"source_cid": "m"})],
        )
    ]
    assert len(set(prints)) == len(prints)


def test_an_update_by_the_cid_of_a_creation_is_refused() -> None:
    graph = SmallGraph(1)
    node = CreateNode()
    made = create(node, bytes(16), 1)
    with pytest.raises(InvalidRequest, match="say its ref"):
        Several(graph).execute(
            [
                PlacedOperation(0, 0, node, bytes(16)),
                PlacedOperation(1, 0, UpdateNode(made.digest, {"x": 1})),
            ]
        )


def test_errors_name_their_operation() -> None:
    graph = SmallGraph(1)
    a, b = graph.node(), graph.node()
    graph.edge(a, "K", b)
    for operation, kind in ((DeleteNode(a), HasEdges), (UpdateNode(bytes(32), {}), NotFound)):
        with pytest.raises(kind) as caught:
            Several(graph).execute(
                [PlacedOperation(7, 0, UpdateNode(b, {"x": 1})), PlacedOperation(9, 0, operation)]
            )
        assert caught.value.extra["index"] == 9
