"""Replicas that have applied the same log keep the same data, byte for byte.

What lies below their common horizon is compared too, as far as it is to be kept: how much of the
rest each has collected is its own affair.
"""

from __future__ import annotations

from cluster_core.replication.history import kept_pairs
from cluster_core.types import GroupId
from tests.simulation.invariants.view import ReplicaView

__all__ = ["ReplicaEquality"]


class ReplicaEquality:
    """Costly: a scan of everything. Looked at when a run has come to rest."""

    def check(self, replicas: list[ReplicaView]) -> None:
        first: dict[tuple[GroupId, int], ReplicaView] = {}
        for view in replicas:
            other = first.setdefault((view.group, view.applied), view)
            if other is view:
                continue
            mine, theirs = _kept(view), _kept(other)
            different = sorted(
                key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key)
            )
            assert not different, (
                f"group {view.group}, applied {view.applied}: {view.node} and {other.node} "
                f"differ in {len(different)} keys, first {different[0][2:].hex()}"
            )


def _kept(view: ReplicaView) -> dict[bytes, bytes]:
    return dict(kept_pairs(view.engine, view.group, view.replica.horizon))
