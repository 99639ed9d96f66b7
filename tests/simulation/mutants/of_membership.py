"""Rules of forming, of stores and of fast failover, each broken on purpose, in scenarios of their
own."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from cluster_core.config import ClusterConfig
from cluster_core.membership.forming import Forming, Founding, Member
from cluster_core.node.identity import Identity
from cluster_core.ports import Engine, Random
from cluster_core.raft import Raft
from cluster_core.types import NodeId
from tests.cluster_core.membership.test_forming_schedules import World
from tests.simulation.mutants.hunt import Everywhere, Mutant
from tests.simulation.store_schedules import come_back_with_a_new_disk, crash_while_others_agree
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


def knows_a_disk_by_its_node(patch: pytest.MonkeyPatch) -> None:
    """A cluster that names this node is this node's, whichever disk it names."""

    def by_name(self: Forming, member: Member) -> bool:
        return member.node_id == self._own.node_id

    patch.setattr(Forming, "_is_ours", by_name)


def draws_the_same_store_again(patch: pytest.MonkeyPatch) -> None:
    """A new disk gets the id that the one before had."""
    load = Identity.load

    async def named(engine: Engine, node_id: NodeId, _: Random) -> Identity:
        return await load(engine, node_id, random.Random(node_id))

    patch.setattr(Identity, "load", named)


class _Unsynced:
    """An engine whose syncs are not waited for."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def sync(self) -> None:
        pass


def tells_its_store_before_the_disk_has_it(patch: pytest.MonkeyPatch) -> None:
    """An empty node answers with a store id that a crash takes away."""
    load = Identity.load

    async def hasty(engine: Engine, node_id: NodeId, source: Random) -> Identity:
        identity = await load(_Unsynced(engine), node_id, source)
        identity._engine = engine
        return identity

    patch.setattr(Identity, "load", hasty)


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
        broken=knows_a_disk_by_its_node,
        area="Forming",
        rule="a node with an empty disk is refused under its old name",
        scenario=Everywhere(come_back_with_a_new_disk),
        within=3,
    ),
    Mutant(
        broken=draws_the_same_store_again,
        area="Forming",
        rule="a disk that was wiped is another store",
        scenario=Everywhere(come_back_with_a_new_disk),
        within=3,
    ),
    Mutant(
        broken=tells_its_store_before_the_disk_has_it,
        area="Forming",
        rule="a store id is on the disk before it is told",
        scenario=Everywhere(crash_while_others_agree),
        within=3,
    ),
    Mutant(
        broken=keeps_the_lease_of_a_lost_leader,
        area="Raft",
        rule="a broken stream ends the lease of the leader",
        scenario=fail_over,
        within=3,
    ),
]
