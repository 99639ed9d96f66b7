"""Elections: Raft §5.1, §5.2, §5.4.1; PreVote (D §9.6), CheckQuorum and leases (D §6.2, §4.2.3)."""

from __future__ import annotations

from random import Random

import pytest

from cluster_core.config import RaftConfig
from cluster_core.raft import NOBODY, Raft, Role
from cluster_core.wire.messages import (
    Append,
    AppendReply,
    Entry,
    HardState,
    Heartbeat,
    HeartbeatReply,
    TimeoutNow,
    Vote,
    VoteReply,
)
from tests.cluster_core.raft.replicas import CONFIG, GROUP, Group, Image, log_of, role_of


def follower(
    group: Group | None = None, *, term: int = 1, leader: int = 0, vote: int = 0
) -> tuple[Raft, Group]:
    """Replica 1 of three, in ``term``, with a ``leader`` that it has just heard."""
    image = Image()
    image.hard_state = HardState(term, vote)
    group = group or Group(images={1: image})
    raft = group.raft(1)
    if leader:
        raft.step(Heartbeat(GROUP, leader, 1, term, 0))
        group.work()
        group.take()
    return raft, group


def votes_of(group: Group) -> list[VoteReply]:
    return [message for message in group.take() if isinstance(message, VoteReply)]


class TestTerms:
    """§5.1"""

    @pytest.mark.parametrize("role", [Role.FOLLOWER, Role.PRE_CANDIDATE, Role.CANDIDATE])
    def test_whoever_hears_of_a_higher_term_follows_it(self, role: Role) -> None:
        raft, _ = follower()
        raft.role = role
        raft.step(Append(GROUP, 2, 1, 5, 0, 0, 0, ()))
        assert (raft.role, raft.term, raft.leader) == (Role.FOLLOWER, 5, 2)

    def test_a_leader_that_hears_of_a_higher_term_steps_down(self) -> None:
        group = Group()
        raft = group.elect(1)
        raft.step(AppendReply(GROUP, 2, 1, 9, 0, True))
        assert (raft.role, raft.term, raft.leader) == (Role.FOLLOWER, 9, NOBODY)

    def test_stale_requests_are_refused_with_our_term(self) -> None:
        raft, group = follower(term=5)
        raft.step(Append(GROUP, 2, 1, 4, 3, 3, 0, ()))
        raft.step(Heartbeat(GROUP, 2, 1, 4, 0))
        raft.step(Vote(GROUP, 3, 1, 4, 9, 9))
        raft.step(Vote(GROUP, 3, 1, 4, 9, 9, pre=True))
        group.work()
        assert group.take() == [
            AppendReply(GROUP, 1, 2, 5, 3, True),
            HeartbeatReply(GROUP, 1, 2, 5),
            VoteReply(GROUP, 1, 3, 5, False),
            VoteReply(GROUP, 1, 3, 5, False, True),
        ]

    def test_stale_answers_are_ignored(self) -> None:
        raft, group = follower(term=5)
        for message in (
            AppendReply(GROUP, 2, 1, 4, 0),
            HeartbeatReply(GROUP, 2, 1, 4),
            VoteReply(GROUP, 2, 1, 4, True),
            TimeoutNow(GROUP, 2, 1, 4),
        ):
            raft.step(message)
        assert not raft.has_ready()
        assert group.take() == []

    def test_messages_for_others_and_answers_of_strangers_change_nothing(self) -> None:
        raft, _ = follower()
        raft.step(Heartbeat(GROUP, 2, 3, 7, 0))
        raft.step(Heartbeat(GROUP, 1, 1, 7, 0))
        raft.step(HeartbeatReply(GROUP, 9, 1, 7))
        raft.step(AppendReply(GROUP, 9, 1, 7, 0, True))
        raft.step(VoteReply(GROUP, 9, 1, 7, False))
        assert raft.term == 1
        assert not raft.has_ready()

    def test_a_leader_that_we_have_never_heard_of_is_followed(self) -> None:
        """§6: it may know a newer configuration than we do."""
        raft, _ = follower()
        raft.step(Heartbeat(GROUP, 9, 1, 7, 0))
        assert (raft.role, raft.term, raft.leader) == (Role.FOLLOWER, 7, 9)

    def test_a_message_of_another_group_is_a_bug(self) -> None:
        raft, _ = follower()
        with pytest.raises(AssertionError):
            raft.step(Heartbeat(GROUP + 1, 2, 1, 1, 0))

    def test_two_leaders_in_one_term_are_a_bug(self) -> None:
        group = Group()
        raft = group.elect(1)
        with pytest.raises(AssertionError, match="two leaders"):
            raft.step(Heartbeat(GROUP, 2, 1, raft.term, 0))


class TestStart:
    def test_a_replica_starts_as_a_follower_with_what_its_disk_holds(self) -> None:
        image = log_of([1, 1, 4])
        image.hard_state = HardState(6, 3)
        image.applied = 2
        raft = Group(images={1: image}).raft(1)
        assert (raft.role, raft.term, raft.vote, raft.leader) == (Role.FOLLOWER, 6, 3, NOBODY)
        assert (raft.last_index, raft.commit, raft.applied) == (3, 2, 2)
        assert not raft.has_ready()

    def test_a_group_of_one_leads_itself_once_its_vote_is_durable(self) -> None:
        group = Group([1])
        replica = group[1]
        replica.slow = True
        replica.raft.campaign()
        replica.work()
        assert role_of(replica.raft) is Role.CANDIDATE
        replica.persist()
        assert role_of(replica.raft) is Role.LEADER
        replica.work()
        assert replica.raft.commit == 0, "nor is anything committed before it is durable"
        replica.persist()
        assert replica.raft.commit == 1


class TestElection:
    """§5.2"""

    def test_a_follower_campaigns_after_a_silent_election_timeout(self) -> None:
        raft, _ = follower()
        for _ in range(9):
            raft.tick()
        assert role_of(raft) is Role.FOLLOWER
        raft.tick()
        assert role_of(raft) is Role.PRE_CANDIDATE

    def test_a_heartbeat_starts_the_timeout_again(self) -> None:
        raft, _ = follower(leader=2)
        for _ in range(30):
            raft.tick()
            raft.step(Heartbeat(GROUP, 2, 1, 1, 0))
        assert role_of(raft) is Role.FOLLOWER

    def test_timeouts_are_drawn_anew_between_one_and_two_election_timeouts(self) -> None:
        group = Group(randoms={1: Random(1)})
        raft = group.raft(1)
        seen = set()
        for term in range(1, 2_000):
            raft.step(Heartbeat(GROUP, 2, 1, term, 0))
            ticks = 0
            while raft.role is Role.FOLLOWER:
                raft.tick()
                ticks += 1
            seen.add(ticks)
        assert seen == set(range(10, 20))

    @pytest.mark.parametrize(("size", "needed"), [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2)])
    def test_a_candidate_wins_with_the_votes_of_a_majority(self, size: int, needed: int) -> None:
        group = Group(range(1, size + 1))
        raft = group.raft(1)
        raft.step(TimeoutNow(GROUP, 2, 1, 0)) if size > 1 else raft.campaign()
        group[1].work()
        for voter in range(2, 2 + needed):
            assert role_of(raft) is Role.CANDIDATE
            raft.step(VoteReply(GROUP, voter, 1, 1, True))
        assert role_of(raft) is Role.LEADER
        assert raft.leader == 1

    def test_a_candidate_that_a_majority_refuses_follows_again(self) -> None:
        group = Group()
        raft = group.raft(1)
        raft.step(TimeoutNow(GROUP, 2, 1, 0))
        group[1].work()
        raft.step(VoteReply(GROUP, 2, 1, 1, False))
        raft.step(VoteReply(GROUP, 2, 1, 1, False))
        assert role_of(raft) is Role.CANDIDATE, "one voter counts once"
        raft.step(VoteReply(GROUP, 3, 1, 1, False))
        assert (raft.role, raft.term, raft.vote) == (Role.FOLLOWER, 1, 1)

    def test_one_vote_is_given_a_term_and_given_again_to_the_same(self) -> None:
        raft, group = follower(term=1)
        for candidate, granted in ((2, True), (3, False), (2, True)):
            raft.step(Vote(GROUP, candidate, 1, 1, 0, 0))
            group.work()
            assert votes_of(group) == [VoteReply(GROUP, 1, candidate, 1, granted)]
        raft.step(Vote(GROUP, 3, 1, 2, 0, 0))
        group.work()
        assert votes_of(group) == [VoteReply(GROUP, 1, 3, 2, True)]

    def test_a_vote_is_answered_when_it_is_durable(self) -> None:
        raft, group = follower()
        group[1].slow = True
        raft.step(Vote(GROUP, 2, 1, 2, 0, 0))
        ready = group[1].take()
        assert ready.hard_state == HardState(2, 2)
        assert ready.messages == ()
        assert ready.messages_after_persist == (VoteReply(GROUP, 1, 2, 2, True),)

    def test_a_candidate_asks_when_its_own_vote_is_durable(self) -> None:
        """It would else forget its term in a crash, ask again in it, and lead it twice."""
        raft, group = follower()
        raft.step(TimeoutNow(GROUP, 2, 1, 1))
        ready = group[1].take()
        assert ready.hard_state == HardState(2, 1)
        assert ready.messages == ()
        assert ready.messages_after_persist == (
            Vote(GROUP, 1, 2, 2, 0, 0, transfer=True),
            Vote(GROUP, 1, 3, 2, 0, 0, transfer=True),
            VoteReply(GROUP, 1, 1, 2, True),
        )

    def test_a_candidate_follows_the_leader_of_its_term(self) -> None:
        raft, group = follower()
        raft.step(TimeoutNow(GROUP, 2, 1, 1))
        group.work()
        raft.step(Heartbeat(GROUP, 3, 1, 2, 0))
        assert (raft.role, raft.term, raft.leader, raft.vote) == (Role.FOLLOWER, 2, 3, 1)

    def test_a_vote_starts_the_timeout_again_and_a_refusal_does_not(self) -> None:
        raft, _ = follower()
        for _ in range(9):
            raft.tick()
        raft.step(Vote(GROUP, 2, 1, 1, 0, 0))
        raft.tick()
        assert role_of(raft) is Role.FOLLOWER
        for _ in range(8):
            raft.tick()
        raft.step(Vote(GROUP, 3, 1, 1, 0, 0))
        raft.tick()
        assert role_of(raft) is Role.PRE_CANDIDATE

    def test_a_learner_never_campaigns(self) -> None:
        group = Group([1, 2], [3])
        for _ in range(100):
            group.raft(3).tick()
        group.raft(3).step(TimeoutNow(GROUP, 1, 3, 0))
        assert group.raft(3).role is Role.FOLLOWER
        assert not group.raft(3).has_ready()

    def test_nobody_asks_a_learner(self) -> None:
        group = Group([1, 2], [3])
        group.raft(1).campaign()
        group.work()
        assert [message.target for message in group.network] == [2]


class TestElectionRestriction:
    """§5.4.1"""

    @pytest.mark.parametrize("pre", [False, True])
    @pytest.mark.parametrize(
        ("last_term", "last_index", "granted"),
        [
            (1, 9, False),  # longer, but of an older term
            (2, 2, False),  # of the same term, but shorter
            (2, 3, True),
            (2, 4, True),
            (3, 1, True),  # shorter, but of a newer term
        ],
    )
    def test_only_an_up_to_date_log_gets_a_vote(
        self, last_term: int, last_index: int, granted: bool, pre: bool
    ) -> None:
        group = Group(images={1: log_of([1, 1, 2])})
        group.raft(1).step(Vote(GROUP, 2, 1, 4, last_index, last_term, pre))
        group.work()
        term = 2 if pre and not granted else 4
        assert votes_of(group) == [VoteReply(GROUP, 1, 2, term, granted, pre)]

    def test_a_replica_that_lacks_committed_entries_cannot_lead(self) -> None:
        group = Group()
        raft = group.elect(1)
        group.isolate(3)
        raft.propose(b"x")
        group.stabilize()
        assert raft.commit == 2
        group.heal()
        for replica in (1, 2):
            group.raft(replica).step_down()
            group.raft(replica).leader_lost()
        group.raft(3).campaign()
        group.stabilize()
        assert group.raft(3).role is Role.FOLLOWER


class TestPreVote:
    """D §9.6"""

    def test_a_rehearsal_changes_nobody_s_term_or_vote(self) -> None:
        group = Group()
        group.raft(1).campaign()
        group[1].work()
        assert role_of(group.raft(1)) is Role.PRE_CANDIDATE
        group.deliver(1)
        assert [(r.raft.term, r.raft.vote) for r in group] == [(0, 0)] * 3
        assert not any(r.disk.pending for r in group)

    def test_a_rehearsal_need_not_wait_for_the_disk(self) -> None:
        group = Group()
        group.raft(1).campaign()
        ready = group.raft(1).ready()
        assert ready.messages == (
            Vote(GROUP, 1, 2, 1, 0, 0, pre=True),
            Vote(GROUP, 1, 3, 1, 0, 0, pre=True),
        )
        assert not ready.writes
        assert ready.messages_after_persist == ()

    def test_a_replica_that_was_cut_off_disturbs_nobody_when_it_returns(self) -> None:
        group = Group()
        group.elect(1)
        group.isolate(3)
        group.tick(100)
        assert group.raft(3).role is Role.PRE_CANDIDATE
        group.heal()
        group.tick(30)
        assert role_of(group.raft(1)) is Role.LEADER
        assert {r.raft.term for r in group} == {1}
        assert group.raft(3).leader == 1

    def test_answers_of_an_older_rehearsal_do_not_count(self) -> None:
        raft, _ = follower(term=5)
        raft.campaign()
        raft.step(VoteReply(GROUP, 2, 1, 5, True, pre=True))
        raft.step(VoteReply(GROUP, 3, 1, 7, True, pre=True))
        assert role_of(raft) is Role.PRE_CANDIDATE
        raft.step(VoteReply(GROUP, 2, 1, 6, True, pre=True))
        assert role_of(raft) is Role.CANDIDATE

    def test_a_refusal_of_a_higher_term_is_followed(self) -> None:
        raft, _ = follower(term=1)
        raft.campaign()
        raft.step(VoteReply(GROUP, 2, 1, 4, False, pre=True))
        assert (raft.role, raft.term) == (Role.FOLLOWER, 4)

    def test_a_rehearsal_that_a_majority_refuses_is_over(self) -> None:
        raft, _ = follower(term=1)
        raft.campaign()
        raft.step(VoteReply(GROUP, 2, 1, 1, False, pre=True))
        raft.step(VoteReply(GROUP, 3, 1, 1, False, pre=True))
        assert (raft.role, raft.term) == (Role.FOLLOWER, 1)

    def test_many_may_be_encouraged_in_one_term(self) -> None:
        raft, group = follower(term=1)
        raft.step(Vote(GROUP, 2, 1, 2, 0, 0, pre=True))
        raft.step(Vote(GROUP, 3, 1, 2, 0, 0, pre=True))
        group.work()
        assert [vote.granted for vote in votes_of(group)] == [True, True]

    def test_a_replica_with_a_higher_term_and_an_old_log_cannot_stall_the_group(self) -> None:
        """1 and 2 have the entry, 3 the higher term: one of the two leads in a term above it."""
        images = {1: log_of([1]), 2: log_of([1]), 3: Image()}
        images[3].hard_state = HardState(9, 3)
        group = Group(images=images)
        group.isolate(1)
        group.tick(100)
        leader = group.raft(2)
        assert leader.role is Role.LEADER
        assert leader.term > 9


class TestLeases:
    """D §4.2.3 and §6.2, and what happens when the leader's node is seen to go."""

    @pytest.mark.parametrize("pre", [False, True])
    def test_who_hears_a_leader_ignores_campaigns(self, pre: bool) -> None:
        raft, group = follower(leader=2)
        raft.step(Vote(GROUP, 3, 1, 8, 9, 9, pre))
        assert not raft.has_ready()
        assert raft.term == 1
        for _ in range(CONFIG.election_ticks - 1):
            raft.tick()
        raft.step(Vote(GROUP, 3, 1, 8, 9, 9, pre))
        assert raft.term == 1
        raft.leader = 2
        raft._timeout = 100
        raft.tick()
        raft.step(Vote(GROUP, 3, 1, 8, 9, 9, pre))
        group.work()
        assert votes_of(group) == [VoteReply(GROUP, 1, 3, 8, True, pre)]

    def test_a_leader_ignores_campaigns_as_well(self) -> None:
        group = Group()
        raft = group.elect(1)
        raft.step(Vote(GROUP, 3, 1, 8, 9, 9))
        assert (raft.role, raft.term) == (Role.LEADER, 1)

    def test_a_transfer_breaks_the_lease(self) -> None:
        raft, group = follower(leader=2)
        raft.step(Vote(GROUP, 3, 1, 2, 0, 0, transfer=True))
        group.work()
        assert votes_of(group) == [VoteReply(GROUP, 1, 3, 2, True)]

    def test_a_lost_leader_ends_the_lease_and_keeps_term_and_vote(self) -> None:
        raft, group = follower(term=4, leader=2, vote=2)
        raft.leader_lost()
        assert (raft.term, raft.vote, raft.leader) == (4, 2, NOBODY)
        assert group[1].take().role_changed
        raft.step(Vote(GROUP, 3, 1, 5, 0, 0, pre=True))
        group.work()
        assert votes_of(group) == [VoteReply(GROUP, 1, 3, 5, True, pre=True)]

    def test_a_leader_thought_lost_is_followed_when_it_speaks(self) -> None:
        raft, _ = follower(leader=2)
        raft.leader_lost()
        raft.step(Heartbeat(GROUP, 2, 1, 1, 0))
        assert raft.leader == 2

    def test_a_leader_does_not_lose_itself(self) -> None:
        group = Group()
        raft = group.elect(1)
        raft.leader_lost()
        assert raft.leader == 1

    def test_after_the_leader_s_node_broke_a_new_one_is_elected_without_a_timeout(self) -> None:
        group = Group()
        group.elect(1)
        group.isolate(1)
        for replica in (2, 3):
            group.raft(replica).leader_lost()
        group.raft(3).campaign()
        group.stabilize()
        assert group.raft(3).role is Role.LEADER
        assert group.raft(3).term == 2

    def test_one_broken_stream_alone_deposes_nobody(self) -> None:
        group = Group()
        group.elect(1)
        group.raft(3).leader_lost()
        group.raft(3).campaign()
        group.stabilize()
        assert role_of(group.raft(1)) is Role.LEADER
        group.tick()
        assert group.raft(3).leader == 1


class TestCheckQuorum:
    """D §6.2"""

    def test_a_leader_that_hears_no_quorum_steps_down(self) -> None:
        group = Group()
        raft = group.elect(1)
        group.isolate(1)
        group.tick(2 * CONFIG.election_ticks, 1)
        assert (raft.role, raft.term) == (Role.FOLLOWER, 1)

    def test_it_does_so_within_two_election_timeouts_of_the_last_answer(self) -> None:
        group = Group()
        raft = group.elect(1)
        group.tick(5)
        group.isolate(1)
        ticks = 0
        while raft.role is Role.LEADER:
            group.tick(1, 1)
            ticks += 1
        assert CONFIG.election_ticks <= ticks <= 2 * CONFIG.election_ticks

    def test_half_of_the_group_is_no_quorum(self) -> None:
        group = Group([1, 2, 3, 4])
        raft = group.elect(1)
        group.isolate(1, 2)
        group.tick(20, 1, 2)
        assert role_of(raft) is Role.FOLLOWER

    def test_a_quorum_keeps_it(self) -> None:
        group = Group()
        raft = group.elect(1)
        group.isolate(3)
        group.tick(100, 1, 2)
        assert role_of(raft) is Role.LEADER

    def test_learners_do_not_keep_it(self) -> None:
        group = Group([1, 2, 3], [4, 5])
        raft = group.elect(1)
        group.isolate(1, 4, 5)
        group.tick(20, 1, 4, 5)
        assert role_of(raft) is Role.FOLLOWER

    def test_a_group_of_one_keeps_itself(self) -> None:
        group = Group([1])
        raft = group.elect(1)
        group.tick(100)
        assert role_of(raft) is Role.LEADER
        assert group.network == []


class TestSteppingDown:
    def test_a_leader_gives_up_without_a_new_term(self) -> None:
        group = Group()
        raft = group.elect(1)
        raft.step_down()
        assert (raft.role, raft.term, raft.vote, raft.leader) == (Role.FOLLOWER, 1, 1, NOBODY)
        raft.step(AppendReply(GROUP, 2, 1, 1, 1))
        raft.step(HeartbeatReply(GROUP, 2, 1, 1, 9))
        assert group[1].take().messages == ()

    def test_another_leads_after_it(self) -> None:
        group = Group()
        group.elect(1).step_down()
        group.tick(40)
        leaders = [r.raft for r in group if r.raft.role is Role.LEADER]
        assert [leader.term for leader in leaders] == [2]


@pytest.mark.parametrize("seed", range(10))
def test_a_silent_group_elects_one_leader(seed: int) -> None:
    config = RaftConfig(heartbeat_ticks=1, election_ticks=10)
    group = Group(
        range(1, 6), config=config, randoms={n: Random(seed * 10 + n) for n in range(1, 6)}
    )
    group.tick(100)
    assert [r.raft.role for r in group].count(Role.LEADER) == 1
    assert len({r.raft.leader for r in group}) == 1


def test_the_new_leader_begins_its_term_with_an_empty_entry() -> None:
    """§8"""
    group = Group(images={1: log_of([1, 1])})
    raft = group.elect(1)
    assert group[1].disk.written.entries[-1] == Entry(2, 3)
    assert (raft.term_start, raft.commit) == (3, 3)
    assert raft.committed_in_term
