"""Moves replicas: leads the groups of this node from what they have to what the table wants.

The leader of each group looks at both and takes the next step, which ``placement/table.py`` finds
from the two alone. So a move survives the death of anybody: the next leader finds it where it is.

**Why an old table does no harm.** A leader takes steps only by a table that it has asked for in its
own term, and reports only what it saw, with its leadership confirmed, while it had that version of
the table; the meta group takes a report only of the version that it has. So when a replica that is
not in the configuration is dropped from the table, every later leader of the group has seen that it
is not wanted, and never adds it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from typing import Final

from cluster_core.errors import KotobaError
from cluster_core.node.placements import Placements
from cluster_core.placement.table import GroupTable, next_change, observed
from cluster_core.raft import Change
from cluster_core.replication.evaluation import Evaluation
from cluster_core.replication.host import ReplicationHost
from cluster_core.replication.replica import Replica
from cluster_core.types import META_GROUP, NodeId

__all__ = ["Mover"]

log = logging.getLogger("kotoba.mover")

LOOK_EVERY_S: Final = 0.1
"""Between two looks at the groups led here; nothing is asked when nothing moves."""

STEP_TIMEOUT_S: Final = 1.0

MOVES_MAX: Final = 4
"""Groups led by one node that wait for a new replica to catch up: clients come first."""


class Mover:
    """See the module. ``peers_up`` are the nodes in reach."""

    def __init__(
        self, host: ReplicationHost, placements: Placements, peers_up: Collection[NodeId]
    ) -> None:
        self._host = host
        self._placements = placements
        self._peers_up = peers_up

    async def run(self) -> None:
        """Take the steps that are due, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                await self._move_all()
            except (KotobaError, TimeoutError) as error:
                log.debug("moving replicas, next time: %r", error)
            except Exception:
                log.exception("moving replicas failed")

    def _table(self, replica: Replica) -> GroupTable:
        return self._placements.tables[replica.group]

    async def _move_all(self) -> None:
        unsettled = [
            (replica, replica.evaluation)
            for group, replica in sorted(self._host.replicas.items())
            if group != META_GROUP and not self._table(replica).settled
        ]
        led = [(replica, term) for replica, term in unsettled if term is not None]
        if not led:
            return
        deadline = asyncio.get_running_loop().time() + STEP_TIMEOUT_S
        await self._placements.bring_up_to_date(deadline)
        for replica, term in led:
            if _is_steady(replica, term):
                await self._step(replica, term, deadline)

    async def _step(self, replica: Replica, term: Evaluation, deadline: float) -> None:
        """One step of a group that is led here and whose configuration is committed."""
        table, configuration = self._table(replica), replica.raft.configuration
        if observed(table, configuration, replica.highest_id) != table:
            async with asyncio.timeout_at(deadline):
                await replica.read_barrier()
            if _is_steady(replica, term) and replica.raft.configuration == configuration:
                await self._placements.report(
                    replica.group, table.version, configuration, replica.highest_id, deadline
                )
            return
        change = next_change(table, configuration, replica.highest_id)
        if change is None or replica.raft.change_refusal(change) is not None:
            return
        if change.add_learners and self._moves_under_way() >= MOVES_MAX:
            return
        if not self._hand_over(replica, change):
            log.info("group %d: %s", replica.group, change)
            replica.propose_configuration(change)

    def _hand_over(self, replica: Replica, change: Change) -> bool:
        """A leader that is to go leaves the change that removes it to one that stays."""
        if replica.id not in (*change.remove, *change.demote):
            return False
        raft = replica.raft
        for voter in self._table(replica).voters:
            node = replica.members[voter]
            level = voter in raft.voters and raft.match_index(voter) >= raft.commit
            if level and node in self._peers_up and self._host.transfer(replica, node):
                return True
        return False

    def _moves_under_way(self) -> int:
        """Groups led here with a replica that shall vote and does not yet."""
        led = [one for one in self._host.replicas.values() if one.is_leader]
        return sum(
            not set(one.raft.learners).isdisjoint(self._table(one).voters)
            for one in led
            if one.group != META_GROUP
        )


def _is_steady(replica: Replica, term: Evaluation) -> bool:
    """Whether the leadership has lasted, nothing is changing, and the leader is there to stay: one
    that was let go only hands over."""
    raft = replica.raft
    return (
        replica.evaluation is term
        and not raft.change_pending
        and raft.configuration.is_voter(raft.replica)
    )
