"""Leadership transfer: dissertation §3.10."""

from __future__ import annotations

import pytest

from cluster_core.raft import NOBODY, ProposalRefused, Refusal, Role
from cluster_core.wire.messages import TimeoutNow
from tests.cluster_core.raft.replicas import CONFIG, GROUP, Group, data_of


def test_an_up_to_date_target_leads_at_once() -> None:
    group = Group()
    group.elect(1).transfer_leadership(3)
    group.stabilize()
    assert [r.raft.role for r in group] == [Role.FOLLOWER, Role.FOLLOWER, Role.LEADER]
    assert group.raft(3).term == 2
    assert group.raft(1).transferee == NOBODY


def test_a_target_that_is_behind_is_brought_up_to_date_first() -> None:
    group = Group()
    raft = group.elect(1)
    group.isolate(3)
    raft.propose(b"x")
    group.stabilize()
    raft.transfer_leadership(3)
    group.stabilize()
    assert raft.role is Role.LEADER
    group.heal()
    group.tick()
    assert group.raft(3).role is Role.LEADER
    assert data_of(group[3].applied) == [b"x"]


def test_what_the_target_has_not_made_durable_it_does_not_have() -> None:
    group = Group()
    raft = group.elect(1)
    group[3].slow = True
    raft.propose(b"x")
    group.stabilize()
    raft.transfer_leadership(3)
    group.stabilize()
    assert raft.role is Role.LEADER
    group[3].slow = False
    group[3].persist()
    group.stabilize()
    assert group.raft(3).role is Role.LEADER


def test_proposals_are_refused_meanwhile_and_reads_are_not() -> None:
    group = Group()
    raft = group.elect(1)
    raft.transfer_leadership(3)
    with pytest.raises(ProposalRefused) as refused:
        raft.propose(b"x")
    assert refused.value.reason is Refusal.TRANSFERRING
    raft.read_index(1)


def test_a_transfer_that_does_not_happen_is_over_after_an_election_timeout() -> None:
    group = Group()
    raft = group.elect(1)
    group.isolate(3)
    raft.transfer_leadership(3)
    group.tick(CONFIG.election_ticks - 1)
    assert raft.transferee == 3
    group.tick()
    assert (raft.role, raft.transferee) == (Role.LEADER, NOBODY)
    raft.propose(b"x")
    group.stabilize()
    assert raft.commit == 2


def test_transfers_in_a_row_do_not_put_off_the_check_of_the_quorum() -> None:
    group = Group()
    raft = group.elect(1)
    group.isolate(1)
    for tick in range(2 * CONFIG.election_ticks):
        raft.transfer_leadership(2 + tick % 2)
        group.tick(1, 1)
    assert raft.role is Role.FOLLOWER


def test_a_second_target_replaces_the_first() -> None:
    group = Group()
    raft = group.elect(1)
    group.isolate(2)
    raft.transfer_leadership(2)
    group.stabilize()
    raft.transfer_leadership(3)
    group.stabilize()
    assert group.raft(3).role is Role.LEADER


@pytest.mark.parametrize("target", [1, 4, 9])
def test_ourselves_learners_and_strangers_are_no_targets(target: int) -> None:
    group = Group([1, 2, 3], [4])
    raft = group.elect(1)
    raft.transfer_leadership(target)
    assert raft.transferee == NOBODY


def test_a_follower_transfers_nothing() -> None:
    group = Group()
    group.elect(1)
    group.raft(2).transfer_leadership(3)
    assert not group.raft(2).has_ready()


def test_an_old_order_to_campaign_is_ignored() -> None:
    group = Group()
    group.elect(1)
    group.raft(1).step_down()
    group.elect(2)
    group.raft(3).step(TimeoutNow(GROUP, 1, 3, 1))
    assert group.raft(3).role is Role.FOLLOWER


@pytest.mark.parametrize("lost", ["does not want it", "cannot be reached"])
def test_a_leader_goes_on_at_once_when_the_target(lost: str) -> None:
    group = Group()
    raft = group.elect(1)
    group.isolate(3)
    raft.transfer_leadership(3)
    if lost == "does not want it":
        raft.abort_transfer(2)
        assert raft.transferee == 3
        raft.abort_transfer(3)
    else:
        raft.peer_unreachable(3)
    assert (raft.role, raft.transferee) == (Role.LEADER, NOBODY)
    raft.propose(b"x")
    group.stabilize()
    assert raft.commit == 2


def test_a_target_that_retires_does_not_campaign() -> None:
    group = Group()
    group.elect(1).transfer_leadership(3)
    group.raft(3).retire()
    group.stabilize()
    assert (group.raft(3).role, group.raft(3).term) == (Role.FOLLOWER, 1)
    group.tick(3 * CONFIG.election_ticks, 3)
    assert group.raft(3).role is Role.FOLLOWER


def test_an_election_that_a_retiring_replica_has_begun_is_won() -> None:
    """Nobody else campaigns before an election time-out: better it leads, and hands over."""
    group = Group()
    group.elect(1)
    group.raft(3).step(TimeoutNow(GROUP, 1, 3, 1))
    group.raft(3).retire()
    group.stabilize()
    assert group.raft(3).role is Role.LEADER
    group.raft(3).transfer_leadership(1)
    group.stabilize()
    assert group.raft(1).role is Role.LEADER


def test_a_rehearsal_ends_when_its_replica_retires() -> None:
    group = Group()
    group.raft(3).campaign()
    group.raft(3).retire()
    group.stabilize()
    assert group.raft(3).role is Role.FOLLOWER
