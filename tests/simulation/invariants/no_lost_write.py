"""No acknowledged write is lost: every replica has it once all have caught up.

Seen by its change, as long as that is kept.
"""

from __future__ import annotations

from cluster_core.graph.operations import OperationResult
from cluster_core.ports import DATA
from cluster_core.storage import keys
from cluster_core.types import group_of
from tests.simulation.invariants.view import ReplicaView

__all__ = ["NoLostWrite"]


class NoLostWrite:
    """Looked at when a run has come to rest. ``acknowledged``: the answers that clients got."""

    def __init__(self, acknowledged: list[OperationResult]):
        self._acknowledged = acknowledged

    def check(self, replicas: list[ReplicaView]) -> None:
        for result in self._acknowledged:
            group = group_of(result.partition)
            key = keys.change(group, result.timestamp, result.digest)
            for view in replicas:
                if view.group == group and result.timestamp > view.replica.horizon:
                    assert view.engine.get(DATA, key) is not None, (
                        f"{view.node}, group {group}: the acknowledged write of "
                        f"{result.digest.hex()} at {result.timestamp} is not there"
                    )
