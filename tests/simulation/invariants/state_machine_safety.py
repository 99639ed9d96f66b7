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
        self.committed: dict[GroupId, dict[int, tuple[int, bytes, str]]] = {}
        """Per group and index: term, entry, and who applied it first. An index that every replica
        truncated before anybody looked is missing."""
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
        committed = self.committed.setdefault(view.group, {})
        for index in range(seen + 1, view.applied + 1):
            entry = view.entry(index)
            if entry is None:
                assert index < view.first_kept, f"{view.node}: applied {index} without having it"
                continue
            mine = (int.from_bytes(entry[:_TERM_BYTES], "big"), entry, view.node)
            _, first, who = committed.setdefault(index, mine)
            assert entry == first, (
                f"group {view.group}, index {index}: {who} and {view.node} applied others"
            )
        self._seen[view.life] = view.applied

    def _check_complete(self, leader: ReplicaView) -> None:
        committed = self.committed.get(leader.group, {})
        for index in sorted(committed, reverse=True):
            term, entry, who = committed[index]
            if term >= leader.term or index < leader.first_kept:
                continue
            assert leader.entry(index) == entry, (
                f"group {leader.group}: {leader.node} leads term {leader.term} without entry "
                f"{index} of term {term}, which {who} applied"
            )
            return  # log matching vouches for what lies before
