"""The six operations: their shape, their checks, and where they belong.

They travel between nodes as they are (:func:`encode_operation`). An operation that has passed
:func:`check_operation` can only fail for what the graph holds, never for its shape.

In the properties of an update a null removes; in those of a creation it is nothing. Labels of an
update replace all of the vertex's labels when they are given.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from hashlib import sha256
from typing import Any, Final

import msgspec

from cluster_core.config import LimitConfig
from cluster_core.errors import DependencyFailed, TooLarge
from cluster_core.graph.blocks import (
    NODE_NONCE,
    NONCE_BYTES,
    digest_of,
    encode_content,
    first_edge_block,
    first_node_block,
    present,
)
from cluster_core.graph.values import (
    Problem,
    Value,
    encode_message,
    invalid,
    message_decoder,
    problem_of,
    problem_of_text,
)
from cluster_core.types import Digest, Timestamp, partition_of

__all__ = [
    "CID_FIELDS",
    "BatchOperation",
    "CreateEdge",
    "CreateNode",
    "Creation",
    "DeleteEdge",
    "DeleteNode",
    "Operation",
    "OperationResult",
    "TransactionResult",
    "UpdateEdge",
    "UpdateNode",
    "batch_nonce",
    "check_batch",
    "check_items",
    "check_operation",
    "check_refs",
    "create",
    "decode_operation",
    "decode_result",
    "decode_transaction_result",
    "encode_operation",
    "encode_result",
    "entity_nonce",
    "fingerprint",
    "home_partition",
    "keyed_partition",
    "place_among",
    "place_creation",
    "resolve_refs",
]

_DIGEST_BYTES: Final = 32
_BATCH: Final = (1 << 64) - 1
"""In place of an operation's index."""


class CreateNode(msgspec.Struct, array_like=True, frozen=True, tag=1):
    labels: tuple[str, ...] = ()
    properties: dict[str, Value] = {}


class UpdateNode(msgspec.Struct, array_like=True, frozen=True, tag=2):
    digest: Digest
    properties: dict[str, Value] = {}
    labels: tuple[str, ...] | None = None
    if_version: Digest | None = None


class DeleteNode(msgspec.Struct, array_like=True, frozen=True, tag=3):
    """``detach`` deletes the vertex's edges with it; without it, edges are in the way."""

    digest: Digest
    detach: bool = False
    if_version: Digest | None = None


class CreateEdge(msgspec.Struct, array_like=True, frozen=True, tag=4):
    label: str
    source: Digest
    target: Digest
    properties: dict[str, Value] = {}


class UpdateEdge(msgspec.Struct, array_like=True, frozen=True, tag=5):
    """``source`` is a hint: it says in which partition the edge lives."""

    digest: Digest
    properties: dict[str, Value] = {}
    source: Digest | None = None
    if_version: Digest | None = None


class DeleteEdge(msgspec.Struct, array_like=True, frozen=True, tag=6):
    """``source`` is a hint: it says in which partition the edge lives."""

    digest: Digest
    source: Digest | None = None
    if_version: Digest | None = None


Operation = CreateNode | UpdateNode | DeleteNode | CreateEdge | UpdateEdge | DeleteEdge


class OperationResult(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What a successful operation answers. A deletion's ``version`` is the one that it deleted."""

    digest: Digest
    version: Digest
    partition: int
    timestamp: Timestamp
    created: bool


class TransactionResult(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What a transaction answers: one result for each operation, all written at ``timestamp``.

    It makes at most one new version of an entity, which all results of that entity name.
    """

    results: list[OperationResult]
    timestamp: Timestamp


class BatchOperation(msgspec.Struct, array_like=True, frozen=True):
    """One of several operations.

    ``ref`` names the entity that it creates or touches, for later ones. ``refs`` says which of its
    own fields (``cid``, ``source_cid``, ``target_cid``) stand for such a name: until that is known,
    the field holds ``b""``.
    """

    operation: Operation
    ref: str | None = None
    refs: dict[str, str] = {}


encode_operation: Final = encode_message
decode_operation: Final[Callable[[bytes], Operation]] = message_decoder(Operation)
encode_result: Final = msgspec.msgpack.Encoder().encode
decode_result: Final = msgspec.msgpack.Decoder(OperationResult).decode
decode_transaction_result: Final = msgspec.msgpack.Decoder(TransactionResult).decode


# Checking

CID_FIELDS: Final = {"cid": "digest", "source_cid": "source", "target_cid": "target"}
"""The contract's names of the fields that hold CIDs, and ours."""

_CHECKED_FIELDS: Final = {
    kind: [
        (field, ours)
        for field, ours in [*CID_FIELDS.items(), ("if_version", "if_version")]
        if ours in kind.__struct_fields__
    ]
    for kind in (UpdateNode, DeleteNode, CreateEdge, UpdateEdge, DeleteEdge)
}
_LABELLED: Final = (CreateNode, UpdateNode)
_DELETIONS: Final = (DeleteNode, DeleteEdge)


def check_operation(
    operation: Operation, limits: LimitConfig, where: str = "", refs: Collection[str] = ()
) -> None:
    """Check everything that can be checked without the graph and without making the block, whose
    size is checked where it is made (:func:`check_size`).

    ``where`` is the operation's path in the request; the fields in ``refs`` are not known yet.
    Raises :class:`~cluster_core.errors.InvalidRequest` with all that is wrong. Takes 3 µs with four
    properties.
    """
    problems: list[Problem] = []
    if isinstance(operation, CreateEdge):
        _check_name(operation.label, "label", limits.label_bytes_max, problems)
    elif isinstance(operation, _LABELLED) and operation.labels is not None:
        _check_labels(operation.labels, limits, problems)
    if not isinstance(operation, _DELETIONS):
        _check_properties(operation.properties, limits, problems)
    _check_digests(operation, refs, problems)
    if problems:
        prefix = f"{where}." if where else ""
        raise invalid([{"where": prefix + p["where"], "why": p["why"]} for p in problems])


def check_size(block: bytes, limits: LimitConfig) -> None:
    """Raise :class:`~cluster_core.errors.TooLarge` for an entity whose block is too large."""
    if len(block) > limits.entity_bytes_max:
        bound = limits.entity_bytes_max
        detail = f"an entity may take {bound} bytes, this takes {len(block)}"
        raise TooLarge.beyond("entity_bytes_max", bound, detail)


def check_items(properties: Mapping[str, object], bytes_max: int) -> None:
    """Raise :class:`~cluster_core.errors.TooLarge` for lists that have more items than an entity
    may have bytes: an item takes at least one, so nobody needs to look at them."""
    items = sum(len(value) for value in properties.values() if type(value) is list)
    if items > bytes_max:
        detail = f"an entity may take {bytes_max} bytes, this has {items} items in its lists"
        raise TooLarge.beyond("entity_bytes_max", bytes_max, detail)


def check_batch(operations: Sequence[BatchOperation], limits: LimitConfig) -> None:
    """Check what concerns a batch as a whole: its size, and that each ref names an earlier one.

    The operations themselves are checked one by one, since in a batch each fails for itself.
    """
    if len(operations) > limits.batch_operations_max:
        bound = limits.batch_operations_max
        detail = f"a batch may have {bound} operations, this has {len(operations)}"
        raise TooLarge.beyond("batch_operations_max", bound, detail)
    check_refs(operations)


def check_refs(operations: Sequence[BatchOperation]) -> None:
    """Check that each ref names an earlier operation. Raises InvalidRequest with all mistakes, and
    as ``index`` the operation of the first."""
    problems: list[Problem] = []
    first = -1
    names: set[str] = set()
    for index, item in enumerate(operations):
        for field, name in sorted(item.refs.items()):
            if name not in names:
                why = f"${name} names no earlier operation"
                problems.append({"where": f"operations.{index}.{field}", "why": why})
        if item.ref is not None:
            if item.ref in names:
                why = f"{item.ref!r} is the ref of an earlier operation"
                problems.append({"where": f"operations.{index}.ref", "why": why})
            names.add(item.ref)
        if problems and first < 0:
            first = index
    if problems:
        error = invalid(problems)
        error.extra["index"] = first
        raise error


def resolve_refs(item: BatchOperation, known: Mapping[str, Digest | None]) -> Operation:
    """The operation with its refs replaced by what they name; None there stands for a failure.

    Raises :class:`~cluster_core.errors.DependencyFailed`.
    """
    changes: dict[str, Digest] = {}
    for field, name in item.refs.items():
        digest = known[name]
        if digest is None:
            raise DependencyFailed(f"the operation that ${name} names failed", ref=name)
        changes[CID_FIELDS[field]] = digest
    return msgspec.structs.replace(item.operation, **changes) if changes else item.operation


def _check_labels(labels: tuple[str, ...], limits: LimitConfig, problems: list[Problem]) -> None:
    if len(labels) > limits.label_count_max:
        why = f"{len(labels)}, at most {limits.label_count_max} are allowed"
        problems.append({"where": "labels", "why": why})
        return
    for index, label in enumerate(labels):
        _check_name(label, f"labels.{index}", limits.label_bytes_max, problems)


def _check_properties(
    properties: dict[str, Value], limits: LimitConfig, problems: list[Problem]
) -> None:
    count = len(properties)
    if count > limits.property_count_max and len(present(properties)) > limits.property_count_max:
        why = f"{count}, at most {limits.property_count_max} are allowed"
        problems.append({"where": "properties", "why": why})
        return
    for name, value in properties.items():
        _check_name(name, "properties", limits.property_name_bytes_max, problems)
        why_not = problem_of(value)
        if why_not is not None:
            problems.append({"where": f"properties.{name}", "why": why_not})


def _check_name(name: object, where: str, bytes_max: int, problems: list[Problem]) -> None:
    why = _problem_of_name(name, bytes_max)
    if why is not None:
        problems.append({"where": where, "why": why})


def _problem_of_name(name: object, bytes_max: int) -> str | None:
    if type(name) is not str:
        return f"a name must be a string, not {type(name).__name__}"
    if not name:
        return "a name must not be empty"
    if "\0" in name:
        return f"{name[:80]!r} has a NUL in it"
    why = problem_of_text(name)
    if why is None and (len(name) if name.isascii() else len(name.encode())) > bytes_max:
        return f"{name[:80]!r} has more than {bytes_max} bytes"
    return why


def _check_digests(operation: Operation, refs: Collection[str], problems: list[Problem]) -> None:
    if isinstance(operation, CreateNode):
        return
    for field, ours in _CHECKED_FIELDS[type(operation)]:
        digest = getattr(operation, ours)
        if digest is not None and len(digest) != _DIGEST_BYTES and field not in refs:
            problems.append({"where": field, "why": "must be a CID"})


def _content(operation: CreateNode | UpdateNode | CreateEdge | UpdateEdge) -> list[Any]:
    """What the request asks for, in a form whose canonical encoding is one for equal requests."""
    if isinstance(operation, CreateNode):
        return [1, sorted(set(operation.labels)), present(operation.properties)]
    if isinstance(operation, CreateEdge):
        ends = [operation.source, operation.target]
        return [4, operation.label, *ends, present(operation.properties)]
    if isinstance(operation, UpdateNode):
        labels = None if operation.labels is None else sorted(set(operation.labels))
        return [2, operation.digest, operation.properties, labels, operation.if_version]
    return [5, operation.digest, operation.properties, operation.if_version]


def fingerprint(operation: Operation) -> bytes:
    """16 bytes that tell one request's content from another's.

    The order of properties and labels and an edge's source hint make no difference.
    """
    if isinstance(operation, DeleteNode):
        content: list[Any] = [3, operation.digest, operation.detach, operation.if_version]
    elif isinstance(operation, DeleteEdge):
        content = [6, operation.digest, operation.if_version]
    else:
        content = _content(operation)
    return sha256(encode_content(content)).digest()[:16]


# Placing


class Creation(msgspec.Struct, frozen=True, gc=False):
    """A creation with its nonce: what it will be called and where it belongs."""

    nonce: bytes
    block: bytes
    digest: Digest
    partition: int


def create(operation: CreateNode | CreateEdge, nonce: bytes, partition_count: int) -> Creation:
    """The creation that ``operation`` becomes with ``nonce``. An edge lives with its source."""
    if isinstance(operation, CreateNode):
        block = first_node_block(operation.labels, operation.properties, nonce)
        digest = digest_of(block)
        return Creation(nonce, block, digest, partition_of(digest, partition_count))
    source = operation.source
    block = first_edge_block(operation.label, source, operation.target, operation.properties, nonce)
    return Creation(nonce, block, digest_of(block), partition_of(source, partition_count))


def home_partition(operation: Operation, nonce: bytes | None, partition_count: int) -> int | None:
    """The partition whose leader evaluates ``operation``; None when all must be asked for the edge.

    ``nonce`` is that of a creation. A wrong ``source`` hint leads to a wrong partition, where the
    edge is not found.
    """
    if isinstance(operation, CreateNode):
        assert nonce is not None
        return create(operation, nonce, partition_count).partition
    if isinstance(operation, CreateEdge):
        return partition_of(operation.source, partition_count)
    if isinstance(operation, UpdateNode | DeleteNode):
        return partition_of(operation.digest, partition_count)
    return None if operation.source is None else partition_of(operation.source, partition_count)


def batch_nonce(principal: str, idempotency_key: str) -> bytes:
    """Names a batch under an idempotency key, beside its operations."""
    nonce: bytes = _seed(principal, idempotency_key, _BATCH).digest()[:NONCE_BYTES]
    return nonce


def entity_nonce(principal: str, idempotency_key: str, index: int, attempt: int) -> bytes:
    """The nonce of a creation under an idempotency key: the same for every retry.

    ``index`` is the operation's in its request, ``attempt`` counts the tries of
    :func:`place_creation`.
    """
    seed = _seed(principal, idempotency_key, index)
    seed.update(attempt.to_bytes(8, "big"))
    nonce: bytes = seed.digest()[:NONCE_BYTES]
    return nonce


def keyed_partition(principal: str, idempotency_key: str, index: int, partition_count: int) -> int:
    """The partition in which a vertex created under an idempotency key must live."""
    return partition_of(_seed(principal, idempotency_key, index).digest(), partition_count)


def place_creation(
    operation: CreateNode | CreateEdge,
    principal: str,
    idempotency_key: str,
    index: int,
    partition_count: int,
    *,
    partition: int | None = None,
) -> Creation:
    """The creation that every retry under this key makes, in the partition that the key chooses
    (or in ``partition``, which must then depend on the key alone as well).

    A retry with another body must meet the dedupe record of the first one, so the partition of a
    vertex has to depend on the key alone: its nonce is the first of a fixed sequence that puts its
    digest there. That takes ``partition_count`` tries on average. The block is encoded once and the
    nonces are put into it: 1.5 µs a try, 0.1 ms with 64 partitions.
    """
    if isinstance(operation, CreateEdge):
        nonce = entity_nonce(principal, idempotency_key, index, 0)
        return create(operation, nonce, partition_count)
    seed = _seed(principal, idempotency_key, index)
    wanted = partition_of(seed.digest(), partition_count) if partition is None else partition
    blank = first_node_block(operation.labels, operation.properties, bytes(NONCE_BYTES))
    head, tail = blank[: NODE_NONCE.start], blank[NODE_NONCE.stop :]
    attempt = 0
    while True:
        hashing = seed.copy()
        hashing.update(attempt.to_bytes(8, "big"))
        nonce = hashing.digest()[:NONCE_BYTES]
        block = head + nonce + tail
        digest = sha256(block).digest()
        if int.from_bytes(digest[:8], "big") % partition_count == wanted:
            return Creation(nonce, block, digest, wanted)
        attempt += 1


def place_among(
    operation: CreateNode, partitions: Collection[int], nonce: bytes, partition_count: int
) -> Creation:
    """The creation of a vertex in one of ``partitions``, with a nonce that begins like ``nonce``.

    Takes ``partition_count / len(partitions)`` tries on average, 1 µs each.
    """
    block = first_node_block(operation.labels, operation.properties, nonce)
    head, tail = block[: NODE_NONCE.start] + nonce[:12], block[NODE_NONCE.stop :]
    attempt = int.from_bytes(nonce[12:], "big")
    while True:
        last = attempt.to_bytes(4, "big")
        block = head + last + tail
        digest = sha256(block).digest()
        partition = int.from_bytes(digest[:8], "big") % partition_count
        if partition in partitions:
            return Creation(nonce[:12] + last, block, digest, partition)
        attempt = (attempt + 1) & 0xFFFFFFFF


def _seed(principal: str, idempotency_key: str, index: int) -> Any:
    """The hash of the three, each with its length before it, open for more."""
    hashing = sha256()
    for part in (principal.encode(), idempotency_key.encode(), index.to_bytes(8, "big")):
        hashing.update(len(part).to_bytes(4, "big") + part)
    return hashing
