"""Replication: Raft §5.3, §5.4.2; dissertation §10.2.1 (writing in parallel)."""

from __future__ import annotations

import pytest

from cluster_core.config import RaftConfig
from cluster_core.raft import Raft, Role
from cluster_core.wire.messages import (
    CHECKPOINT,
    Append,
    AppendReply,
    Entry,
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
