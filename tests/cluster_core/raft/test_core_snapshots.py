"""Log compaction: §7."""

from __future__ import annotations

import pytest

from cluster_core.raft import Change, Configuration, NotLeading, Raft, Role, SnapshotNeeded
from cluster_core.wire.messages import (
    Append,
    AppendReply,
    Entry,
    Heartbeat,
    HeartbeatReply,
    SnapshotOffer,
    TimeoutNow,
    Vote,
    VoteReply,
)
from tests.cluster_core.raft.replicas import (
    CONFIG,
    GROUP,
    Group,
    Image,
    Snapshot,
    data_of,
    log_of,
    role_of,
    terms_of,
)


def write(group: Group, *values: bytes) -> None:
    for value in values:
        group.raft(1).propose(value)
    group.stabilize()


def behind() -> tuple[Group, Raft]:
    """3 lacks entries 2 to 4 of the leader 1, which has dropped them."""
    group = Group()
    raft = group.elect(1)
    group.tick()
    group.isolate(3)
    write(group, b"a", b"b", b"c")
    group.tick(2 * CONFIG.election_ticks)
    assert group[1].truncate() == 4
    group.heal()
    return group, raft


def needing() -> tuple[Group, Raft]:
    """And has told of it; what follows is done by hand."""
    group, raft = behind()
    raft.tick()
    for _ in range(6):
        group.work()
        group.deliver()
    assert group.transfers
    return group, raft


class TestTruncation:
    def test_what_is_applied_and_durable_may_go(self) -> None:
        group = Group()
        raft = group.elect(1)
        write(group, b"a", b"b")
        assert raft.truncation_point(0) == 3
        assert raft.truncation_point(2) == 1
        assert raft.truncation_point(9) == 0
        assert group[1].truncate(1) == 2
        assert (raft.first_index, group.raft(2).first_index) == (3, 1)

    def test_what_is_not_durable_stays_though_it_is_applied(self) -> None:
        group = Group()
        raft = group.elect(1)
        group[1].slow = True
        write(group, b"a")
        group[2].raft.step(Heartbeat(GROUP, 1, 2, 1, 2))
        assert raft.truncation_point(0) == 1

    def test_what_is_not_applied_stays_though_it_is_committed(self) -> None:
        group = Group()
        raft = group.elect(1)
        raft.propose(b"a")
        group[1].take()
        group[1].persist()
        raft.step(AppendReply(GROUP, 2, 1, 1, 2))
        assert raft.commit == 2
        assert raft.truncation_point(0) == 1

    def test_a_follower_that_answers_is_waited_for(self) -> None:
        group = Group()
        raft = group.elect(1)
        group.tick()
        group.isolate(3)
        write(group, b"a", b"b")
        assert raft.truncation_point(0) == 1
        assert raft.truncation_point(0, spare_followers=False) == 3
        group.tick(2 * CONFIG.election_ticks)
        assert raft.truncation_point(0) == 3, "not for ever"

    def test_a_follower_waits_for_another_one_that_answers_its_leader(self) -> None:
        """It may be the next leader, and would have to send a snapshot."""
        group = Group()
        raft = group.elect(1)
        follower = group.raft(2)
        write(group, b"a", b"b")
        assert follower.truncation_point(0) == 0, "it has not heard yet who needs what"
        group.tick()
        assert follower.truncation_point(0) == 3
        group.isolate(3)
        write(group, b"c", b"d")
        group.tick()
        assert (raft.truncation_point(0), follower.truncation_point(0)) == (3, 3)
        assert follower.truncation_point(0, spare_followers=False) == 5
        group.tick(2 * CONFIG.election_ticks)
        assert follower.truncation_point(0) == 5, "not for ever"

    def test_a_new_leader_asks_first_who_needs_what(self) -> None:
        image = log_of([1, 1])
        image.applied = 2
        group = Group(images={1: image})
        raft = group.raft(1)
        raft.step(Heartbeat(GROUP, 2, 1, 1, 2, 0, 2))
        assert raft.truncation_point(0) == 2
        raft.step(TimeoutNow(GROUP, 2, 1, 1))
        group[1].work()
        raft.step(VoteReply(GROUP, 2, 1, 2, True))
        assert role_of(raft) is Role.LEADER
        assert raft.truncation_point(0) == 0

    def test_what_is_dropped_and_not_allowed_is_a_bug(self) -> None:
        group = Group()
        raft = group.elect(1)
        with pytest.raises(AssertionError):
            raft.truncated_to(2)

    def test_a_replica_starts_with_a_truncated_log(self) -> None:
        group = Group()
        raft = group.elect(1)
        write(group, b"a", b"b")
        group.tick()
        group[2].truncate()
        group[2].persist()
        group[2].crash()
        assert (group.raft(2).first_index, group.raft(2).last_index) == (4, 3)
        raft.propose(b"c")
        group.tick(2)
        assert data_of(group[2].applied) == [b"a", b"b", b"c"]

    def test_a_follower_that_backtracks_finds_the_entry_before_the_first(self) -> None:
        """A conflicting suffix begins right behind what was dropped."""
        image = log_of([1, 1, 2, 2])
        image.applied = 2
        group = Group(images={1: log_of([1, 1, 3]), 2: image})
        group[2].truncate(spare_followers=False)
        group.raft(1).step(Vote(GROUP, 3, 1, 4, 9, 9))
        group.elect(1)
        assert terms_of(group[2]) == [3, 5]


class TestTheNeedOfASnapshot:
    def test_a_peer_whose_entries_are_dropped_needs_one_and_gets_it(self) -> None:
        group, raft = behind()
        group.tick(2)
        assert data_of(group[3].applied) == [b"a", b"b", b"c"]
        assert group[3].disk.durable.base == (4, 1)
        write(group, b"d")
        assert group[3].applied == group[1].applied
        assert raft.match_index(3) == 5

    def test_it_is_told_once_with_what_is_applied(self) -> None:
        group, raft = needing()
        assert [transfer.needed for transfer in group.transfers] == [SnapshotNeeded(3, 4)]
        group.deliver()
        raft.propose(b"d")
        group[1].work()
        assert len(group.transfers) == 1

    def test_no_appends_go_to_it_meanwhile_but_heartbeats_do(self) -> None:
        group, raft = needing()
        group.deliver()
        raft.propose(b"d")
        raft.tick()
        group[1].work()
        assert {type(message) for message in group.take(1, 3)} == {Heartbeat}

    def test_the_log_behind_it_stays(self) -> None:
        group, raft = needing()
        raft.propose(b"d")
        raft.propose(b"e")
        group[1].work()
        group.deliver(1, 2)
        group.deliver(2, 1)
        group.work()
        assert raft.applied == 6
        assert raft.truncation_point(0) == 4
        assert raft.truncation_point(0, spare_followers=False) == 4
        raft.snapshot_failed(3)
        assert raft.truncation_point(0, spare_followers=False) == 6

    def test_the_log_behind_it_stays_until_the_target_has_caught_up(self) -> None:
        """Writes that are faster than the transfer must not call for another one."""
        group, raft = needing()
        for value in (b"d", b"e"):
            raft.propose(value)
        group[1].work()
        group.deliver(1, 2)
        group.deliver(2, 1)
        group.work()
        raft.snapshot_finished(3, 4)
        assert raft.truncation_point(0, spare_followers=False) == 4
        raft.step(AppendReply(GROUP, 3, 1, 1, 5))
        assert raft.truncation_point(0, spare_followers=False) == 5
        raft.step(AppendReply(GROUP, 3, 1, 1, 6))
        assert raft.truncation_point(0, spare_followers=False) == 6
        raft.propose(b"f")
        group[1].work()
        group.deliver(1, 2)
        group.deliver(2, 1)
        group.work()
        assert raft.truncation_point(0) == 6
        assert raft.truncation_point(0, spare_followers=False) == 7, "it is like any other now"

    def test_one_that_does_not_answer_is_not_brought_any(self) -> None:
        group, raft = behind()
        group.isolate(3)
        raft.peer_unreachable(3)
        raft.propose(b"d")
        group.tick(3)
        assert group.transfers == []

    def test_after_a_failure_it_takes_an_answered_heartbeat_to_need_another(self) -> None:
        group, raft = needing()
        group.end(group.transfers[0], finished=False)
        raft.propose(b"d")
        group[1].work()
        raft.step(HeartbeatReply(GROUP, 3, 1, 1))
        group[1].work()
        assert group.transfers == [], "that heartbeat was sent before"
        raft.tick()
        group[1].work()
        assert group.transfers == []
        raft.step(HeartbeatReply(GROUP, 3, 1, 1))
        group[1].work()
        assert len(group.transfers) == 1

    def test_a_broken_stream_does_not_end_it(self) -> None:
        group, raft = needing()
        raft.peer_unreachable(3)
        assert raft.truncation_point(0, spare_followers=False) == 4
        raft.propose(b"d")
        group[1].work()
        assert len(group.transfers) == 1

    def test_reports_do_no_harm_late_or_twice_or_to_a_follower(self) -> None:
        group, raft = behind()
        group.tick(2)
        raft.snapshot_finished(3, 4)
        raft.snapshot_failed(3)
        raft.snapshot_failed(9)
        group.raft(2).snapshot_finished(3, 4)
        group.raft(2).snapshot_failed(3)
        write(group, b"d")
        assert group[3].applied == group[1].applied

    def test_only_a_leader_offers_one(self) -> None:
        group, raft = needing()
        assert raft.snapshot_offer(3) == SnapshotOffer(GROUP, 1, 3, 1, 4, 1)
        with pytest.raises(NotLeading):
            group.raft(2).snapshot_offer(3)


class TestTheReceiver:
    def receiver(self, *terms: int) -> tuple[Group, Raft]:
        """Replica 1 of three with a log."""
        group = Group(images={1: log_of(terms)})
        return group, group.raft(1)

    def offer(self, index: int, last_term: int, *, term: int = 9, source: int = 2) -> SnapshotOffer:
        return SnapshotOffer(GROUP, source, 1, term, index, last_term)

    def snapshot(self, offer: SnapshotOffer) -> Snapshot:
        state = tuple(Entry(offer.last_term, n, b"%d" % n) for n in range(1, offer.index + 1))
        return Snapshot(offer, Configuration.of([1, 2, 3]), state)

    def test_an_offer_makes_it_follow_and_keeps_it_quiet(self) -> None:
        group, raft = self.receiver(1)
        for _ in range(30):
            raft.step(self.offer(5, 3))
            raft.tick()
        assert (raft.role, raft.leader, raft.term) == (Role.FOLLOWER, 2, 9)
        group.work()
        assert group[1].disk.durable.hard_state.term == 9

    def test_a_stale_offer_is_refused_with_our_term(self) -> None:
        group, raft = self.receiver(1)
        raft.step(Heartbeat(GROUP, 3, 1, 9, 0))
        group.work()
        group.take()
        raft.step(self.offer(5, 3, term=4))
        group.work()
        assert group.take() == [AppendReply(GROUP, 1, 2, 9, 5, True)]
        assert raft.leader == 3

    def test_what_it_has_committed_it_does_not_want(self) -> None:
        group, raft = self.receiver(1, 1, 1)
        raft._log.commit_to(3)
        offer = self.offer(2, 1)
        raft.step(offer)
        assert not raft.wants(offer)
        assert not raft.begin_restore(offer)
        group.work()
        assert group.take() == [AppendReply(GROUP, 1, 2, 9, 3)]

    def test_a_log_that_has_the_last_entry_keeps_what_follows_it(self) -> None:
        """It may have been acknowledged; and all up to there is committed."""
        group, raft = self.receiver(1, 1, 1, 1)
        offer = self.offer(3, 1)
        raft.step(offer)
        assert not raft.wants(offer)
        assert (raft.commit, raft.last_index) == (3, 4)
        group.work()
        assert group.take() == [AppendReply(GROUP, 1, 2, 9, 3)]

    def test_a_log_that_conflicts_is_gone(self) -> None:
        group, raft = self.receiver(1, 1, 2, 2, 2, 2)
        offer = self.offer(4, 3)
        raft.step(offer)
        group.work()
        assert group[1].install(self.snapshot(offer))
        group[1].persist()
        assert (raft.first_index, raft.last_index, raft.commit, raft.applied) == (5, 4, 4, 4)
        assert terms_of(group[1]) == []
        group.work()
        group.take()
        raft.step(Append(GROUP, 2, 1, 9, 4, 3, 4, (Entry(9, 5, b"x"),)))
        group.work()
        assert group.take() == [AppendReply(GROUP, 1, 2, 9, 5)]

    def test_the_leader_is_told_when_it_is_durable(self) -> None:
        group, raft = self.receiver(1)
        offer = self.offer(4, 3)
        raft.step(offer)
        group.work()
        group[1].slow = True
        group[1].install(self.snapshot(offer))
        group.work()
        assert group.take() == []
        group[1].slow = False
        group[1].persist()
        group.work()
        assert group.take() == [AppendReply(GROUP, 1, 2, 9, 4)]

    def test_meanwhile_it_appends_and_commits_nothing_and_does_not_campaign(self) -> None:
        group, raft = self.receiver(1, 1)
        offer = self.offer(4, 3)
        raft.step(offer)
        group.work()
        assert raft.begin_restore(offer)
        raft.step(Append(GROUP, 2, 1, 9, 2, 1, 2, (Entry(9, 3, b"x"),)))
        raft.step(Heartbeat(GROUP, 2, 1, 9, 2))
        assert (raft.last_index, raft.commit) == (2, 0)
        for _ in range(30):
            raft.tick()
        assert raft.role is Role.FOLLOWER
        assert not raft.wants(offer)
        assert raft.truncation_point(0) == 0

    def test_it_answers_votes_and_heartbeats_meanwhile(self) -> None:
        group, raft = self.receiver(1, 1)
        offer = self.offer(4, 3)
        raft.step(offer)
        group.work()
        group.take()
        raft.begin_restore(offer)
        raft.step(Heartbeat(GROUP, 2, 1, 9, 2, 7))
        raft.leader_lost()
        raft.step(Vote(GROUP, 3, 1, 10, 4, 3))
        group.work()
        replies = group.take()
        assert HeartbeatReply(GROUP, 1, 2, 9, 7) in replies
        assert VoteReply(GROUP, 1, 3, 10, True) in replies

    def test_given_up_it_goes_on_with_what_it_has(self) -> None:
        group, raft = self.receiver(1, 1)
        offer = self.offer(4, 3)
        raft.step(offer)
        group.work()
        raft.begin_restore(offer)
        raft.abandon_restore()
        raft.step(Append(GROUP, 2, 1, 9, 2, 1, 2, (Entry(9, 3, b"x"),)))
        assert (raft.last_index, raft.commit) == (3, 2)

    @pytest.mark.parametrize("kept", [0, 1])
    def test_a_crash_leaves_all_of_the_old_or_all_of_the_new(self, kept: int) -> None:
        group, raft = self.receiver(1, 1)
        offer = self.offer(4, 3)
        raft.step(offer)
        group.work()
        group[1].slow = True
        group[1].install(self.snapshot(offer))
        group[1].crash(kept)
        raft = group.raft(1)
        expected = (5, 4, 4) if kept else (1, 2, 0)
        assert (raft.first_index, raft.last_index, raft.applied) == expected
        assert len(group[1].applied) == raft.applied

    def test_reports_of_writes_to_the_old_log_prove_nothing_any_more(self) -> None:
        group, raft = self.receiver(1)
        group[1].slow = True
        raft.step(Append(GROUP, 2, 1, 2, 1, 1, 0, (Entry(2, 2), Entry(2, 3))))
        group[1].take()
        offer = self.offer(2, 3)
        raft.step(offer)
        group[1].install(self.snapshot(offer))
        group[1].persist(together=True)
        assert (raft.last_index, raft._log.persisted) == (2, 2)

    def test_a_snapshot_brings_the_configuration(self) -> None:
        group, raft = behind()
        group.isolate(3)
        group.join(4)
        raft.propose_configuration(Change(add_learners=(4,)))
        group.stabilize()
        group[1].truncate()
        group.heal()
        group.tick(3)
        assert group[3].disk.durable.configuration == Configuration.of([1, 2, 3], [4])
        assert {r.raft.configuration for r in group} == {raft.configuration}
        assert len({tuple(r.applied) for r in group}) == 1

    def test_a_candidate_gives_up_for_it(self) -> None:
        group, raft = self.receiver(1)
        offer = self.offer(4, 3)
        raft.step(offer)
        raft.campaign()
        group.work()
        assert role_of(raft) is Role.PRE_CANDIDATE
        assert raft.begin_restore(offer)
        assert role_of(raft) is Role.FOLLOWER

    def test_a_replica_that_joins_begins_with_one(self) -> None:
        group = Group(images={1: Image()})
        raft = group.elect(1)
        write(group, b"a", b"b")
        group.tick()
        group[1].truncate()
        group.join(4)
        raft.propose_configuration(Change(add_learners=(4,)))
        group.tick(3)
        assert group[4].applied == group[1].applied
        assert group.raft(4).configuration == raft.configuration


class TestAReplicaThatIsDistrusted:
    """Its state machine differs from the others'; its log is what it was."""

    def distrusted(self) -> tuple[Group, Raft]:
        group = Group(images={1: log_of([1, 1, 1, 1])})
        raft = group.raft(1)
        raft.distrust()
        return group, raft

    def offer(self, index: int, last_term: int) -> SnapshotOffer:
        return SnapshotOffer(GROUP, 2, 1, 9, index, last_term)

    def test_it_does_not_campaign(self) -> None:
        _, raft = self.distrusted()
        for _ in range(4 * CONFIG.election_ticks):
            raft.tick()
        raft.campaign()
        raft.step(TimeoutNow(GROUP, 2, 1, 1))
        assert raft.role is Role.FOLLOWER

    def test_it_votes_and_acknowledges_by_its_log(self) -> None:
        group, raft = self.distrusted()
        raft.step(Vote(GROUP, 3, 1, 9, 9, 9))
        group.work()
        assert group.take() == [VoteReply(GROUP, 1, 3, 9, True)]
        raft.step(Append(GROUP, 3, 1, 9, 4, 1, 4, (Entry(9, 5, b"x"),)))
        group.work()
        assert group.take() == [AppendReply(GROUP, 1, 3, 9, 5)]

    def test_it_wants_a_snapshot_that_its_log_goes_on_from(self) -> None:
        _, raft = self.distrusted()
        offer = self.offer(2, 1)
        raft.step(offer)
        assert raft.wants(offer)
        assert raft.has_last_of(offer)
        assert raft.begin_restore(offer)

    def test_it_wants_one_that_is_ahead_of_its_log(self) -> None:
        _, raft = self.distrusted()
        offer = self.offer(7, 2)
        raft.step(offer)
        assert raft.wants(offer)
        assert not raft.has_last_of(offer)

    def test_it_wants_none_that_its_log_does_not_lead_on_from(self) -> None:
        group = Group(images={1: log_of([1, 1, 1, 1])})
        group[1].raft.step(Append(GROUP, 2, 1, 2, 4, 1, 4, ()))
        group.work()
        assert group[1].truncate(spare_followers=False) == 4
        raft = group.raft(1)
        raft.distrust()
        assert not raft.wants(SnapshotOffer(GROUP, 2, 1, 2, 2, 1))
        assert raft.wants(SnapshotOffer(GROUP, 2, 1, 2, 4, 1))

    def test_it_keeps_its_log(self) -> None:
        group = Group()
        group.elect(1)
        write(group, b"a", b"b")
        group.tick()
        assert group.raft(2).truncation_point(0) == 3
        group.raft(2).distrust()
        assert group.raft(2).truncation_point(0) == 0
