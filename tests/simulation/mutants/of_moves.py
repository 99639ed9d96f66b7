"""Rules of moving replicas, each broken on purpose; ``test_move_mutants.py`` has more of them."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from cluster_core.node import placements
from cluster_core.node.placements import Placements
from cluster_core.placement.table import observed
from cluster_core.raft import decode_configuration
from cluster_core.replication.host import ReplicationHost
from cluster_core.types import NodeId
from cluster_core.wire.messages import Message
from tests.simulation.move_schedules import move_by_an_old_table, report_by_an_old_table
from tests.simulation.mutants.hunt import Everywhere, Mutant, Whole
from tests.simulation.runs import Plan

__all__ = ["MUTANTS"]

AREA = "Moving replicas"


def takes_a_node_for_its_replica(patch: pytest.MonkeyPatch) -> None:
    """A message counts as from and for whatever replicas the two nodes have in the configuration
    that the receiver knows: the vote of one that came back is that of the one that left."""
    on_messages = ReplicationHost.on_messages

    def readdressed(self: ReplicationHost, peer: NodeId, message: Message) -> Message:
        replica = self.find(message.group)
        if replica is None:
            return message
        members = replica.raft.configuration.members
        known = [one for one in members if replica.members.get(one) == peer]
        source = message.source if message.source in known or not known else known[-1]
        return replace(message, source=source, target=replica.id)

    def careless(self: ReplicationHost, peer: NodeId, messages: list[Message]) -> None:
        on_messages(self, peer, [readdressed(self, peer, message) for message in messages])

    patch.setattr(ReplicationHost, "on_messages", careless)


def moves_by_an_old_table(patch: pytest.MonkeyPatch) -> None:
    """A leader goes on by what it knows of the partition table, without asking for the newest."""

    async def as_it_is(self: Placements, deadline: float) -> None:
        self.refresh()

    patch.setattr(Placements, "bring_up_to_date", as_it_is)


def believes_a_report_of_an_old_table(patch: pytest.MonkeyPatch) -> None:
    """Whatever version of the table a leader had when it saw what it reports."""

    async def take_it(self: Placements, peer: NodeId, body: bytes) -> bytes:
        sight = placements._decode_sight(body)
        replica, evaluation = self._leading()
        before = self._table(evaluation, sight.group)
        configuration = decode_configuration(sight.configuration)
        after = observed(before, configuration, sight.highest)
        await self._put(replica, sight.group, before, after)
        return b""

    patch.setattr(Placements, "_serve_sight", take_it)


MUTANTS = [
    Mutant(
        broken=moves_by_an_old_table,
        area=AREA,
        rule="a leader moves replicas by a table that it asked for in its term",
        scenario=Everywhere(move_by_an_old_table, nodes=5),
        within=3,
    ),
    Mutant(
        broken=believes_a_report_of_an_old_table,
        area=AREA,
        rule="what a leader reports counts only for the version of the table that it had",
        scenario=Everywhere(report_by_an_old_table, nodes=5),
        within=3,
    ),
    Mutant(
        broken=takes_a_node_for_its_replica,
        area=AREA,
        rule="a message counts only between the replicas that it names",
        scenario=Whole(
            Plan(
                nodes=5, seconds=5, clients=2, tellers=0, only=("move_replicas", "crash"), pace=0.3
            )
        ),
        first=4,
        quick=False,
    ),
]
