"""Rules of forming and of fast failover, each broken on purpose, in scenarios of their own."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cluster_core.config import ClusterConfig
from cluster_core.membership.forming import Forming, Founding, Member
from cluster_core.raft import Raft
from tests.cluster_core.membership.test_forming_schedules import World
from tests.simulation.mutants.hunt import Mutant
from tests.simulation.test_failover import fail_over

__all__ = ["MUTANTS"]


def founds_on_its_own_proposal(patch: pytest.MonkeyPatch) -> None:
    """Without the durable proposals of the other members."""

    def hasty(self: Forming, founding: Founding) -> bool:
        return True

    patch.setattr(Forming, "_all_proposed", hasty)


def forgets_its_proposal(patch: pytest.MonkeyPatch) -> None:
    """A store that has proposed a cluster may propose another one in its next life."""
    begin = Forming.__init__

    def anew(
        self: Forming,
        own: Member,
        peers: Sequence[str],
        config: ClusterConfig,
        proposed: Founding | None,
    ) -> None:
        begin(self, own, peers, config, None)

    patch.setattr(Forming, "__init__", anew)


def keeps_the_lease_of_a_lost_leader(patch: pytest.MonkeyPatch) -> None:
    """A broken stream does not end it, so campaigns after a crash are refused."""
    patch.setattr(Raft, "leader_lost", lambda self: None)


def form_at_random(seed: int) -> None:
    """Any order of messages, losses, crashes and wiped disks."""
    world = World(seed, 3, wipes=True)
    for _ in range(150):
        world.step()
    world.check()
    world.settle()
    world.check()


MUTANTS = [
    Mutant(
        broken=founds_on_its_own_proposal,
        area="Forming",
        rule="a cluster is founded on the durable proposals of all",
        scenario=form_at_random,
        within=400,
    ),
    Mutant(
        broken=forgets_its_proposal,
        area="Forming",
        rule="a store proposes one cluster in its life",
        scenario=form_at_random,
        within=400,
    ),
    Mutant(
        broken=keeps_the_lease_of_a_lost_leader,
        area="Raft",
        rule="a broken stream ends the lease of the leader",
        scenario=fail_over,
        within=3,
    ),
]
