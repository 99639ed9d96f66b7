"""What an index says is what a scan says.

Seen at rest, of each replica: the label index has an entry for each label of each entity and no
other; so has a property index, one entry for each entity with its label, in every snapshot since
the log said that it was READY; while it is being built it has no wrong entry; once it is GONE, it
has none.
"""

from __future__ import annotations

from typing import Any

from cluster_core.graph.blocks import decode_block
from cluster_core.graph.indexes import (
    IndexDefinition,
    IndexState,
    content_labels,
    decode_definition,
    value_key,
)
from cluster_core.graph.records import record_block, record_kind
from cluster_core.ports import DATA
from cluster_core.storage import keys, mvcc
from cluster_core.types import Digest, Timestamp
from tests.simulation.invariants.view import ReplicaView

__all__ = ["IndexConsistency"]

Content = dict[Digest, tuple[int, dict[str, Any]]]
"""Kind and content of each entity of a partition at one time."""


class IndexConsistency:
    """Costly: looked at when a run has come to rest. ``checked`` counts complete indexes seen."""

    def __init__(self) -> None:
        self.checked = 0

    def check(self, replicas: list[ReplicaView]) -> None:
        for view in replicas:
            if not view.group:
                continue
            now = view.clock
            content = _content(view, now)
            where = f"{view.node}, group {view.group}"
            _same(where, "labels", _labels(view, now), _labels_wanted(content))
            for _, value in view.table(keys.INDEX):
                self._check_index(view, decode_definition(value), now, content, where)

    def _check_index(
        self,
        view: ReplicaView,
        definition: IndexDefinition,
        now: Timestamp,
        content: Content,
        where: str,
    ) -> None:
        name = f"{definition.label}.{definition.property} ({definition.id})"
        prefix = keys.index_prefix(view.group, definition.id)
        if definition.state is IndexState.GONE:
            left = list(view.engine.scan(DATA, prefix, keys.after(prefix)))
            assert not left, f"{where}: {len(left)} entries of {name}, which is gone"
            return
        if definition.state is IndexState.DROPPING:
            return
        wanted = _values_wanted(content, definition)
        found = _values(view, definition, now)
        if definition.state is IndexState.BUILDING:
            wrong = found - wanted
            assert not wrong, f"{where}: {name}, being built, has wrong entries {_some(wrong)}"
            return
        self.checked += 1
        _same(where, name, found, wanted)
        horizon = view.replica.horizon
        for at in {max(definition.since, horizon), max((definition.since + now) // 2, horizon)}:
            past = _values_wanted(_content(view, at), definition)
            _same(where, f"{name} at {at}", _values(view, definition, at), past)


def _content(view: ReplicaView, at: Timestamp) -> Content:
    prefix = keys.table_prefix(view.group, keys.ENTITY)
    return {
        user_key[3:]: (record_kind(record), decode_block(record_block(record)))
        for user_key, _, record in mvcc.scan_at(view.engine, prefix, keys.after(prefix), at)
    }


def _labels(view: ReplicaView, at: Timestamp) -> set[bytes]:
    """Kind, label, NUL, digest."""
    prefix = keys.table_prefix(view.group, keys.LABEL)
    found = mvcc.scan_at(view.engine, prefix, keys.after(prefix), at)
    return {user_key[len(prefix) :] for user_key, _, _ in found}


def _labels_wanted(content: Content) -> set[bytes]:
    return {
        bytes((kind,)) + label.encode() + b"\0" + digest
        for digest, (kind, each) in content.items()
        for label in content_labels(each)
    }


def _values(view: ReplicaView, definition: IndexDefinition, at: Timestamp) -> set[bytes]:
    """Kind, value, digest."""
    prefix = keys.index_prefix(view.group, definition.id)
    found = mvcc.scan_at(view.engine, prefix, keys.after(prefix), at)
    return {user_key[len(prefix) :] for user_key, _, _ in found}


def _values_wanted(content: Content, definition: IndexDefinition) -> set[bytes]:
    return {
        bytes((kind,)) + value_key(each["properties"].get(definition.property)) + digest
        for digest, (kind, each) in content.items()
        if definition.label in content_labels(each)
    }


def _same(where: str, what: str, found: set[bytes], wanted: set[bytes]) -> None:
    missing, wrong = wanted - found, found - wanted
    assert not missing, f"{where}: {what} lacks {_some(missing)}"
    assert not wrong, f"{where}: {what} has too much: {_some(wrong)}"


def _some(entries: set[bytes]) -> list[str]:
    return [entry.hex() for entry in sorted(entries)[:5]]
