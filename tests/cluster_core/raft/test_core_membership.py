"""Changes of the members of a group: §6, D §4."""

from __future__ import annotations

import pytest

from cluster_core.raft import (
    NOBODY,
    UNKNOWN,
    Change,
    Configuration,
    ProposalRefused,
    Raft,
    Refusal,
    Role,
)
from cluster_core.raft.peers import PROMOTION_LAG_MAX
from cluster_core.wire.messages import Append, HeartbeatReply, TimeoutNow, VoteReply
from tests.cluster_core.raft.replicas import CONFIG, GROUP, Group, data_of, role_of


def refused(raft: Raft, change: Change) -> Refusal:
    with pytest.raises(ProposalRefused) as failed:
        raft.propose_configuration(change)
    return failed.value.reason


def grown() -> tuple[Group, Raft]:
    """1, 2, 3 vote and 1 leads; 4 has come as a learner and is caught up."""
    group = Group()
    raft = group.elect(1)
    group.join(4)
    raft.propose_configuration(Change(add_learners=(4,)))
    group.stabilize()
    group.tick()
    return group, raft


class TestLearners:
    """D §4.2.1"""

    def test_a_replica_that_joins_knows_nobody_and_never_campaigns(self) -> None:
        group = Group()
        group.join(4)
        group.tick(30, 4)
        assert (group.raft(4).configuration, group.raft(4).term) == (UNKNOWN, 0)

    def test_it_gets_the_log_and_with_it_the_configuration(self) -> None:
        group, _ = grown()
        assert group.raft(4).configuration == Configuration.of([1, 2, 3], [4])
        assert group[4].applied == group[1].applied

    def test_it_counts_for_nothing(self) -> None:
        group, raft = grown()
        group.isolate(2, 3)
        raft.propose(b"x")
        group.stabilize()
        assert raft.commit < raft.last_index

    def test_it_becomes_a_voter_by_a_single_step(self) -> None:
        group, raft = grown()
        raft.propose_configuration(Change(promote=(4,)))
        assert raft.configuration == Configuration.of([1, 2, 3, 4])
        group.stabilize()
        assert {r.raft.configuration for r in group} == {raft.configuration}
        assert not raft.change_pending
        group.raft(4).campaign()
        assert role_of(group.raft(4)) is Role.PRE_CANDIDATE

    def test_one_that_is_far_behind_is_not_promoted(self) -> None:
        group, raft = grown()
        group.isolate(4)
        for n in range(PROMOTION_LAG_MAX + 1):
            raft.propose(b"%d" % n)
        group.stabilize()
        assert refused(raft, Change(promote=(4,))) is Refusal.NOT_CAUGHT_UP
        group.heal()
        group.tick()
        raft.propose_configuration(Change(promote=(4,)))

    def test_one_that_does_not_answer_is_not_promoted(self) -> None:
        group, raft = grown()
        group.isolate(4)
        group.tick(2 * CONFIG.election_ticks)
        assert refused(raft, Change(promote=(4,))) is Refusal.NOT_CAUGHT_UP


class TestWhenAConfigurationCounts:
    """§6: a server always uses the latest configuration in its log, committed or not."""

    def test_the_leader_decides_by_it_at_once(self) -> None:
        group = Group([1, 2])
        raft = group.elect(1)
        group.tick()
        group.isolate(2)
        raft.propose_configuration(Change(remove=(2,)))
        group.stabilize()
        assert raft.commit == raft.last_index
        assert raft.propose(b"x")
        group.stabilize()
        assert data_of(group[1].applied) == [b"x"]

    def test_what_was_on_its_way_may_be_committed_by_it(self) -> None:
        group = Group([1, 2, 3])
        raft = group.elect(1)
        group.tick()
        group.isolate(3)
        group[2].slow = True
        raft.propose(b"x")
        group.stabilize()
        group.isolate(2)
        assert raft.commit == 1
        raft.propose_configuration(Change(remove=(3,)))
        group[2].persist()
        group.heal()
        group.stabilize()
        assert raft.commit >= 2

    def test_a_follower_goes_back_when_its_entry_is_replaced(self) -> None:
        group = Group()
        raft = group.elect(1)
        group.tick()
        group.isolate(1)
        raft.propose_configuration(Change(remove=(3,)))
        group.stabilize()
        assert raft.configuration == Configuration.of([1, 2])
        group.tick(2 * CONFIG.election_ticks, 2, 3)
        group.heal()
        group.tick(2)
        assert {r.raft.configuration for r in group} == {Configuration.of([1, 2, 3])}

    def test_after_a_restart_it_is_found_in_the_log_and_in_the_state(self) -> None:
        group, raft = grown()
        group[2].crash()
        assert group.raft(2).configuration == raft.configuration
        assert group.raft(2).applied_configuration == raft.configuration
        group.isolate(2)
        raft.propose_configuration(Change(promote=(4,)))
        group[1].work()
        group[1].crash()
        assert group.raft(1).configuration == Configuration.of([1, 2, 3, 4])
        assert group.raft(1).applied_configuration == Configuration.of([1, 2, 3], [4])


class TestJointConsensus:
    """§6, D §4.3"""

    def test_two_voters_change_places_through_a_joint_configuration(self) -> None:
        group, raft = grown()
        raft.propose_configuration(Change(promote=(4,), remove=(3,)))
        assert raft.configuration == Configuration((1, 2, 4), (1, 2, 3))
        group.stabilize()
        assert raft.configuration == Configuration.of([1, 2, 4])
        assert not raft.change_pending

    def test_it_takes_a_majority_of_both_halves(self) -> None:
        group = Group([1, 2, 3], [4, 5])
        raft = group.elect(1)
        group.tick()
        raft.propose_configuration(Change(promote=(4, 5), remove=(2, 3)))
        group.isolate(2, 3)
        group.stabilize()
        assert raft.configuration.is_joint, "1, 4 and 5 are no majority of the old voters"
        group.heal()
        group.tick(2)
        assert raft.configuration == Configuration.of([1, 4, 5])

    def test_a_new_leader_leaves_what_another_began(self) -> None:
        group, raft = grown()
        raft.propose_configuration(Change(promote=(4,), demote=(3,)))
        group[1].work()
        group.deliver(1)
        group.isolate(1)
        group.tick(3 * CONFIG.election_ticks, 2, 3, 4)
        assert raft.configuration.is_joint
        group.heal()
        group.tick(3)
        assert {r.raft.configuration for r in group} == {Configuration.of([1, 2, 4], [3])}

    def test_it_is_not_left_during_a_transfer_but_after_it(self) -> None:
        group, raft = grown()
        raft.propose_configuration(Change(promote=(4,), remove=(3,)))
        raft.transfer_leadership(2)
        group.isolate(2)
        group.stabilize()
        assert raft.configuration.is_joint
        group.tick(CONFIG.election_ticks)
        assert raft.configuration == Configuration.of([1, 2, 4])


class TestRefusals:
    def test_only_a_leader_takes_a_change(self) -> None:
        group, _ = grown()
        assert refused(group.raft(2), Change(remove=(3,))) is Refusal.NOT_LEADER

    def test_one_change_at_a_time(self) -> None:
        group, raft = grown()
        raft.propose_configuration(Change(promote=(4,)))
        assert refused(raft, Change(remove=(3,))) is Refusal.CHANGE_PENDING
        group.stabilize()
        raft.propose_configuration(Change(remove=(3,)))

    def test_nothing_before_something_of_the_term_is_committed(self) -> None:
        group = Group()
        group.isolate(1)
        raft = group.raft(1)
        raft.step(TimeoutNow(GROUP, 2, 1, 0))
        group[1].work()
        raft.step(VoteReply(GROUP, 2, 1, 1, True))
        assert role_of(raft) is Role.LEADER
        assert refused(raft, Change(remove=(3,))) is Refusal.TERM_TOO_YOUNG

    def test_nothing_during_a_transfer(self) -> None:
        _, raft = grown()
        raft.transfer_leadership(2)
        assert refused(raft, Change(remove=(3,))) is Refusal.TRANSFERRING

    def test_a_change_that_does_not_fit(self) -> None:
        _, raft = grown()
        assert refused(raft, Change(promote=(3,))) is Refusal.IMPOSSIBLE
        assert raft.last_index == 2

    def test_a_removal_after_which_too_few_would_answer(self) -> None:
        group, raft = grown()
        group.isolate(3)
        group.tick(2 * CONFIG.election_ticks)
        assert refused(raft, Change(remove=(2,))) is Refusal.QUORUM_LOST
        assert refused(raft, Change(demote=(2,))) is Refusal.QUORUM_LOST
        raft.propose_configuration(Change(remove=(3,)))

    def test_right_after_a_check_of_the_quorum_the_period_before_counts(self) -> None:
        _, raft = grown()
        for _ in range(CONFIG.election_ticks):
            raft.tick()
        raft.propose_configuration(Change(remove=(3,)))


class TestRemovedReplicas:
    """D §4.2.2, §4.2.3"""

    def test_a_leader_that_removes_itself_hands_over_when_that_is_committed(self) -> None:
        group, raft = grown()
        raft.propose_configuration(Change(remove=(1,)))
        group[1].work()
        assert raft.role is Role.LEADER, "it manages the group until then, without counting itself"
        group.stabilize()
        group.tick()
        assert (raft.role, raft.leader) == (Role.FOLLOWER, NOBODY)
        assert [r.replica for r in group if r.raft.is_leader] == [2]
        assert group.raft(2).term == 2, "and nobody waited for an election time-out"

    def test_it_steps_down_when_nobody_takes_over(self) -> None:
        group, raft = grown()
        raft.propose_configuration(Change(remove=(1,)))
        group[1].work()
        group.deliver(1)
        group.work()
        replies = group.take(None, 1)
        group.isolate(1)
        for reply in replies:
            raft.step(reply)
        group[1].work()
        assert (raft.role, raft.commit) == (Role.LEADER, raft.last_index)
        for _ in range(CONFIG.election_ticks):
            for voter in (2, 3):
                raft.step(HeartbeatReply(GROUP, voter, 1, raft.term))
            raft.tick()
        assert role_of(raft) is Role.FOLLOWER

    def test_the_removed_never_campaign_again(self) -> None:
        group, raft = grown()
        raft.propose_configuration(Change(remove=(1,)))
        group.stabilize()
        group.tick()
        group.tick(30, 1)
        assert raft.role is Role.FOLLOWER

    def test_who_has_the_only_log_that_can_win_campaigns_though_it_removed_itself(self) -> None:
        """D §4.2.2: it might be needed until that entry is committed."""
        group = Group([1, 2])
        raft = group.elect(1)
        group.tick()
        group.isolate(1)
        raft.propose_configuration(Change(remove=(1,)))
        group[1].work()
        raft.step_down()
        group.heal()
        group.tick(4 * CONFIG.election_ticks)
        assert group.raft(2).is_leader
        assert group.raft(2).configuration == Configuration.of([2])

    def test_one_that_does_not_know_of_its_removal_disturbs_nobody(self) -> None:
        group, raft = grown()
        group.isolate(3)
        raft.propose_configuration(Change(remove=(3,)))
        group.stabilize()
        group.heal()
        term = raft.term
        group.tick(50)
        assert (raft.role, raft.term) == (Role.LEADER, term)
        assert group.raft(3).configuration == Configuration.of([1, 2, 3], [4])

    def test_the_leader_sends_the_removed_nothing_more(self) -> None:
        group, raft = grown()
        raft.propose_configuration(Change(remove=(4,)))
        group[1].work()
        assert [m for m in group.take(1, 4) if isinstance(m, Append)] == []
        assert raft.match_index(4) == 0
