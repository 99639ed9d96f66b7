"""Leader completeness: whoever leads a term has every entry that was committed in an earlier one
(Raft, figure 3)."""

from __future__ import annotations

from cluster_core.types import GroupId
from tests.simulation.invariants.state_machine_safety import StateMachineSafety
from tests.simulation.invariants.view import ReplicaView

__all__ = ["LeaderCompleteness"]


class LeaderCompleteness:
    """``safety`` knows what was applied, so committed. Each leader is looked at once a term."""

    def __init__(self, safety: StateMachineSafety) -> None:
        self._safety = safety
        self._leaders: set[tuple[GroupId, int]] = set()

    def check(self, replicas: list[ReplicaView]) -> None:
        for view in replicas:
            if view.leads and (view.group, view.term) not in self._leaders:
                self._leaders.add((view.group, view.term))
                self._check_complete(view)

    def _check_complete(self, leader: ReplicaView) -> None:
        committed = self._safety.committed.get(leader.group, {})
        for index in sorted(committed, reverse=True):
            term, entry, who = committed[index]
            if term >= leader.term or index < leader.first_kept:
                continue
            assert leader.entry(index) == entry, (
                f"group {leader.group}: {leader.node} leads term {leader.term} without entry "
                f"{index} of term {term}, which {who} applied"
            )
            return  # log matching vouches for what lies before
