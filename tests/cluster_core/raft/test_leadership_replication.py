"""What a leader takes and sends: Raft §5.3; dissertation §10.2.1 (pipelining)."""

from __future__ import annotations

import pytest

from cluster_core.config import RaftConfig
from cluster_core.raft import ProposalRefused, Raft, Refusal
from cluster_core.raft.log import entry_bytes
from cluster_core.wire.messages import (
    Append,
    AppendReply,
    Commit,
    Entry,
    Heartbeat,
    HeartbeatReply,
    TimeoutNow,
    VoteReply,
)
from tests.cluster_core.raft.replicas import (
    GROUP,
    Group,
    data_of,
    log_of,
)


def appends(group: Group, target: int | None = None) -> list[Append]:
    return [m for m in group.take(1, target) if isinstance(m, Append)]


def leader_of(group: Group) -> Raft:
    """Replica 1 as the leader of a group at rest."""
    return group.elect(1)


class TestProposals:
    """§5.3"""

    def test_an_entry_is_committed_when_a_majority_has_it_and_applied_everywhere(self) -> None:
        group = Group(range(1, 6))
        raft = leader_of(group)
        assert raft.propose(b"x") == (2, 1)
        group.stabilize()
        assert [data_of(r.applied) for r in group] == [[b"x"]] * 5
        assert [r.raft.commit for r in group] == [2] * 5

    def test_all_proposals_before_a_ready_share_one_append(self) -> None:
        group = Group()
        raft = leader_of(group)
        for n in range(10):
            raft.propose(b"%d" % n)
        ready = group[1].take()
        assert len(ready.entries) == 10
        sent = [m for m in ready.messages if isinstance(m, Append)]
        assert [(m.target, len(m.entries)) for m in sent] == [(2, 10), (3, 10)]

    def test_followers_hear_of_a_commit_without_waiting_for_a_heartbeat(self) -> None:
        group = Group()
        raft = leader_of(group)
        raft.propose(b"x")
        group[1].work()
        group.deliver(1, 2)
        group.deliver(2, 1)
        assert group.take(1, 2) == [Commit(GROUP, 1, 2, 1, 2)]

    def test_only_a_leader_takes_proposals(self) -> None:
        group = Group()
        leader_of(group)
        with pytest.raises(ProposalRefused) as refused:
            group.raft(2).propose(b"x")
        assert refused.value.reason is Refusal.NOT_LEADER
        assert group.raft(2).last_index == 1
        assert not group.raft(2).has_ready()

    def test_an_empty_proposal_is_a_bug(self) -> None:
        group = Group()
        with pytest.raises(AssertionError):
            leader_of(group).propose(b"")

    def test_uncommitted_bytes_are_bounded_and_freed_by_commitment(self) -> None:
        each = entry_bytes(Entry(1, 1, bytes(60)))
        group = Group(config=RaftConfig(uncommitted_bytes_max=2 * each))
        raft = leader_of(group)
        raft.propose(bytes(60))
        assert raft.refusal() is None
        raft.propose(bytes(60))
        assert raft.refusal() is Refusal.TOO_MANY_UNCOMMITTED
        with pytest.raises(ProposalRefused) as refused:
            raft.propose(b"x")
        assert refused.value.reason is Refusal.TOO_MANY_UNCOMMITTED
        assert (raft.last_index, raft.uncommitted_bytes) == (3, 2 * each)
        group.stabilize()
        assert raft.uncommitted_bytes == 0
        raft.propose(bytes(1_000))
        assert raft.last_index == 4, "one is always let in"

    def test_a_new_leader_owes_nothing_for_the_entries_of_others(self) -> None:
        group = Group(images={1: log_of([1] * 5)}, config=RaftConfig(uncommitted_bytes_max=100))
        raft = leader_of(group)
        raft.propose(bytes(100))
        group.stabilize()
        assert (raft.uncommitted_bytes, raft.commit) == (0, 7)


class TestFlowControl:
    """Probe and replicate, and the bounds on what is sent ahead."""

    def test_a_new_leader_probes_one_append_at_a_time(self) -> None:
        group = Group()
        raft = group.raft(1)
        raft.step(TimeoutNow(GROUP, 2, 1, 0))
        group[1].work()
        group.take()
        raft.step(VoteReply(GROUP, 2, 1, 1, True))
        group[1].work()
        assert len(appends(group)) == 2
        raft.propose(b"x")
        group[1].work()
        assert appends(group) == []
        raft.step(AppendReply(GROUP, 2, 1, 1, 1))
        group[1].work()
        assert [(m.target, m.prev_index, len(m.entries)) for m in appends(group)] == [(2, 1, 1)]

    def test_a_heartbeat_answer_lets_the_next_probe_go(self) -> None:
        group = Group()
        raft = leader_of(group)
        group.take()
        raft.peer_unreachable(2)
        raft.propose(b"x")
        group[1].work()
        assert len(appends(group, 2)) == 1
        raft.propose(b"y")
        group[1].work()
        assert appends(group, 2) == []
        raft.tick()
        raft.step(HeartbeatReply(GROUP, 2, 1, 1))
        group[1].work()
        assert [(m.prev_index, len(m.entries)) for m in appends(group, 2)] == [(1, 2)]

    def test_appends_are_pipelined(self) -> None:
        group = Group()
        raft = leader_of(group)
        for index in range(2, 6):
            raft.propose(b"x")
            group[1].work()
            assert [(m.prev_index, len(m.entries)) for m in appends(group, 2)] == [(index - 1, 1)]

    def test_messages_in_flight_are_bounded_by_number(self) -> None:
        group = Group(config=RaftConfig(inflight_messages_max=3))
        raft = leader_of(group)
        for _ in range(10):
            raft.propose(b"x")
            group[1].work()
        assert [len(m.entries) for m in appends(group, 2)] == [1, 1, 1]
        raft.step(AppendReply(GROUP, 2, 1, 1, 2))
        group[1].work()
        resumed = [m for m in appends(group, 2) if m.entries]
        assert [len(m.entries) for m in resumed] == [7], "the rest goes as one"

    def test_messages_in_flight_are_bounded_by_bytes(self) -> None:
        group = Group(config=RaftConfig(inflight_bytes_max=2_000, append_bytes_max=1_000))
        raft = leader_of(group)
        for _ in range(10):
            raft.propose(bytes(900))
        group[1].work()
        assert [len(m.entries) for m in appends(group, 2)] == [1, 1, 1]

    def test_large_batches_are_split(self) -> None:
        each = entry_bytes(Entry(1, 1, bytes(100)))
        group = Group(config=RaftConfig(append_bytes_max=3 * each))
        raft = leader_of(group)
        for _ in range(8):
            raft.propose(bytes(100))
        group[1].work()
        assert [len(m.entries) for m in appends(group, 2)] == [3, 3, 2]

    def test_a_follower_is_told_of_no_more_than_it_has_acknowledged(self) -> None:
        group = Group()
        raft = leader_of(group)
        raft.propose(b"x")
        group[1].work()
        group.deliver(1, 3)
        group.deliver(3, 1)
        assert raft.commit == 2
        assert [type(m) for m in group.take(1, 2)] == [Append], "2 may not have it"
        assert [m.commit for m in group.take(1, 3) if isinstance(m, Commit)] == [2]

    def test_a_lost_append_is_found_by_the_next_one(self) -> None:
        group = Group()
        raft = leader_of(group)
        raft.propose(b"lost")
        group[1].work()
        group.take(1, 2)
        raft.propose(b"next")
        group.stabilize()
        assert [data_of(r.applied) for r in group] == [[b"lost", b"next"]] * 3

    def test_a_lost_last_append_is_found_by_a_heartbeat(self) -> None:
        group = Group()
        raft = leader_of(group)
        group.isolate(2)
        raft.propose(b"lost")
        group.stabilize()
        group.heal()
        assert data_of(group[2].applied) == []
        group.tick()
        assert data_of(group[2].applied) == [b"lost"]

    def test_read_rounds_ask_for_nothing_that_the_last_heartbeat_did_not_ask_for(self) -> None:
        """They come as often as there are reads, while writes are under way."""
        group = Group()
        raft = leader_of(group)
        raft.propose(b"x")
        group[1].work()
        assert len(appends(group, 2)) == 1
        raft.tick()
        for asked in (1, 0, 0):
            raft.step(HeartbeatReply(GROUP, 2, 1, 1))
            group[1].work()
            assert len(appends(group, 2)) == asked

    def test_a_lost_answer_is_asked_for_again(self) -> None:
        group = Group()
        raft = leader_of(group)
        raft.propose(b"x")
        group[1].work()
        group.deliver(1, 2)
        group.isolate(2)
        group.stabilize()
        group.heal()
        assert raft.match_index(2) == 1
        group.tick()
        assert raft.match_index(2) == 2

    def test_a_peer_behind_a_broken_stream_gets_one_probe_until_it_answers(self) -> None:
        group = Group()
        raft = leader_of(group)
        group.isolate(2)
        raft.propose(b"x")
        group.stabilize()
        raft.peer_unreachable(2)
        sent = 0
        for _ in range(20):
            raft.propose(b"y")
            group[1].work()
            sent += len(appends(group, 2))
            group.stabilize()
        assert sent == 1
        group.heal()
        group.tick()
        assert len(data_of(group[2].applied)) == 21

    def test_an_idle_group_sends_heartbeats_and_nothing_else(self) -> None:
        group = Group()
        raft = leader_of(group)
        for _ in range(3):
            raft.tick()
            group[1].work()
            assert group.network == [
                Heartbeat(GROUP, 1, 2, 1, 1, 0, 1),
                Heartbeat(GROUP, 1, 3, 1, 1, 0, 1),
            ]
            group.stabilize()

    def test_heartbeats_commit_no_more_than_the_peer_surely_has(self) -> None:
        group = Group()
        raft = leader_of(group)
        group.isolate(2)
        raft.propose(b"x")
        group.stabilize()
        raft.tick()
        group[1].work()
        assert [(m.target, m.commit) for m in group.take(1) if isinstance(m, Heartbeat)] == [
            (2, 1),
            (3, 2),
        ]
