"""Several operations as one: each sees what the ones before it will do, and all happen at once.

Two places have to know that. *Decomposition* (:func:`decompose_several`) of a deletion depends on
edges that the transaction itself creates or deletes; it runs at one node, on what the leaders of
the partitions involved showed it of theirs. *Evaluation* (:func:`evaluate_several`) runs at each
partition's leader, over the partition's parts in the order of the operations.

Since all that a transaction writes has one timestamp, an entity gets at most one new version from
it, and the last write of a key is the only one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

import msgspec

from cluster_core.config import LimitConfig
from cluster_core.errors import KotobaError, TooLarge
from cluster_core.graph.blocks import encode_content
from cluster_core.graph.decompose import decompose
from cluster_core.graph.evaluate import evaluate
from cluster_core.graph.indexes import NO_INDEXES
from cluster_core.graph.operations import (
    CID_FIELDS,
    BatchOperation,
    CreateEdge,
    CreateNode,
    DeleteEdge,
    DeleteNode,
    Operation,
    UpdateEdge,
    UpdateNode,
    fingerprint,
)
from cluster_core.graph.parts import (
    NOT_YET,
    Answer,
    Change,
    DropEdge,
    DropEdgeIn,
    Lock,
    LockKind,
    Outcome,
    Part,
    PutEdge,
    PutEdgeIn,
    View,
    locks_of,
)
from cluster_core.graph.records import EDGE, encode_record, record_version
from cluster_core.storage import keys
from cluster_core.types import Digest, GroupId, Timestamp, group_of

__all__ = [
    "Evaluated",
    "PlacedOperation",
    "Shown",
    "Wanted",
    "decompose_several",
    "evaluate_several",
    "fingerprint_several",
    "fold_updates",
    "locks_of_several",
    "show",
    "wanted",
]


# What a request means


def fingerprint_several(operations: Sequence[BatchOperation]) -> bytes:
    """16 bytes that tell one transaction's content from another's, and from any operation's; also
    that of a batch."""
    hashing = sha256(b"transaction")
    for one in operations:
        hashing.update(fingerprint(one.operation))
        hashing.update(encode_content([one.ref, dict(one.refs)]))
    return hashing.digest()[:16]


def fold_updates(operations: Sequence[BatchOperation]) -> list[tuple[BatchOperation, int]]:
    """The operations, each with the index of the one that does its work.

    An update of what the transaction itself creates becomes a part of the creation (the entity has
    one version then, its first), so it has the creation's index. All others have their own.
    """
    folded = list(operations)
    workers = list(range(len(operations)))
    names: dict[str, int | Digest] = {}
    """What a ref names: the index of its creation, or what is there already."""
    created: dict[int, tuple[int | Digest | None, int | Digest | None]] = {}
    """What exists only by this transaction, with the ends of an edge."""

    def named(one: BatchOperation, name: str) -> int | Digest | None:
        ref = one.refs.get(name)
        given: Digest | None = getattr(one.operation, CID_FIELDS[name], None)
        return given if ref is None else names.get(ref)

    for index, one in enumerate(operations):
        operation = one.operation
        entity = named(one, "cid")
        if isinstance(operation, CreateNode | CreateEdge):
            entity = index
            created[index] = (named(one, "source_cid"), named(one, "target_cid"))
        elif isinstance(operation, DeleteNode | DeleteEdge):
            created = {
                at: ends for at, ends in created.items() if at != entity and entity not in ends
            }
        elif isinstance(entity, int) and entity in created:
            merged = _merged(folded[entity].operation, operation)
            if merged is not None:
                folded[entity] = msgspec.structs.replace(folded[entity], operation=merged)
                workers[index] = entity
        if one.ref is not None and entity is not None:
            names[one.ref] = entity
    return list(zip(folded, workers, strict=True))


def _merged(creation: Operation, update: Operation) -> Operation | None:
    """The creation with the update in it; None when only its evaluation can say what is wrong."""
    if isinstance(creation, CreateNode) and isinstance(update, UpdateNode):
        labels = creation.labels if update.labels is None else update.labels
        properties = {**creation.properties, **update.properties}
        return None if update.if_version else CreateNode(labels, properties)
    if isinstance(creation, CreateEdge) and isinstance(update, UpdateEdge):
        properties = {**creation.properties, **update.properties}
        changed = msgspec.structs.replace(creation, properties=properties)
        return None if update.if_version else changed
    return None


# Decomposition


class PlacedOperation(msgspec.Struct, array_like=True, frozen=True):
    """An operation and the partition that it belongs to. ``index`` is its place in the request."""

    index: int
    partition: int
    operation: Operation
    nonce: bytes = b""
    check: bool = False


class Wanted(msgspec.Struct, array_like=True, frozen=True):
    """What the decomposition has to know of one partition: records of edges that are deleted, and
    all edges of vertices that are detached."""

    group: GroupId
    edges: list[Digest]
    vertices: list[Digest]


class Shown(msgspec.Struct, array_like=True, frozen=True):
    """The answer: user keys of entities with their newest version, and of adjacency with the other
    end. It may be stale at once; then an evaluation says Conflict."""

    records: list[tuple[bytes, tuple[Timestamp, bytes] | None]] = []
    adjacency: list[tuple[bytes, bytes]] = []


def wanted(operations: Iterable[PlacedOperation]) -> list[Wanted]:
    """What has to be looked up before ``operations`` can be decomposed; mostly nothing."""
    by_group: dict[GroupId, Wanted] = {}
    for one in operations:
        operation = one.operation
        edge = isinstance(operation, DeleteEdge)
        if edge or (isinstance(operation, DeleteNode) and operation.detach):
            assert isinstance(operation, DeleteEdge | DeleteNode)
            group = group_of(one.partition)
            want = by_group.setdefault(group, Wanted(group, [], []))
            (want.edges if edge else want.vertices).append(operation.digest)
    return list(by_group.values())


def show(want: Wanted, view: View, limits: LimitConfig) -> Shown:
    """What the leader of a partition knows of what is wanted."""
    records = [keys.entity(view.group, edge) for edge in want.edges]
    bound = min(limits.detach_edges_max, limits.transaction_detach_edges_max) + 1
    adjacency: list[tuple[bytes, bytes]] = []
    for vertex in want.vertices:
        adjacency += view.scan_newest(keys.out_prefix(view.group, vertex), bound)
        adjacency += view.scan_newest(keys.in_prefix(view.group, vertex), bound)
    return Shown([(key, view.newest(key)) for key in records], adjacency)


class _Sight:
    """A View of one partition as far as it was shown, with what the transaction does to it."""

    def __init__(self, group: GroupId, shown: Shown) -> None:
        self.group = group
        self.indexes = NO_INDEXES
        self._records = dict(shown.records)
        self._adjacency: dict[bytes, dict[bytes, bytes]] = {}
        for key, other in shown.adjacency:
            self._link(key, other)

    def newest(self, user_key: bytes) -> tuple[Timestamp, bytes] | None:
        return self._records.get(user_key)

    def scan_newest(self, prefix: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        return sorted(self._adjacency.get(prefix, {}).items())[:limit]

    def note(self, part: Part) -> None:
        """``part`` precedes what is decomposed next."""
        group = self.group
        match part:
            case PutEdge(digest, label, source, target, block):
                record = encode_record(EDGE, digest, NOT_YET, block)
                self._records[keys.entity(group, digest)] = (NOT_YET, record)
                self._link(keys.out_edge(group, source, label, digest), target)
            case PutEdgeIn(digest, label, source, target):
                self._link(keys.in_edge(group, target, label, digest), source)
            case DropEdge(digest, label, source):
                self._records.pop(keys.entity(group, digest), None)
                if source:
                    self._unlink(keys.out_edge(group, source, label, digest))
            case DropEdgeIn(digest, label, target):
                self._unlink(keys.in_edge(group, target, label, digest))

    def _link(self, key: bytes, other: bytes) -> None:
        self._adjacency.setdefault(key[: keys.ADJACENCY_PREFIX], {})[key] = other

    def _unlink(self, key: bytes) -> None:
        self._adjacency.get(key[: keys.ADJACENCY_PREFIX], {}).pop(key, None)


def decompose_several(
    operations: Iterable[PlacedOperation],
    shown: dict[GroupId, Shown],
    partition_count: int,
    limits: LimitConfig,
) -> list[tuple[int, int, Part]]:
    """``(index of the operation, partition, part)``, in the order of the operations.

    ``shown`` has what :func:`wanted` asked for. Raises what decompose raises, with ``index``.
    """
    sights: dict[int, _Sight] = {}

    def sight(partition: int) -> _Sight:
        seen = sights.get(partition)
        if seen is None:
            group = group_of(partition)
            seen = sights[partition] = _Sight(group, shown.get(group, Shown()))
        return seen

    parts: list[tuple[int, int, Part]] = []
    for one in operations:
        view, nonce = sight(one.partition), one.nonce or None
        try:
            placed = decompose(
                one.operation,
                view,
                nonce,
                partition_count,
                limits,
                check=one.check,
                among_others=True,
            )
        except KotobaError as error:
            error.extra["index"] = one.index
            raise
        for partition, part in placed:
            sight(partition).note(part)
            parts.append((one.index, partition, part))
    return parts


# Evaluation


def locks_of_several(parts: Iterable[Part]) -> list[Lock]:
    """The locks that ``parts`` need together: the strongest on each entity."""
    strongest: dict[Digest, LockKind] = {}
    for part in parts:
        for digest, kind in locks_of(part):
            before = strongest.get(digest)
            if before is None or before < kind:
                strongest[digest] = kind
    return list(strongest.items())


@dataclass(slots=True)
class Evaluated:
    """What parts yield together. Nothing has happened yet: the caller proposes it."""

    writes: list[tuple[bytes, bytes]] = field(default_factory=list)
    pointers: list[tuple[bytes, bytes]] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    answers: list[tuple[int, Answer]] = field(default_factory=list)
    """By the index of the operation."""


class _Layer:
    """The View of a part: its partition, and over it what the parts before it will write."""

    def __init__(self, below: View) -> None:
        self.group = below.group
        self.indexes = below.indexes
        self.below = below
        self.writes: dict[bytes, bytes] = {}
        self.rewritten: set[bytes] = set()
        self._by_vertex: dict[bytes, list[bytes]] = {}

    def newest(self, user_key: bytes) -> tuple[Timestamp, bytes] | None:
        value = self.writes.get(user_key)
        return self.below.newest(user_key) if value is None else (NOT_YET, value)

    def scan_newest(self, prefix: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        assert len(prefix) == keys.ADJACENCY_PREFIX, "evaluations scan the edges of a vertex"
        own = {key: self.writes[key] for key in self._by_vertex.get(prefix, ())}
        live = [(key, value) for key, value in own.items() if value]
        if len(live) < limit:
            below = self.below.scan_newest(prefix, limit + len(own))
            live += [(key, value) for key, value in below if key not in own]
        return live[:limit]

    def add(self, user_key: bytes, value: bytes) -> None:
        if user_key in self.writes:
            self.rewritten.add(user_key)
        else:
            self._by_vertex.setdefault(user_key[: keys.ADJACENCY_PREFIX], []).append(user_key)
        self.writes[user_key] = value

    def cancelled(self) -> set[bytes]:
        """Keys that appeared and went away again: nobody will ever have seen them."""
        return {key for key in self.rewritten if not self.writes[key] and not self._lives(key)}

    def _lives(self, user_key: bytes) -> bool:
        found = self.below.newest(user_key)
        return found is not None and bool(found[1])


def evaluate_several(
    parts: Sequence[Part], view: View, limits: LimitConfig, operations: Sequence[int] = ()
) -> Evaluated:
    """What ``parts`` of one transaction do to the partition that ``view`` shows, in this order.

    ``operations`` has the index of the operation of each part. Raises what evaluate raises (then
    with that ``index``), and TooLarge when the transaction would write too much here.
    """
    if len(parts) == 1 and not operations:
        return _evaluate_one(parts[0], view, limits)
    layer = _Layer(view)
    changes: dict[Digest, tuple[Change, list[tuple[bytes, bytes]]]] = {}
    answers: list[tuple[int, Answer]] = []
    size = 0
    for position, part in enumerate(parts):
        index = operations[position] if operations else 0
        try:
            outcome = evaluate(part, layer, limits)
            size += _size(outcome)
            if size > limits.transaction_bytes_max:
                raise _writes_too_much(limits)
        except KotobaError as error:
            if operations:
                error.extra["index"] = index
            raise
        for user_key, value in outcome.writes:
            layer.add(user_key, value)
        if outcome.change is not None:
            changes[outcome.change.entity] = (outcome.change, outcome.pointers)
        if outcome.answer is not None:
            answers.append((index, outcome.answer))
    cancelled = layer.cancelled()
    final = [
        pair
        for digest, pair in changes.items()
        if not cancelled or keys.entity(layer.group, digest) not in cancelled
    ]
    return Evaluated(
        [(key, value) for key, value in layer.writes.items() if key not in cancelled],
        [pointer for _, pointers in final for pointer in pointers],
        [change for change, _ in final],
        [(index, _final_answer(layer, answer)) for index, answer in answers],
    )


def _writes_too_much(limits: LimitConfig) -> TooLarge:
    bound = limits.transaction_bytes_max
    detail = f"a transaction may write {bound} bytes in one partition"
    return TooLarge.beyond("transaction_bytes_max", bound, detail)


def _evaluate_one(part: Part, view: View, limits: LimitConfig) -> Evaluated:
    """The same for the one part that half an edge is: nothing can come before or after it, so it
    needs no layer. Loading edges is made of this; it saves half of the evaluation."""
    outcome = evaluate(part, view, limits)
    if _size(outcome) > limits.transaction_bytes_max:
        raise _writes_too_much(limits)
    return Evaluated(
        outcome.writes,
        outcome.pointers,
        [] if outcome.change is None else [outcome.change],
        [] if outcome.answer is None else [(0, outcome.answer)],
    )


def _size(outcome: Outcome) -> int:
    return sum(len(key) + len(value) for key, value in outcome.writes)


def _final_answer(layer: _Layer, answer: Answer) -> Answer:
    """The answer with the version that the transaction made, or else the one that it deleted."""
    key = keys.entity(layer.group, answer.digest)
    record = layer.writes.get(key)
    if record is None or (not record and key not in layer.rewritten):
        return answer
    if not record:
        before = layer.below.newest(key)
        record = b"" if before is None else before[1]
    version = record_version(record) if record else answer.digest
    if version == answer.version:
        return answer
    return msgspec.structs.replace(answer, version=version, timestamp=None)
