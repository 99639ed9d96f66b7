"""Looks at the invariants while a run goes on, and once more when it has come to rest."""

from __future__ import annotations

from typing import Final

from tests.simulation.invariants.clock_monotonicity import ClockMonotonicity
from tests.simulation.invariants.election_safety import ElectionSafety
from tests.simulation.invariants.log_matching import LogMatching
from tests.simulation.invariants.no_lost_write import NoLostWrite
from tests.simulation.invariants.replica_equality import ReplicaEquality
from tests.simulation.invariants.state_machine_safety import StateMachineSafety
from tests.simulation.invariants.transaction_atomicity import TransactionAtomicity
from tests.simulation.invariants.view import Invariant, views
from tests.simulation.workload import History
from tests.simulation.world import World

__all__ = ["Watch"]

_INTERVAL_S: Final = 0.02
"""Of virtual time between two looks at the logs; leaders are looked at after every turn."""


class Watch:
    """Ends the run with an AssertionError the moment that something does not hold."""

    def __init__(self, world: World):
        self._world = world
        self._elections = ElectionSafety()
        self._logs: list[Invariant] = [LogMatching(), StateMachineSafety(), ClockMonotonicity()]
        self._next = 0.0
        self._leaders_noted = 0
        world.loop.after_turn = self._after_turn

    def _after_turn(self) -> None:
        replicas = views(self._world)
        self._elections.check(replicas)
        self._note_leaders()
        if self._world.loop.time() >= self._next:
            self._next = self._world.loop.time() + _INTERVAL_S
            for invariant in self._logs:
                invariant.check(replicas)

    def _note_leaders(self) -> None:
        leaders = list(self._elections.leaders.items())
        for (group, term), node in leaders[self._leaders_noted :]:
            self._world.note(f"{node} leads group {group} in term {term}")
        self._leaders_noted = len(leaders)

    def at_rest(self, history: History) -> None:
        """Faults have ended, nothing is in flight, all replicas have caught up."""
        replicas = views(self._world)
        answers = [result for _, result in history.acknowledged]
        for invariant in (ReplicaEquality(), TransactionAtomicity(), NoLostWrite(answers)):
            invariant.check(replicas)
