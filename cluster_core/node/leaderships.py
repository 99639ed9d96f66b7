"""Which node should lead a group, and the ways in which leaderships move there without an election.

- *home*: to the first choice of the partition table, once it has been back for a while and has
  everything;
- *away*: from a node that should lead nothing, for its disk is full or its clock far ahead;
- *over*: from a node that stops, all of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Final

from cluster_core.replication.host import ReplicationHost
from cluster_core.replication.replica import Replica
from cluster_core.replication.router import GroupTable
from cluster_core.types import GroupId, NodeId

__all__ = ["Leaderships"]

TRANSFERS_MAX: Final = 8
"""Leaderships sent home in one look: a node that comes back is not flooded."""

PREFER_AFTER_S: Final = 2.0
"""How long a peer must have been there before leaderships go home to it."""

HAND_OVER_LOOK_S: Final = 0.02


class Leaderships:
    """See the module. ``peers_up`` says since when the stream to each peer stands, and is kept up
    to date by its owner."""

    def __init__(
        self,
        host: ReplicationHost,
        tables: dict[GroupId, GroupTable],
        peers_up: dict[NodeId, float],
    ) -> None:
        self._host = host
        self._tables = tables
        self._peers_up = peers_up

    def preferred(self, group: GroupId) -> NodeId:
        return self._tables[group].members[1]

    def send_home(self, now: float, unfit: Collection[NodeId]) -> None:
        """``unfit``: nodes that should lead nothing."""
        sent = 0
        for group, replica in self._host.replicas.items():
            home = self.preferred(group)
            since = self._peers_up.get(home)
            if sent == TRANSFERS_MAX or since is None or now - since < PREFER_AFTER_S:
                continue
            if home not in unfit and replica.evaluation is not None and _is_level(replica, home):
                sent += self._host.transfer(replica, home)

    def send_away(self, unfit: Collection[NodeId], *, all_of_them: bool) -> None:
        """From this node to voters that are not ``unfit``: what its disk has no room for, where
        others have, or ``all_of_them``."""
        for replica in self._host.replicas.values():
            if all_of_them or (replica.room == "elsewhere" and replica.evaluation is not None):
                fit = [node for node in self._heirs(replica) if node not in unfit]
                if replica.is_leader:
                    self._transfer(replica, fit)

    async def hand_over(self, grace_s: float) -> None:
        """Give every leadership to somebody; returns when that is done and nothing that was
        proposed here is undecided, or after ``grace_s``."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + grace_s
        while loop.time() < deadline and self._host.storage_error is None:
            replicas = self._host.replicas.values()
            pending = any(replica.queued for replica in replicas)
            for replica in replicas:
                if replica.is_leader and self._transfer(replica, self._heirs(replica)):
                    pending = True
            if not pending:
                return
            await asyncio.sleep(HAND_OVER_LOOK_S)

    def _heirs(self, replica: Replica) -> list[NodeId]:
        """The other voters of the group that are there."""
        voters = self._tables[replica.group].voters
        return [
            node
            for other, node in replica.members.items()
            if other in voters and node in self._peers_up
        ]

    def _transfer(self, replica: Replica, heirs: list[NodeId]) -> bool:
        """To one of ``heirs``, another one for each group; False when there is none."""
        if heirs:
            self._host.transfer(replica, heirs[replica.group % len(heirs)])
        return bool(heirs)


def _is_level(replica: Replica, node: NodeId) -> bool:
    target = next(r for r, member in replica.members.items() if member == node)
    return replica.raft.match_index(target) >= replica.raft.commit
