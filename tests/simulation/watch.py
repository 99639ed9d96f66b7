"""Looks at the invariants while a run goes on, and once more when it has come to rest."""

from __future__ import annotations

from typing import Final

from cluster_core.graph.indexes import IndexState
from cluster_core.node.node import ClusterNode
from cluster_core.types import GroupId, ReplicaId
from tests.simulation.invariants.clock_bounds import ClockBounds
from tests.simulation.invariants.clock_monotonicity import ClockMonotonicity
from tests.simulation.invariants.closed_timestamps import ClosedTimestampsHold
from tests.simulation.invariants.configuration_chain import ConfigurationChain
from tests.simulation.invariants.election_safety import ElectionSafety
from tests.simulation.invariants.index_consistency import IndexConsistency
from tests.simulation.invariants.leader_append_only import LeaderAppendOnly
from tests.simulation.invariants.leader_completeness import LeaderCompleteness
from tests.simulation.invariants.log_matching import LogMatching
from tests.simulation.invariants.no_lost_write import NoLostWrite
from tests.simulation.invariants.replica_equality import ReplicaEquality
from tests.simulation.invariants.settled_placement import SettledPlacement
from tests.simulation.invariants.state_machine_safety import StateMachineSafety
from tests.simulation.invariants.transaction_atomicity import TransactionAtomicity
from tests.simulation.invariants.view import Invariant, Views
from tests.simulation.invariants.voters_remember import VotersRemember
from tests.simulation.workload import History
from tests.simulation.world import World

__all__ = ["Watch"]

_INTERVAL_S: Final = 0.02
"""Of virtual time between two looks at the logs; leaders are looked at after every turn."""


class Watch:
    """Ends the run with an AssertionError the moment that something does not hold."""

    def __init__(self, world: World):
        self._world = world
        self._views = Views(world)
        self._elections = ElectionSafety()
        self.closed = ClosedTimestampsHold()
        safety = StateMachineSafety()
        self.chain = ConfigurationChain()
        self._logs: list[Invariant] = [
            LogMatching(),
            LeaderAppendOnly(),
            safety,
            LeaderCompleteness(safety),
            ClockMonotonicity(),
            ClockBounds(world.loop.time),
            self.closed,
            self.chain,
            VotersRemember(self.chain),
        ]
        self._next = 0.0
        self._leaders_noted = 0
        world.loop.after_turn = self._after_turn

    def _after_turn(self) -> None:
        replicas = self._views()
        self._elections.check(replicas)
        self._note_leaders()
        if self._world.loop.time() >= self._next:
            self._next = self._world.loop.time() + _INTERVAL_S
            for invariant in self._logs:
                invariant.check(replicas)

    def _note_leaders(self) -> None:
        leaders = self._elections.leaders
        if len(leaders) > self._leaders_noted:
            for (group, term), node in list(leaders.items())[self._leaders_noted :]:
                self._world.note(f"{node} leads group {group} in term {term}")
            self._leaders_noted = len(leaders)

    def is_level(self) -> bool:
        """All replicas of a group have applied all of its log, and no transaction is undecided."""
        groups: dict[GroupId, set[int]] = {}
        for view in self._views():
            groups.setdefault(view.group, set()).update((view.applied, view.last_written))
            if len(view.replica.intents):
                return False
        return all(len(positions) == 1 for positions in groups.values())

    def at_rest(self, history: History) -> None:
        """Faults have ended, nothing is in flight, all replicas have caught up."""
        replicas = self._views()
        answers = [result for _, result in history.acknowledged]
        for invariant in (
            ReplicaEquality(),
            TransactionAtomicity(),
            NoLostWrite(answers),
            IndexConsistency(),
            SettledPlacement(),
        ):
            invariant.check(replicas)

    def moves_are_settled(self) -> bool:
        """Every node knows that every group has what is wanted, and has done its part."""
        founded = [node.founded for node in self._world.nodes]
        return all(
            node is not None
            and all(
                table.settled and _resident(node, group) == table.replica_at(node.node_id)
                for group, table in node.tables.items()
            )
            for node in founded
        )

    def indexes_are_settled(self) -> bool:
        """Every node knows of every index that it is ready, and of none that is on its way out."""
        founded = [node.founded for node in self._world.nodes]
        known = [one for node in founded if node is not None for one in node.indexes.known()]
        return all(one.state is IndexState.READY for one in known)


def _resident(node: ClusterNode, group: GroupId) -> ReplicaId | None:
    """The replica of ``group`` that may be served from at ``node``."""
    replica = node.host.replicas.get(group)
    return None if replica is None else replica.id
