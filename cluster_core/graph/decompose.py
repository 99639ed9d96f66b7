"""decompose(operation) -> parts: what an operation means for each partition that it touches.

Runs at the leader of the operation's home partition. It decides nothing: what it saw may be stale
by the time the parts are evaluated under their locks, and then the evaluation refuses
(``Conflict``), and the operation is decomposed anew.
"""

from __future__ import annotations

from hashlib import sha256

from cluster_core.config import LimitConfig
from cluster_core.errors import TooLarge
from cluster_core.graph.entities import Edge
from cluster_core.graph.operations import (
    CreateEdge,
    CreateNode,
    Creation,
    DeleteEdge,
    DeleteNode,
    Operation,
    UpdateEdge,
    UpdateNode,
    check_size,
    create,
)
from cluster_core.graph.parts import (
    ChangeEdge,
    ChangeVertex,
    DropEdge,
    DropEdgeIn,
    DropVertex,
    HoldEdges,
    Part,
    PutEdge,
    PutEdgeIn,
    PutVertex,
    View,
)
from cluster_core.graph.records import EDGE, decode_record, record_kind
from cluster_core.storage import keys
from cluster_core.types import Digest, partition_of, partition_of_group

__all__ = [
    "Adjacency",
    "Placed",
    "adjacency_digest",
    "decompose",
    "read_adjacency",
    "too_many_edges",
]

Placed = tuple[int, Part]
"""A part and the partition whose leader evaluates it."""

Adjacency = list[tuple[bytes, bytes]]
"""OUT or IN entries of one vertex: keys without timestamp, and the vertices at the other end."""


def decompose(
    operation: Operation,
    view: View,
    nonce: bytes | None,
    partition_count: int,
    limits: LimitConfig,
    *,
    check: bool = False,
    among_others: bool = False,
) -> list[Placed]:
    """The parts of ``operation``, at least one, the one that answers first.

    ``view`` is the home partition's. ``nonce`` is that of a creation, and ``check`` says that it
    came from an idempotency key or a client, so that the creation may have happened before; a
    random nonce never collides, and the look-up is saved. ``among_others``: it is one of several
    operations, so that all it does is done at once.
    Raises :class:`~cluster_core.errors.TooLarge` for a creation with too large a block, and when a
    vertex has too many edges to detach.
    """
    home = partition_of_group(view.group)
    match operation:
        case CreateNode():
            assert nonce is not None
            made = create(operation, nonce, partition_count)
            assert made.partition == home, "a creation is decomposed where its digest puts it"
            check_size(made.block, limits)
            labels = tuple(sorted(set(operation.labels)))
            return [(home, PutVertex(made.digest, labels, made.block, check))]
        case CreateEdge():
            assert nonce is not None
            made = create(operation, nonce, partition_count)
            assert made.partition == home, "an edge is created where its source lives"
            check_size(made.block, limits)
            return _create_edge(operation, view, made, partition_count, check)
        case UpdateNode(digest, properties, labels, if_version):
            return [(home, ChangeVertex(digest, properties, labels, if_version))]
        case UpdateEdge(digest, properties, _, if_version):
            return [(home, ChangeEdge(digest, properties, if_version))]
        case DeleteEdge(digest, _, if_version):
            return _delete_edge(view, digest, if_version, partition_count)
        case DeleteNode(digest, detach, if_version):
            if detach:
                return _detach(view, operation, partition_count, limits, among_others)
            return [(home, DropVertex(digest, if_version))]


def _create_edge(
    operation: CreateEdge, view: View, made: Creation, partition_count: int, check: bool
) -> list[Placed]:
    home = made.partition
    label, source, target = operation.label, operation.source, operation.target
    out_half = PutEdge(made.digest, label, source, target, made.block, check)
    if check and view.newest(keys.entity(view.group, made.digest)) is not None:
        return [(home, out_half)]
    in_half = PutEdgeIn(made.digest, label, source, target, check)
    return [(home, out_half), (partition_of(target, partition_count), in_half)]


def _delete_edge(
    view: View, digest: Digest, if_version: Digest | None, partition_count: int
) -> list[Placed]:
    home = partition_of_group(view.group)
    found = view.newest(keys.entity(view.group, digest))
    if found is None or not found[1] or record_kind(found[1]) != EDGE:
        return [(home, DropEdge(digest, if_version=if_version))]
    edge = decode_record(digest, *found)
    assert isinstance(edge, Edge)
    return [
        (home, DropEdge(digest, edge.label, edge.source, edge.target, if_version)),
        (partition_of(edge.target, partition_count), DropEdgeIn(digest, edge.label, edge.target)),
    ]


def _detach(
    view: View,
    operation: DeleteNode,
    partition_count: int,
    limits: LimitConfig,
    among_others: bool,
) -> list[Placed]:
    digest, if_version = operation.digest, operation.if_version
    home = partition_of_group(view.group)
    name, bound = "detach_edges_max", limits.detach_edges_max
    step = min(bound, limits.detach_step_edges_max)
    if among_others and limits.transaction_detach_edges_max < bound:
        name, bound = "transaction_detach_edges_max", limits.transaction_detach_edges_max
        step = bound
    out, into = read_adjacency(view, digest, step)
    if len(out) + len(into) > step:
        if step == bound:
            raise too_many_edges(name, bound)
        return [(home, DropVertex(digest, if_version, chunked=True))] + [
            (partition, HoldEdges(digest))
            for partition in range(partition_count)
            if partition != home
        ]
    parts: list[Placed] = [(home, DropVertex(digest, if_version, adjacency_digest(out, into)))]
    for key, target in out:
        label, edge = keys.split_adjacency(key)
        parts.append((home, DropEdge(edge, label, digest, target, detached=True)))
        parts.append((partition_of(target, partition_count), DropEdgeIn(edge, label, target)))
    for key, source in into:
        if source == digest:
            continue  # a loop is in both lists, and gone already
        label, edge = keys.split_adjacency(key)
        drop = DropEdge(edge, label, source, digest, detached=True)
        parts.append((partition_of(source, partition_count), drop))
        parts.append((home, DropEdgeIn(edge, label, digest)))
    return parts


def too_many_edges(name: str, bound: int) -> TooLarge:
    """What is said of a vertex that cannot be detached at a time."""
    detail = f"the node has more than {bound} edges; delete some of them first"
    return TooLarge.beyond(name, bound, detail)


def read_adjacency(view: View, vertex: Digest, limit: int) -> tuple[Adjacency, Adjacency]:
    """The OUT and the IN entries of ``vertex``, in key order; more than ``limit`` are cut short."""
    out = view.scan_newest(keys.out_prefix(view.group, vertex), limit + 1)
    into = view.scan_newest(keys.in_prefix(view.group, vertex), limit + 1)
    return sorted(out), sorted(into)


def adjacency_digest(out: Adjacency, into: Adjacency) -> bytes:
    """Names a vertex's set of edges, so that a change of it is noticed."""
    hashing = sha256()
    for entries in (out, into):
        hashing.update(len(entries).to_bytes(8, "big"))
        for key, _ in entries:
            hashing.update(len(key).to_bytes(4, "big") + key)
    return hashing.digest()
