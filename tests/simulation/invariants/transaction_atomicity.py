"""Transactions over partitions happen wholly or not at all.

Seen at rest: no intent is left; what a replica knows of transaction records without looking is what
it has stored (one that it did not know would never be finished); an edge has its record, its entry
at the source and its entry at the target, or none of them; and both its ends exist.
"""

from __future__ import annotations

from cluster_core.storage import keys, mvcc
from cluster_core.types import Digest, GroupId
from tests.simulation.invariants.view import ReplicaView

__all__ = ["TransactionAtomicity"]


class TransactionAtomicity:
    """Looked at when a run has come to rest, so that any replica speaks for its group."""

    def check(self, replicas: list[ReplicaView]) -> None:
        groups: dict[GroupId, ReplicaView] = {}
        for view in replicas:
            if view.group:
                groups.setdefault(view.group, view)
                left = [key[3:].hex() for key, _ in view.table(keys.INTENT)]
                assert not left, f"{view.node}, group {view.group}: intents are left: {left}"
                stored = dict(view.table(keys.RECORD))
                assert view.replica.records == stored, f"{view.node}, group {view.group}: records"
        self._check_edges(list(groups.values()))

    def _check_edges(self, groups: list[ReplicaView]) -> None:
        entities = {digest for view in groups for digest in _alive(view)}
        outgoing = _adjacency(groups, keys.OUT)
        incoming = _adjacency(groups, keys.IN)
        halves = sorted(outgoing.keys() ^ incoming.keys())
        assert not halves, f"half an edge: {[edge.hex() for edge in halves]}"
        for edge, (source, target) in outgoing.items():
            assert incoming[edge] == (target, source), f"edge {edge.hex()} has other ends"
            missing = sorted({edge, source, target} - entities)
            assert not missing, f"edge {edge.hex()} without {[one.hex() for one in missing]}"


def _bounds(group: GroupId, table: bytes) -> tuple[bytes, bytes]:
    prefix = keys.table_prefix(group, table)
    return prefix, keys.after(prefix)


def _alive(view: ReplicaView) -> list[Digest]:
    pairs = mvcc.scan_newest(view.engine, *_bounds(view.group, keys.ENTITY))
    return [user_key[3:] for user_key, _, _ in pairs]


def _adjacency(groups: list[ReplicaView], table: bytes) -> dict[Digest, tuple[Digest, Digest]]:
    """Edge to (the vertex that holds the entry, the vertex at its other end)."""
    found: dict[Digest, tuple[Digest, Digest]] = {}
    for view in groups:
        for user_key, _, other in mvcc.scan_newest(view.engine, *_bounds(view.group, table)):
            _, edge = keys.split_adjacency(user_key)
            assert edge not in found, f"{view.node}: edge {edge.hex()} twice"
            found[edge] = (user_key[3:35], other)
    return found
