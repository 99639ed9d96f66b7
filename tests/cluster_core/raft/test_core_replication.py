"""Replication: Raft §5.3, §5.4.2; dissertation §10.2 (pipelining, writing in parallel)."""

from __future__ import annotations

import pytest

from cluster_core.config import RaftConfig
from cluster_core.raft import ProposalRefused, Raft, Refusal, Role
from cluster_core.raft.log import entry_bytes
from cluster_core.wire.messages import (
    CHECKPOINT,
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
    Disk,
    Group,
    Image,
    data_of,
    log_of,
    terms_of,
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


class TestCommitment:
    """§5.4.2, figure 8"""

    def test_an_entry_of_an_older_term_is_not_committed_by_counting(self) -> None:
        group = Group(images={1: log_of([1, 2])})
        raft = group.raft(1)
        raft.step(TimeoutNow(GROUP, 2, 1, 2))
        group[1].work()
        raft.step(VoteReply(GROUP, 2, 1, 3, True))
        group[1].work()
        raft.step(AppendReply(GROUP, 2, 1, 3, 2))
        assert raft.commit == 0, "entry 2 is on a majority, but of term 2"
        assert not raft.committed_in_term
        raft.step(AppendReply(GROUP, 2, 1, 3, 3))
        assert raft.commit == 3, "with the first of our own, all before it"
        assert raft.committed_in_term

    def test_the_leader_counts_its_own_copy_only_when_it_is_durable(self) -> None:
        """D §10.2.1"""
        group = Group()
        raft = leader_of(group)
        group[1].slow = True
        raft.propose(b"x")
        group[1].work()
        group.deliver(1, 2)
        group.deliver(2, 1)
        assert raft.commit == 1
        group[1].persist()
        assert raft.commit == 2

    def test_an_entry_may_be_committed_before_it_is_durable_at_the_leader(self) -> None:
        group = Group()
        raft = leader_of(group)
        group[1].slow = True
        raft.propose(b"x")
        group.stabilize()
        assert raft.commit == 2
        assert data_of(group[1].applied) == [b"x"]
        assert group[1].disk.durable.entries[-1].index == 1

    def test_a_follower_acknowledges_what_is_durable(self) -> None:
        group = Group()
        raft = leader_of(group)
        group[2].slow = True
        raft.propose(b"x")
        group[1].work()
        group.deliver(1, 2)
        assert group.take(2) == []
        group[2].persist()
        assert group.take(2) == [AppendReply(GROUP, 2, 1, 1, 2)]

    def test_a_repeated_append_is_not_acknowledged_before_the_first_one_is_durable(self) -> None:
        group = Group()
        raft = leader_of(group)
        group[2].slow = True
        raft.propose(b"x")
        group[1].work()
        (append,) = appends(group, 2)
        group.raft(2).step(append)
        assert group[2].take().writes
        group.raft(2).step(append)
        second = group[2].take()
        assert not second.writes
        assert second.messages == ()
        assert second.messages_after_persist == (AppendReply(GROUP, 2, 1, 1, 2),)

    def test_several_readys_may_be_on_their_way_to_the_disk(self) -> None:
        group = Group([1])
        raft = leader_of(group)
        group[1].slow = True
        for n in range(3):
            raft.propose(b"%d" % n)
            group[1].take()
        assert [len(item.ready.entries) for item in group[1].outstanding] == [1, 1, 1]
        group[1].persist(1)
        assert raft.commit == 2
        group[1].persist(2)
        assert raft.commit == 4

    def test_a_commit_index_names_nothing_beyond_what_the_message_carries(self) -> None:
        group = Group(config=RaftConfig(append_bytes_max=1))
        raft = leader_of(group)
        group.isolate(3)
        for _ in range(3):
            raft.propose(b"x")
            group.stabilize()
        group.heal()
        raft.peer_unreachable(3)
        group.tick()
        assert group.raft(3).commit == raft.commit == 4

    def test_learners_receive_everything_and_count_for_nothing(self) -> None:
        group = Group([1, 2], [3, 4])
        raft = leader_of(group)
        group.isolate(2)
        raft.propose(b"x")
        group.stabilize()
        assert raft.commit == 1
        assert raft.match_index(3) == 2
        group.heal()
        group.tick()
        assert [data_of(r.applied) for r in group] == [[b"x"]] * 4


class TestConsistency:
    """§5.3, figure 7: whatever the followers hold, the leader's log wins."""

    LEADER = (1, 1, 1, 4, 4, 5, 5, 6, 6, 6)

    @pytest.mark.parametrize(
        "terms",
        [
            (1, 1, 1, 4, 4, 5, 5, 6, 6),
            (1, 1, 1, 4),
            (1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6),
            (1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7),
            (1, 1, 1, 4, 4, 4, 4),
            (1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3),
            (),
        ],
        ids=["a", "b", "c", "d", "e", "f", "empty"],
    )
    def test_a_follower_s_log_is_made_like_the_leader_s(self, terms: tuple[int, ...]) -> None:
        images = {1: log_of(self.LEADER), 2: log_of(terms), 3: log_of(self.LEADER)}
        images[1].hard_state = images[3].hard_state = log_of([7]).hard_state
        group = Group(images=images)
        if terms and terms[-1] == 7:
            group.isolate(2)
        raft = group.raft(1)
        raft.step(TimeoutNow(GROUP, 3, 1, 7))
        group.stabilize()
        group.heal()
        group.tick()
        assert raft.role is Role.LEADER
        assert terms_of(group[2]) == [*self.LEADER, 8]
        assert group.raft(2).commit == raft.commit == 11

    def test_a_long_divergence_costs_a_round_for_each_term_not_for_each_entry(self) -> None:
        leader, other = [1] * 10 + [5] * 1_000, [1] * 10 + [2] * 400 + [3] * 400
        images = {1: log_of(leader), 2: log_of(other), 3: log_of(leader)}
        group = Group(images=images)
        raft = group.raft(1)
        raft.campaign()
        rejections = 0
        while group.raft(2).last_index != raft.last_index or raft.role is not Role.LEADER:
            group.work()
            rejections += sum(
                isinstance(m, AppendReply) and m.reject and m.source == 2 for m in group.deliver()
            )
        assert rejections == 1
        assert terms_of(group[2]) == terms_of(group[1])

    def test_a_rejection_reads_a_logarithm_of_terms_from_the_store(self) -> None:
        group = Group(images={1: log_of([1] * 10 + [2] * 5_000)})
        disk: Disk = group[1].disk
        disk.term_reads = 0
        group.raft(1).step(Append(GROUP, 2, 1, 9, 5_005, 1, 0, ()))
        (reply,) = group.raft(1).ready().messages
        assert reply == AppendReply(GROUP, 1, 2, 9, 5_005, True, 10, 1)
        assert disk.term_reads < 20

    def test_an_append_below_the_commit_index_is_answered_with_it(self) -> None:
        group = Group()
        raft = leader_of(group)
        raft.propose(b"x")
        group.stabilize()
        group.raft(2).step(Append(GROUP, 1, 2, 1, 0, 0, 0, (Entry(1, 1),)))
        group.work()
        assert group.take(2) == [AppendReply(GROUP, 2, 1, 1, 2)]

    def test_entries_of_a_deposed_leader_are_replaced(self) -> None:
        group = Group()
        raft = leader_of(group)
        group.isolate(1)
        raft.propose(b"lost")
        group[1].work()
        group.tick(30)
        group.heal()
        leader = next(r for r in group if r.raft.role is Role.LEADER)
        leader.raft.propose(b"kept")
        group.stabilize()
        group.tick(5)
        assert [data_of(r.applied) for r in group] == [[b"kept"]] * 3


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
                Heartbeat(GROUP, 1, 2, 1, 1, 0),
                Heartbeat(GROUP, 1, 3, 1, 1, 0),
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


class TestCrash:
    def test_unsynced_entries_are_lost_and_sent_again(self) -> None:
        group = Group()
        raft = leader_of(group)
        group[2].slow = True
        raft.propose(b"x")
        group.stabilize()
        assert group.raft(2).last_index == 2
        group[2].crash()
        assert group.raft(2).last_index == 1
        group[2].slow = False
        group.tick(2)
        assert data_of(group[2].applied) == [b"x"]

    def test_a_restarted_group_recovers_from_its_disks_alone(self) -> None:
        group = Group()
        raft = leader_of(group)
        for n in range(5):
            raft.propose(b"%d" % n)
            group.stabilize()
        for replica in group:
            replica.crash()
        group.network.clear()
        group.tick(30)
        leader = next(r for r in group if r.raft.role is Role.LEADER)
        leader.raft.propose(b"after")
        group.stabilize()
        assert [data_of(r.applied) for r in group] == [[b"0", b"1", b"2", b"3", b"4", b"after"]] * 3

    def test_a_large_log_is_applied_in_portions_after_a_restart(self) -> None:
        image = log_of([1] * 100)
        group = Group([1], images={1: image}, config=RaftConfig(apply_bytes_max=50))
        group.raft(1).campaign()
        portions = []
        group[1].on_ready = lambda _, ready: portions.append(len(ready.committed))
        group.stabilize()
        assert sum(portions) == 101
        assert max(portions) < 50

    def test_a_disk_that_applied_what_its_log_lacks_is_a_bug(self) -> None:
        image = Image()
        image.state = [Entry(1, 1)]
        with pytest.raises(AssertionError):
            Group(images={1: image})


def test_a_checkpoint_is_the_last_entry_that_is_applied_at_once() -> None:
    """So the host may look at the state machine as it is right behind it."""
    group = Group([1])
    raft = group.elect(1)
    for data, kind in ((b"a", 0), (b"compare", CHECKPOINT), (b"b", 0), (b"c", 0)):
        raft.propose(data, kind)
    handed = []
    while raft.has_ready():
        ready = raft.ready()
        if ready.entries:
            raft.persisted(ready.entries[-1].index, ready.entries[-1].term)
        if ready.committed:
            handed.append([entry.data for entry in ready.committed])
            raft.applied_to(ready.committed[-1].index)
    assert handed == [[b"a", b"compare"], [b"b", b"c"]]
