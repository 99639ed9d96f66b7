"""Each rule of a move, broken on purpose: a run of five nodes must say so."""

from __future__ import annotations

import gc
from collections.abc import Iterable

import pytest
from msgspec.structs import replace

from cluster_core.node import mover, placements
from cluster_core.node.residence import Residence, Resident
from cluster_core.placement.table import GroupTable, next_change, observed, with_voters
from cluster_core.raft import Change, Configuration, leadership
from cluster_core.raft.membership import changed
from cluster_core.raft.peers import Peers
from cluster_core.types import GroupId, NodeId, ReplicaId
from tests.simulation import test_moves as scenarios
from tests.simulation.broken import BROKEN_RUNS
from tests.simulation.runs import Run, run

pytestmark = [*BROKEN_RUNS, pytest.mark.timeout(300)]


def moving(seed: int) -> Run:
    """A short run in which replicas move while nodes crash."""
    faults = ("move_replicas", "crash")
    return run(seed, nodes=5, seconds=5, pace=0.3, clients=2, tellers=0, only=faults)


def assert_found(mutant: pytest.MonkeyPatch, seeds: Iterable[int], says: str) -> None:
    """Some run with the mutant ``says`` what is wrong, and the same run without it is well."""
    for seed in seeds:
        found = ""
        try:
            moving(seed)
        except AssertionError as failure:
            found = str(failure)
        finally:
            gc.collect()
        if found:
            assert says in found
            mutant.undo()
            moving(seed)
            return
    pytest.fail("the simulation did not find it")


def with_old_ids(table: GroupTable, nodes: list[NodeId]) -> GroupTable:
    """A node that comes back gets the id that it had."""
    after = with_voters(table, nodes)
    ids = {
        one: 10 + int(node.removeprefix("node")) if one >= table.next_id else one
        for one, node in after.members.items()
    }
    return replace(
        after,
        members={ids[one]: node for one, node in after.members.items()},
        voters=tuple(ids[one] for one in after.voters),
        next_id=max(table.next_id, 1_000),
    )


def test_an_id_that_is_given_again_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placements, "with_voters", with_old_ids)
    assert_found(monkeypatch, range(5), "an id that left does not return")


def test_a_replica_that_came_back_without_its_votes_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And neither its node nor its group remembers that the id was there before."""
    resident = Residence._resident

    def unremembered(self: Residence, group: GroupId) -> Resident:
        return replace(resident(self, group), removed=0)

    monkeypatch.setattr(placements, "with_voters", with_old_ids)
    monkeypatch.setattr(Residence, "_resident", unremembered)
    monkeypatch.setattr(placements, "observed", lambda table, now, _: observed(table, now, 0))
    monkeypatch.setattr(mover, "observed", lambda table, now, _: observed(table, now, 0))
    monkeypatch.setattr(mover, "next_change", lambda table, now, _: next_change(table, now, 0))
    with pytest.raises(AssertionError, match=r"came back|went back"):
        scenarios.test_who_comes_back_is_another_replica()


def test_a_change_of_two_voters_in_one_step_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def at_once(old: Configuration, change: Change) -> Configuration:
        after = changed(old, change)
        return Configuration(after.voters, (), after.learners)

    monkeypatch.setattr(leadership, "changed", at_once)
    assert_found(monkeypatch, range(5), "need not meet")


def test_a_learner_that_votes_before_it_has_caught_up_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def always(peers: Peers, learner: ReplicaId, last_index: int) -> bool:
        return True

    monkeypatch.setattr(Peers, "caught_up", always)
    assert_found(monkeypatch, range(1, 6), "has nothing")


def test_a_removal_before_the_group_let_go_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The group goes on counting on a replica that its node has removed."""
    follow = Residence._follow

    def hasty(self: Residence, group: GroupId, table: GroupTable) -> bool:
        wanted = {one: table.members[one] for one in table.wanted}
        return follow(self, group, replace(table, members=wanted))

    monkeypatch.setattr(Residence, "_follow", hasty)
    assert_found(monkeypatch, range(5), "which votes")


def test_a_table_that_drops_what_the_group_still_has_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forgetful(
        table: GroupTable, configuration: Configuration, highest: ReplicaId
    ) -> GroupTable:
        after = observed(table, configuration, highest)
        members = {one: after.members[one] for one in after.wanted}
        return replace(after, members=members, version=table.version + 1)

    monkeypatch.setattr(placements, "observed", forgetful)
    assert_found(monkeypatch, range(5), "")
