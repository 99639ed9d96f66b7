"""The configurations of a group are a chain: every quorum of one meets every quorum of the next
(Raft §6), none has fewer voters than the group began with, and no replica id comes back once it was
let go.

Followed along the committed entries, so it holds for every log that anybody ever applies.
"""

from __future__ import annotations

from itertools import combinations

from cluster_core.node.table import partition_table
from cluster_core.raft import Configuration, VoteResult
from cluster_core.types import GroupId, ReplicaId
from tests.simulation.invariants.view import ReplicaView, configuration_of

__all__ = ["ConfigurationChain", "quorums_meet"]


class ConfigurationChain:
    """``current`` is the newest configuration of each group that anybody applied, and
    ``changes`` counts how often one followed another."""

    def __init__(self) -> None:
        self.current: dict[GroupId, Configuration] = {}
        self.changes = 0
        self._voters_min: dict[GroupId, int] = {}
        self._ever: dict[GroupId, set[ReplicaId]] = {}
        self._followed: dict[GroupId, int] = {}
        self._changed: set[GroupId] = set()

    def check(self, replicas: list[ReplicaView]) -> None:
        for view in replicas:
            if view.group not in self.current:
                self._begin(view)
            self._follow(view)

    def changed(self, group: GroupId) -> bool:
        """Whether the group has another configuration than it was founded with."""
        return group in self._changed

    def _begin(self, view: ReplicaView) -> None:
        table = partition_table(view.founded.founding)[view.group]
        self.current[view.group] = Configuration.of(table.voters, table.learners)
        self._voters_min[view.group] = len(table.voters)
        self._ever[view.group] = set(table.members)

    def _follow(self, view: ReplicaView) -> None:
        for index in range(self._followed.get(view.group, 0) + 1, view.applied + 1):
            entry = view.entry(index)
            if entry is None:
                assert index < view.first_kept
                return  # a snapshot brought it; somebody else has the entries
            self._followed[view.group] = index
            configuration = configuration_of(entry)
            if configuration is not None:
                self._extend(view.group, index, configuration)

    def _extend(self, group: GroupId, index: int, after: Configuration) -> None:
        before, ever = self.current[group], self._ever[group]
        where = f"group {group}, index {index}: {before} and then {after}"
        assert quorums_meet(before, after), f"{where}, whose quorums need not meet"
        assert len(after.voters) >= self._voters_min[group], f"{where}, with too few voters"
        again = (set(after.members) - set(before.members)) & ever
        assert not again, f"{where}, where {sorted(again)} came back"
        ever.update(after.members)
        self.current[group] = after
        self._changed.add(group)
        self.changes += 1


def quorums_meet(one: Configuration, other: Configuration) -> bool:
    """Whether no quorum of the one is disjoint from some quorum of the other, by trying all."""
    voters = sorted({*one.voters, *one.outgoing, *other.voters, *other.outgoing})
    for size in range(len(voters) + 1):
        for chosen in combinations(voters, size):
            rest = [voter for voter in voters if voter not in chosen]
            if _decides(one, chosen) and _decides(other, rest):
                return False
    return True


def _decides(configuration: Configuration, voters: tuple[ReplicaId, ...] | list[ReplicaId]) -> bool:
    votes = {voter: voter in voters for voter in configuration.members}
    return configuration.vote_result(votes) is VoteResult.WON
