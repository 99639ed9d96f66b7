"""Elections at once when a leader's stream breaks, one for each group.

Two replicas that campaign at the same time can split the votes, and then nobody leads until both
have tried again. So one of them goes first and the other only if that comes to nothing:

- the first of the group's voters without the lost one pre-votes at once, each further one only
  after a multiple of what a campaign takes;
- who sees another's pre-vote and cannot lack anything that was committed by following it, stands
  back for a while;
- who votes leaves it to that election, however long it takes where disks are slow, and to its
  time-out;
- who sees the pre-vote of a replica whose log is shorter than its own campaigns at once: the other
  cannot win.

Whatever comes between falls back to random delays, and after a few tries to the election time-out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from cluster_core.config import RaftConfig
from cluster_core.ports import Random
from cluster_core.raft.roles import Role
from cluster_core.replication.replica import Replica
from cluster_core.types import GroupId, ReplicaId
from cluster_core.wire.messages import Vote

__all__ = ["Failover"]

ATTEMPTS_MAX: Final = 5
"""Pre-votes after a broken stream before a group falls back to its election time-out."""


class Failover:
    """The timers of one host. ``campaign(replica)`` begins a campaign."""

    def __init__(
        self, config: RaftConfig, random: Random, campaign: Callable[[Replica], None]
    ) -> None:
        self._unit_s = config.failover_delay_ms / 1000
        self._random = random
        self._campaign = campaign
        self._timers: dict[GroupId, asyncio.TimerHandle] = {}
        self._attempts: dict[GroupId, int] = {}

    def leader_lost(self, replica: Replica, lost: ReplicaId) -> None:
        """The stream to the node of the leader ``lost`` broke."""
        others = [voter for voter in sorted(replica.raft.voters) if voter != lost]
        rank = others.index(replica.id) if replica.id in others else len(others)
        self._attempts[replica.group] = 0
        self._set(replica, self._unit_s * (2 * rank + self._random.uniform(0, 0.2)))

    def on_vote(self, replica: Replica, vote: Vote) -> None:
        """``vote`` was given to the replica's Raft core. Of interest while its leader is lost."""
        if replica.group not in self._timers:
            return
        raft = replica.raft
        if vote.pre and raft.is_ahead_of(vote):
            self._set(replica, self._unit_s * self._random.uniform(0, 0.2))
        elif (raft.term, raft.vote) == (vote.term, vote.source) and not vote.pre:
            self._timers.pop(replica.group).cancel()
        else:
            self._stand_back(replica)

    def close(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _stand_back(self, replica: Replica) -> None:
        self._set(replica, self._unit_s * self._random.uniform(2, 6))

    def _set(self, replica: Replica, delay: float) -> None:
        before = self._timers.pop(replica.group, None)
        if before is not None:
            before.cancel()
        loop = asyncio.get_running_loop()
        self._timers[replica.group] = loop.call_later(delay, self._fire, replica)

    def _fire(self, replica: Replica) -> None:
        del self._timers[replica.group]
        if replica.failed is not None or replica.raft.leader or replica.is_leader:
            return
        if replica.raft.role is not Role.CANDIDATE:
            # Else, to begin anew would throw away the votes that are on their way: where disks are
            # slow, each time.
            self._campaign(replica)
        self._attempts[replica.group] += 1
        if self._attempts[replica.group] < ATTEMPTS_MAX:
            self._stand_back(replica)
