"""The members of a group as its leader sees them, and what they add up to.

Who is a member is what the configuration says that counts; whatever is known of one that stays a
member outlives a change.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cluster_core.config import RaftConfig
from cluster_core.raft.progress import Inflights, Progress, ProgressState
from cluster_core.raft.quorum import UNKNOWN, Configuration, VoteResult
from cluster_core.types import ReplicaId

__all__ = ["PROMOTION_LAG_MAX", "Peers"]

PROMOTION_LAG_MAX: Final = 1_000
"""Entries that a learner may lack when it is promoted: a replica at this distance is caught up
within much less than an election time-out, so the group cannot stand still for it (D §4.2.1)."""


class Peers:
    """See the head of this module. Means something only while we lead, but for ``configuration``.

    ``others`` are all members but ourselves, in the order of their ids. ``own`` is always there,
    but counts only where the configuration makes us a voter.
    """

    __slots__ = ("_config", "_match_of", "_of", "_round_of", "configuration", "others", "own")

    def __init__(self, replica: ReplicaId, config: RaftConfig) -> None:
        self._config = config
        self._of: dict[ReplicaId, Progress] = {}
        of = self._of
        self._match_of: Callable[[ReplicaId], int] = lambda member: of[member].match
        self._round_of: Callable[[ReplicaId], int] = lambda member: of[member].round_acked
        self.own = self._new(replica)
        self.others: list[Progress] = []
        self.configuration = UNKNOWN

    def _new(self, replica: ReplicaId) -> Progress:
        config = self._config
        return Progress(replica, Inflights(config.inflight_messages_max, config.inflight_bytes_max))

    def __contains__(self, replica: ReplicaId) -> bool:
        return replica in self._of

    def __getitem__(self, replica: ReplicaId) -> Progress:
        return self._of[replica]

    def find(self, replica: ReplicaId) -> Progress | None:
        """What is known of another member; None of ourselves and of strangers."""
        return self._of.get(replica) if replica != self.own.replica else None

    def take(self, configuration: Configuration, next_index: int) -> None:
        """Let ``configuration`` count; who is new is probed at ``next_index``."""
        if configuration == self.configuration:
            return
        self.configuration = configuration
        known = {**self._of, self.own.replica: self.own}
        self._of.clear()
        for member in configuration.members:
            progress = known.get(member)
            if progress is None:
                progress = self._new(member)
                progress.reset(next_index)
            self._of[member] = progress
        self.others = [peer for peer in self._of.values() if peer is not self.own]

    def reset(self, next_index: int) -> None:
        """A new leader knows nothing."""
        for progress in (self.own, *self.others):
            progress.reset(next_index)

    # -- Quorums ---------------------------------------------------------------------------------

    def committed(self) -> int:
        """The highest index that a quorum has on its disks."""
        return self.configuration.committed(self._match_of)

    def confirmed(self) -> int:
        """The latest read-index round that a quorum has answered (D §6.4)."""
        return self.configuration.committed(self._round_of)

    def heard_quorum(self) -> bool:
        """Whether a quorum answered since the last time (D §6.2); starts the next period."""
        heard = {self.own.replica: True}
        for peer in self.others:
            heard[peer.replica] = peer.recent_active
            peer.end_period()
        return self.configuration.vote_result(heard) is VoteResult.WON

    def could_decide(self, configuration: Configuration) -> bool:
        """Whether those of us that answer would be a quorum by ``configuration``."""
        live = {peer.replica: peer.is_live for peer in self.others}
        live[self.own.replica] = True
        votes = {voter: live[voter] for voter in (*configuration.voters, *configuration.outgoing)}
        return configuration.vote_result(votes) is VoteResult.WON

    # -- Single members --------------------------------------------------------------------------

    def caught_up(self, learner: ReplicaId, last_index: int) -> bool:
        """Whether it would not hold the group up as a voter (D §4.2.1)."""
        peer = self._of[learner]
        return (
            peer.is_live
            and peer.state is ProgressState.REPLICATE
            and last_index - peer.match <= PROMOTION_LAG_MAX
        )

    def successor(self) -> ReplicaId | None:
        """Of the other voters that answer the one that has most, if there is one."""
        voters = [
            peer
            for peer in self.others
            if peer.is_live and self.configuration.is_voter(peer.replica)
        ]
        return max(voters, key=lambda peer: peer.match).replica if voters else None

    def needed_from(self, index: int, *, spare_followers: bool) -> int:
        """The lowest of ``index`` and what is still to be sent (see ``Raft.truncation_point``)."""
        for peer in self.others:
            if peer.state is ProgressState.SNAPSHOT:
                index = min(index, peer.pending)
            elif peer.is_live and (spare_followers or peer.catches_up):
                index = min(index, peer.match)
        return index
