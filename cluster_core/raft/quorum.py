"""Quorums: what a set of voters has decided (Raft §5; dissertation §4.3 for joint configurations).

Pure arithmetic over a configuration. Commit indexes, votes, read-index rounds and the leader's own
right to lead are all counted here and nowhere else, so there is one place where "majority" is
defined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from cluster_core.types import ReplicaId

__all__ = ["UNKNOWN", "Configuration", "VoteResult"]


class VoteResult(Enum):
    """How a vote stands."""

    PENDING = "pending"
    WON = "won"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Configuration:
    """Who belongs to a group. All tuples are sorted and free of duplicates.

    While a change is under way (dissertation §4.3) ``outgoing`` holds the voters of the old
    configuration, and every decision needs a majority of both; else it is empty. Learners receive
    everything and decide nothing; one that is a voter of the outgoing half is being demoted.

    Without any member it is :data:`UNKNOWN`: what a replica that joins has before its log tells.
    """

    voters: tuple[ReplicaId, ...]
    outgoing: tuple[ReplicaId, ...] = ()
    learners: tuple[ReplicaId, ...] = ()

    def __post_init__(self) -> None:
        assert self.voters or not (self.outgoing or self.learners), "a group has a voter"
        for ids in (self.voters, self.outgoing, self.learners):
            assert list(ids) == sorted(set(ids)), "sorted, each once"
        assert 0 not in self.members, "0 means nobody"
        assert not set(self.learners) & set(self.voters), "a voter is no learner"

    @classmethod
    def of(cls, voters: Iterable[ReplicaId], learners: Iterable[ReplicaId] = ()) -> Configuration:
        """The configuration with these members, in any order."""
        voters = set(voters)
        assert voters, "a group has at least one voter"
        return cls(tuple(sorted(set(voters))), (), tuple(sorted(set(learners))))

    @property
    def is_joint(self) -> bool:
        return bool(self.outgoing)

    @property
    def members(self) -> tuple[ReplicaId, ...]:
        """Everybody, sorted."""
        return tuple(sorted({*self.voters, *self.outgoing, *self.learners}))

    def is_voter(self, replica: ReplicaId) -> bool:
        return replica in self.voters or replica in self.outgoing

    def committed(self, acked: Callable[[ReplicaId], int]) -> int:
        """The highest number that a quorum has acknowledged; ``acked`` gives each voter's own."""
        number = _majority_number(self.voters, acked)
        if self.outgoing:
            number = min(number, _majority_number(self.outgoing, acked))
        return number

    def vote_result(self, votes: Mapping[ReplicaId, bool]) -> VoteResult:
        """How the vote stands; voters that are not in ``votes`` have not answered yet."""
        result = _majority_result(self.voters, votes)
        if not self.outgoing or result is VoteResult.LOST:
            return result
        other = _majority_result(self.outgoing, votes)
        return other if result is VoteResult.WON or other is VoteResult.LOST else result


UNKNOWN: Final = Configuration(())
"""Nobody decides anything by it, and who has it never campaigns."""


def _majority_number(voters: tuple[ReplicaId, ...], acked: Callable[[ReplicaId], int]) -> int:
    numbers = sorted([acked(voter) for voter in voters])
    # A majority has acknowledged everything up to the lower median: of 3 the second, of 4 the
    # second lowest (three are at or above it).
    return numbers[(len(numbers) - 1) // 2]


def _majority_result(voters: tuple[ReplicaId, ...], votes: Mapping[ReplicaId, bool]) -> VoteResult:
    granted = rejected = 0
    for voter in voters:
        vote = votes.get(voter)
        if vote is True:
            granted += 1
        elif vote is False:
            rejected += 1
    majority = len(voters) // 2 + 1
    if granted >= majority:
        return VoteResult.WON
    if len(voters) - rejected < majority:
        return VoteResult.LOST
    return VoteResult.PENDING
