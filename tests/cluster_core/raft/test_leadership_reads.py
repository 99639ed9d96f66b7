"""Linearizable reads: dissertation §6.4."""

from __future__ import annotations

import pytest

from cluster_core.raft import NotLeading, ReadState, Role
from cluster_core.wire.messages import (
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    TimeoutNow,
    VoteReply,
)
from tests.cluster_core.raft.replicas import GROUP, Group


def heartbeats(group: Group) -> list[Heartbeat]:
    return [m for m in group.network if isinstance(m, Heartbeat)]


def test_a_read_is_confirmed_by_a_quorum_that_was_asked_after_it() -> None:
    group = Group(range(1, 6))
    raft = group.elect(1)
    raft.read_index(77)
    group[1].work()
    assert [m.round for m in heartbeats(group)] == [1, 1, 1, 1]
    raft.step(HeartbeatReply(GROUP, 2, 1, 1, 0))
    raft.step(HeartbeatReply(GROUP, 2, 1, 1, 1))
    raft.step(HeartbeatReply(GROUP, 2, 1, 1, 1))
    assert group[1].take().reads == ()
    raft.step(HeartbeatReply(GROUP, 3, 1, 1, 1))
    assert group[1].take().reads == (ReadState(77, 1),)


def test_reads_before_one_ready_share_a_round_of_heartbeats() -> None:
    group = Group()
    raft = group.elect(1)
    for context in range(5):
        raft.read_index(context)
    group[1].work()
    assert len(heartbeats(group)) == 2
    group.stabilize()
    assert group[1].reads == dict.fromkeys(range(5), 1)


def test_a_round_confirms_earlier_ones_whose_heartbeats_were_lost() -> None:
    group = Group()
    raft = group.elect(1)
    raft.read_index(1)
    group[1].work()
    group.take()
    raft.propose(b"x")
    group.stabilize()
    raft.read_index(2)
    group.stabilize()
    assert group[1].reads == {1: 1, 2: 2}


def test_lost_heartbeats_are_repeated_at_the_next_tick() -> None:
    group = Group()
    raft = group.elect(1)
    raft.read_index(1)
    group[1].work()
    group.take()
    group.tick()
    assert group[1].reads == {1: 1}


def test_reads_wait_for_an_entry_of_the_leader_s_own_term() -> None:
    """§8: a new leader does not know yet how far its predecessors committed."""
    group = Group()
    raft = group.raft(1)
    raft.step(TimeoutNow(GROUP, 2, 1, 0))
    group[1].work()
    raft.step(VoteReply(GROUP, 2, 1, 1, True))
    group[1].work()
    group.take()
    raft.read_index(5)
    assert not raft.has_ready()
    raft.step(HeartbeatReply(GROUP, 2, 1, 1, 0))
    group[1].work()
    assert heartbeats(group) == []
    raft.step(AppendReply(GROUP, 2, 1, 1, 1))
    group[1].work()
    assert [m.round for m in heartbeats(group)] == [1, 1]
    raft.step(HeartbeatReply(GROUP, 3, 1, 1, 1))
    assert group[1].take().reads == (ReadState(5, 1),)


def test_a_group_of_one_answers_at_once() -> None:
    group = Group([1], [2])
    raft = group.elect(1)
    raft.read_index(3)
    ready = group[1].take()
    assert ready.reads == (ReadState(3, 1),)
    assert ready.messages == ()


def test_learners_confirm_nothing() -> None:
    group = Group([1, 2, 3], [4, 5])
    raft = group.elect(1)
    group.isolate(1, 4, 5)
    raft.read_index(3)
    group.tick(2)
    assert group[1].reads == {}


def test_only_a_leader_starts_a_read() -> None:
    group = Group()
    group.elect(1)
    with pytest.raises(NotLeading):
        group.raft(2).read_index(1)


def test_a_deposed_leader_confirms_nothing_and_names_what_it_lost() -> None:
    group = Group()
    raft = group.elect(1)
    group.isolate(1)
    raft.read_index(1)
    group[1].work()
    raft.read_index(2)
    for replica in (2, 3):
        group.raft(replica).leader_lost()
    group.raft(2).campaign()
    group.stabilize()
    assert group.raft(2).role is Role.LEADER
    group.raft(2).propose(b"newer")
    group.stabilize()
    group.heal()
    group.tick(2)
    assert group[1].reads == {}
    assert group[1].reads_lost == [1, 2]


def test_a_confirmation_of_an_older_term_does_not_count() -> None:
    group = Group()
    raft = group.elect(1)
    raft.read_index(1)
    group[1].work()
    group.take()
    raft.step_down()
    for replica in (2, 3):
        group.raft(replica).leader_lost()
    group.elect(1)
    raft.read_index(2)
    group[1].work()
    raft.step(HeartbeatReply(GROUP, 2, 1, 1, 2))
    assert group[1].take().reads == ()
    group.stabilize()
    assert group[1].reads == {2: 2}
    assert group[1].reads_lost == [1]


def test_a_confirmed_read_survives_the_loss_of_leadership() -> None:
    group = Group()
    raft = group.elect(1)
    raft.read_index(1)
    group[1].work()
    raft.step(HeartbeatReply(GROUP, 2, 1, 1, 1))
    raft.step_down()
    ready = group[1].take()
    assert ready.reads == (ReadState(1, 1),)
    assert ready.reads_lost == ()


class TestReplies:
    """A heartbeat that changes nothing is answered without a Ready."""

    def test_the_answer_to_a_heartbeat_is_all_that_is_due(self) -> None:
        group = Group()
        group.elect(1)
        follower = group.raft(2)
        follower.step(Heartbeat(GROUP, 1, 2, follower.term, follower.commit, 9))
        assert follower.take_replies() == (HeartbeatReply(GROUP, 2, 1, follower.term, 9),)
        assert not follower.has_ready()
        assert follower.take_replies() == ()

    def test_with_anything_else_due_it_waits_for_the_ready(self) -> None:
        group = Group()
        group.elect(1)
        follower = group.raft(2)
        term = follower.term + 1
        follower.step(Heartbeat(GROUP, 1, 2, term, follower.commit, 9))
        assert follower.take_replies() == ()
        ready = follower.ready()
        assert ready.hard_state is not None
        assert ready.messages == (HeartbeatReply(GROUP, 2, 1, term, 9),)
