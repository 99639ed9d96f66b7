"""Election safety: at most one leader in a term (Raft, figure 3)."""

from __future__ import annotations

from cluster_core.types import GroupId
from tests.simulation.invariants.view import ReplicaView

__all__ = ["ElectionSafety"]


class ElectionSafety:
    def __init__(self) -> None:
        self.leaders: dict[tuple[GroupId, int], str] = {}

    def check(self, replicas: list[ReplicaView]) -> None:
        for view in replicas:
            if view.replica.is_leader:
                first = self.leaders.setdefault((view.group, view.term), view.node)
                assert first == view.node, (
                    f"group {view.group}, term {view.term}: led by {first} and by {view.node}"
                )
