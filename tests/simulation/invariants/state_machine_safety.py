"""State machine safety: no two replicas apply different entries at one index (figure 3).

With it leader completeness: an entry that was applied anywhere is in the log of every leader of a
later term.
"""

from __future__ import annotations

from cluster_core.types import GroupId
from tests.simulation.invariants.view import ReplicaView

__all__ = ["StateMachineSafety"]

_TERM_BYTES = 8


class StateMachineSafety:
    def __init__(self) -> None:
        self.committed: dict[GroupId, list[tuple[int, bytes, str]]] = {}
        """Per group, from index 1: term, entry, and who applied it first."""
        self._seen: dict[tuple[str, int, GroupId], int] = {}
        self._leaders: set[tuple[GroupId, int]] = set()

    def check(self, replicas: list[ReplicaView]) -> None:
        for view in replicas:
            self._follow(view)
        for view in replicas:
            if view.leads and (view.group, view.term) not in self._leaders:
                self._leaders.add((view.group, view.term))
                self._check_complete(view)

    def _follow(self, view: ReplicaView) -> None:
        seen = self._seen.get(view.life, 0)
        assert view.applied >= seen, f"{view.node}: the applied index went back"
        if view.applied == seen:
            return
        committed = self.committed.setdefault(view.group, [])
        for index in range(seen + 1, view.applied + 1):
            entry = view.entry(index)
            assert entry is not None, f"{view.node}: applied {index}, which is not in its log"
            if index > len(committed):
                assert index == len(committed) + 1
                committed.append((int.from_bytes(entry[:_TERM_BYTES], "big"), entry, view.node))
                continue
            _, first, who = committed[index - 1]
            assert entry == first, (
                f"group {view.group}, index {index}: {who} and {view.node} applied others"
            )
        self._seen[view.life] = view.applied

    def _check_complete(self, leader: ReplicaView) -> None:
        committed = self.committed.get(leader.group, [])
        for index in range(len(committed), 0, -1):
            term, entry, who = committed[index - 1]
            if term >= leader.term:
                continue
            assert leader.entry(index) == entry, (
                f"group {leader.group}: {leader.node} leads term {leader.term} without entry "
                f"{index} of term {term}, which {who} applied"
            )
            return  # log matching vouches for what lies before
