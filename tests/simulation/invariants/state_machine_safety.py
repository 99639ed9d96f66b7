"""State machine safety: no two replicas apply different entries at one index (Raft, figure 3)."""

from __future__ import annotations

from cluster_core.types import GroupId
from tests.simulation.invariants.view import Life, ReplicaView, term_of

__all__ = ["StateMachineSafety"]


class StateMachineSafety:
    def __init__(self) -> None:
        self.committed: dict[GroupId, dict[int, tuple[int, bytes, str]]] = {}
        """Per group and index: term, entry, and who applied it first. An index that every replica
        truncated before anybody looked is missing."""
        self._seen: dict[Life, int] = {}

    def check(self, replicas: list[ReplicaView]) -> None:
        for view in replicas:
            self._follow(view)

    def _follow(self, view: ReplicaView) -> None:
        seen = self._seen.get(view.life, 0)
        assert view.applied >= seen, f"{view.node}: the applied index went back"
        if view.applied == seen:
            return
        committed = self.committed.setdefault(view.group, {})
        for index in range(seen + 1, view.applied + 1):
            entry = view.entry(index)
            if entry is None:
                assert index < view.first_kept, f"{view.node}: applied {index} without having it"
                continue
            mine = (term_of(entry), entry, view.node)
            _, first, who = committed.setdefault(index, mine)
            assert entry == first, (
                f"group {view.group}, index {index}: {who} and {view.node} applied others"
            )
        self._seen[view.life] = view.applied
