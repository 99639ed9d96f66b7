"""evaluate(part, view) -> Outcome: what a part of an operation changes in its partition.

Pure: it reads the view, returns mutations, and touches nothing. It runs once, at the partition's
leader, under the locks of :func:`~cluster_core.graph.parts.locks_of`. Every outcome is a function
of the part and of what the view shows under those locks; commit timestamps are not needed, since a
record says "when it was written" by leaving its time out.

Measured without the view's own work: a new vertex 1.3 µs (after 4.5 µs of decomposition, 3.5 of
them for its block and hash), each half of a new edge 3 µs, an update 12 µs.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple, NoReturn

from cluster_core.config import LimitConfig
from cluster_core.errors import Conflict, HasEdges, NotFound, PreconditionFailed
from cluster_core.graph.blocks import (
    decode_block,
    digest_of,
    encode_content,
    linked_digest,
    next_block,
)
from cluster_core.graph.cid import cid_text
from cluster_core.graph.decompose import adjacency_digest, decompose, read_adjacency
from cluster_core.graph.indexes import (
    PRESENT,
    content_labels,
    entry_changes,
    entry_keys,
)
from cluster_core.graph.operations import check_size
from cluster_core.graph.parts import (
    NOT_YET,
    Answer,
    Change,
    ChangeEdge,
    ChangeVertex,
    DropEdge,
    DropEdgeIn,
    DropVertex,
    HoldEdges,
    LockKind,
    OperationName,
    Outcome,
    Part,
    PutEdge,
    PutEdgeIn,
    PutVertex,
    View,
    locks_of,
)
from cluster_core.graph.records import (
    EDGE,
    VERTEX,
    encode_record,
    record_block,
    record_created_at,
    record_kind,
    record_version,
)
from cluster_core.graph.values import Value, invalid
from cluster_core.storage import keys
from cluster_core.types import Digest, Timestamp

__all__ = ["LockKind", "Outcome", "Part", "View", "decompose", "evaluate", "locks_of"]

_DEFAULT_LIMITS: Final = LimitConfig()
_TOMBSTONE: Final = b""
_NAMES: Final = {VERTEX: "node", EDGE: "edge"}
_WITH_ARTICLE: Final = {VERTEX: "a node", EDGE: "an edge"}


def evaluate(part: Part, view: View, limits: LimitConfig = _DEFAULT_LIMITS) -> Outcome:
    """What ``part`` does to the partition that ``view`` shows.

    Raises NotFound, PreconditionFailed (with the ``version`` that the entity has), HasEdges,
    InvalidRequest or TooLarge (an update that makes the entity too large), and Conflict when the
    graph is no longer as the decomposition saw it: decompose anew.
    """
    match part:
        case PutVertex():
            return _put_vertex(part, view)
        case PutEdge():
            return _put_edge(part, view)
        case PutEdgeIn():
            return _put_edge_in(part, view)
        case ChangeVertex():
            return _change_vertex(part, view, limits)
        case ChangeEdge():
            return _change_edge(part, view, limits)
        case DropVertex():
            return _drop_vertex(part, view, limits)
        case DropEdge():
            return _drop_edge(part, view)
        case DropEdgeIn():
            return _drop_edge_in(part, view)
        case HoldEdges():
            return Outcome(locks=locks_of(part), writes=[])


# Creations


def _put_vertex(part: PutVertex, view: View) -> Outcome:
    digest = part.digest
    key = keys.entity(view.group, digest)
    if part.check:
        earlier = view.newest(key)
        if earlier is not None:
            return _repeated(part, earlier)
    writes = [(key, encode_record(VERTEX, digest, 0, part.block))]
    if view.indexes:
        writes += _new_entries(view, VERTEX, digest, part.labels, part.block)
    else:
        group = view.group
        for label in part.labels:
            writes.append((keys.labelled(group, VERTEX, label, digest), PRESENT))
    return Outcome(
        locks=locks_of(part),
        writes=writes,
        change=Change("create_node", digest, digest, part.labels),
        answer=Answer(digest, digest, True),
    )


def _put_edge(part: PutEdge, view: View) -> Outcome:
    digest, group = part.digest, view.group
    key = keys.entity(group, digest)
    if part.check:
        earlier = view.newest(key)
        if earlier is not None:
            return _repeated(part, earlier)
    _require_vertex(view, part.source, "source")
    return Outcome(
        locks=locks_of(part),
        writes=[
            (key, encode_record(EDGE, digest, 0, part.block)),
            (keys.out_edge(group, part.source, part.label, digest), part.target),
            *_new_entries(view, EDGE, digest, (part.label,), part.block),
        ],
        change=Change("create_edge", digest, digest, (part.label,)),
        answer=Answer(digest, digest, True),
    )


def _new_entries(
    view: View, kind: int, digest: Digest, labels: tuple[str, ...], block: bytes
) -> list[tuple[bytes, bytes]]:
    """The index entries of a new entity. Its properties are read only where an index wants them."""
    indexes = view.indexes
    wanted = bool(indexes) and any(label in indexes for label in labels)
    properties = decode_block(block)["properties"] if wanted else {}
    found = entry_keys(view.group, kind, digest, labels, properties, indexes if wanted else {})
    return [(key, PRESENT) for key in found]


def _put_edge_in(part: PutEdgeIn, view: View) -> Outcome:
    key = keys.in_edge(view.group, part.target, part.label, part.digest)
    if part.check and view.newest(key) is not None:
        return Outcome(locks=locks_of(part), repeated=True)
    _require_vertex(view, part.target, "target")
    return Outcome(locks=locks_of(part), writes=[(key, part.source)])


def _repeated(part: PutVertex | PutEdge, earlier: tuple[Timestamp, bytes]) -> Outcome:
    """The first answer once more. Of a deleted entity only the time of its deletion is known."""
    timestamp, record = earlier
    created_at = record_created_at(record, timestamp) if record else timestamp
    return Outcome(
        locks=locks_of(part),
        answer=Answer(part.digest, part.digest, True, created_at),
        repeated=True,
    )


def _require_vertex(view: View, digest: Digest, end: str) -> None:
    found = view.newest(keys.entity(view.group, digest))
    if found is None or not found[1] or record_kind(found[1]) != VERTEX:
        cid = cid_text(digest)
        raise NotFound(f"there is no node {cid}, the {end} of the edge", cid=cid, end=end)


# Updates


class _Live(NamedTuple):
    """The newest version of an entity that lives.

    A transaction makes at most one new version of an entity. So where an earlier part of the same
    transaction changed it already, ``version`` is still the one before the transaction: the new
    version's predecessor, and what ``if_version`` is compared with. Of an entity that the
    transaction itself creates it is the first version.
    """

    timestamp: Timestamp
    record: bytes
    version: Digest


def _change_vertex(part: ChangeVertex, view: View, limits: LimitConfig) -> Outcome:
    live = _require_live(view, VERTEX, part.digest, part.if_version)
    content = decode_block(record_block(live.record))
    labels = content["labels"] if part.labels is None else sorted(set(part.labels))
    if labels == content["labels"] and _changes_nothing(content["properties"], part.properties):
        return _unchanged(part, live)
    before = _entries_of(view, VERTEX, part.digest, content)
    content["labels"] = labels
    _merge(content["properties"], part.properties, limits)
    return _changed(part, view, live, before, content, "update_node", limits)


def _change_edge(part: ChangeEdge, view: View, limits: LimitConfig) -> Outcome:
    live = _require_live(view, EDGE, part.digest, part.if_version)
    content = decode_block(record_block(live.record))
    if _changes_nothing(content["properties"], part.properties):
        return _unchanged(part, live)
    before = _entries_of(view, EDGE, part.digest, content)
    _merge(content["properties"], part.properties, limits)
    return _changed(part, view, live, before, content, "update_edge", limits)


def _entries_of(view: View, kind: int, digest: Digest, content: dict[str, Any]) -> list[bytes]:
    labels, properties = content_labels(content), content["properties"]
    return entry_keys(view.group, kind, digest, labels, properties, view.indexes)


def _changes_nothing(properties: dict[str, Value], changes: dict[str, Value]) -> bool:
    """Compared as blocks are, since Python takes 1, 1.0 and True for equal."""
    before = [properties.get(name) for name in changes]
    return encode_content(before) == encode_content(list(changes.values()))


def _merge(properties: dict[str, Value], changes: dict[str, Value], limits: LimitConfig) -> None:
    for name, value in changes.items():
        if value is None:
            properties.pop(name, None)
        else:
            properties[name] = value
    if len(properties) > limits.property_count_max:
        why = f"would be {len(properties)}, at most {limits.property_count_max} are allowed"
        raise invalid([{"where": "properties", "why": why}])


def _unchanged(part: ChangeVertex | ChangeEdge, live: _Live) -> Outcome:
    answer = Answer(part.digest, live.version, False, live.timestamp)
    return Outcome(locks=locks_of(part), answer=answer)


def _changed(
    part: ChangeVertex | ChangeEdge,
    view: View,
    live: _Live,
    before: list[bytes],
    content: dict[str, Any],
    op: OperationName,
    limits: LimitConfig,
) -> Outcome:
    """``before`` are the index entries of the version that ``content`` replaces."""
    digest, record = part.digest, live.record
    if live.timestamp == NOT_YET and live.version == digest and "prev" not in content:
        why = "is created by this transaction; say its ref to change it"
        raise invalid([{"where": "cid", "why": why}])
    labels = tuple(content_labels(content))
    block = next_block(content, digest, live.version)
    check_size(block, limits)
    version = digest_of(block)
    created_at = record_created_at(record, live.timestamp)
    kind = record_kind(record)
    after = _entries_of(view, kind, digest, content)
    return Outcome(
        locks=locks_of(part),
        writes=[
            (keys.entity(view.group, digest), encode_record(kind, version, created_at, block)),
            *entry_changes(before, after),
        ],
        pointers=[(keys.version(view.group, version), digest)],
        change=Change(op, digest, version, labels),
        answer=Answer(digest, version, False),
    )


# Deletions


def _drop_vertex(part: DropVertex, view: View, limits: LimitConfig) -> Outcome:
    digest = part.digest
    live = _require_live(view, VERTEX, digest, part.if_version)
    if part.adjacency is None:
        if not part.chunked:
            _require_no_edges(view, digest)
    else:
        bound = max(limits.detach_step_edges_max, limits.transaction_detach_edges_max)
        seen = read_adjacency(view, digest, bound)
        if adjacency_digest(*seen) != part.adjacency:
            _conflict(f"the edges of node {cid_text(digest)} changed meanwhile")
    content = decode_block(record_block(live.record))
    return Outcome(
        locks=locks_of(part),
        writes=[
            (keys.entity(view.group, digest), _TOMBSTONE),
            *entry_changes(_entries_of(view, VERTEX, digest, content), ()),
        ],
        change=Change("delete_node", digest, None, tuple(content["labels"])),
        answer=Answer(digest, live.version, False),
    )


def _require_no_edges(view: View, digest: Digest) -> None:
    prefixes = (keys.out_prefix(view.group, digest), keys.in_prefix(view.group, digest))
    if any(view.scan_newest(prefix, 1) for prefix in prefixes):
        cid = cid_text(digest)
        raise HasEdges(f"node {cid} has edges; detach deletes them with it", cid=cid)


def _drop_edge(part: DropEdge, view: View) -> Outcome:
    digest, group = part.digest, view.group
    try:
        live = _require_live(view, EDGE, digest, part.if_version)
    except NotFound:
        if part.detached:
            _conflict(f"edge {cid_text(digest)} was deleted meanwhile")
        raise
    content = decode_block(record_block(live.record))
    ends = linked_digest(content["source"]), linked_digest(content["target"])
    if (part.label, part.source, part.target) != (content["label"], *ends):
        _conflict(f"edge {cid_text(digest)} was created meanwhile")
    return Outcome(
        locks=locks_of(part),
        writes=[
            (keys.entity(group, digest), _TOMBSTONE),
            (keys.out_edge(group, part.source, part.label, digest), _TOMBSTONE),
            *entry_changes(_entries_of(view, EDGE, digest, content), ()),
        ],
        change=Change("delete_edge", digest, None, (part.label,)),
        answer=None if part.detached else Answer(digest, live.version, False),
    )


def _drop_edge_in(part: DropEdgeIn, view: View) -> Outcome:
    """Whether the edge is there is decided by the half that has its record."""
    key = keys.in_edge(view.group, part.target, part.label, part.digest)
    return Outcome(locks=locks_of(part), writes=[(key, _TOMBSTONE)])


# What must hold


def _require_live(view: View, kind: int, digest: Digest, if_version: Digest | None) -> _Live:
    found = view.newest(keys.entity(view.group, digest))
    if found is None or not found[1]:
        cid = cid_text(digest)
        raise NotFound(f"there is no {_NAMES[kind]} {cid}", cid=cid)
    timestamp, record = found
    if record_kind(record) != kind:
        cid, other = cid_text(digest), _WITH_ARTICLE[record_kind(record)]
        raise NotFound(f"{cid} is {other}, not {_WITH_ARTICLE[kind]}", cid=cid)
    version = record_version(record)
    if timestamp == NOT_YET:
        prev = decode_block(record_block(record)).get("prev")
        version = version if prev is None else linked_digest(prev)
    if if_version is not None and if_version != version:
        cid, now = cid_text(digest), cid_text(version)
        raise PreconditionFailed(f"{_NAMES[kind]} {cid} has version {now}", cid=cid, version=now)
    return _Live(timestamp, record, version)


def _conflict(detail: str) -> NoReturn:
    raise Conflict(detail)
