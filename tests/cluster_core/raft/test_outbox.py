"""What waits for the disk, what does not, and what is told once."""

from __future__ import annotations

import pytest

from cluster_core.raft import NOBODY, Ready, Role
from cluster_core.raft.outbox import Outbox
from cluster_core.wire.messages import (
    Append,
    AppendReply,
    Commit,
    HardState,
    Heartbeat,
    HeartbeatReply,
    Message,
    SnapshotOffer,
    Vote,
    VoteReply,
)

GROUP = 7


def outbox() -> Outbox:
    return Outbox(GROUP, 1, HardState(4, 2), Role.FOLLOWER, NOBODY)


def handed_out(
    box: Outbox, *, term: int = 4, vote: int = 2, role: Role = Role.FOLLOWER, leader: int = NOBODY
) -> Ready:
    return box.hand_out(term=term, vote=vote, role=role, leader=leader, entries=(), committed=())


def test_a_rehearsal_leaves_at_once_and_a_campaign_waits_for_the_disk() -> None:
    box = outbox()
    box.rehearse([2, 3], 5, (9, 4))
    assert box.messages == [Vote(GROUP, 1, voter, 5, 9, 4, pre=True) for voter in (2, 3)]
    box.ask_for_votes([2], 5, (9, 4), transfer=True)
    assert box.after_persist == [
        Vote(GROUP, 1, 2, 5, 9, 4, transfer=True),
        VoteReply(GROUP, 1, 1, 5, granted=True),
    ]


def test_a_vote_waits_for_the_disk_and_what_binds_nobody_does_not() -> None:
    box = outbox()
    box.grant(Vote(GROUP, 2, 1, 4, 9, 4))
    assert (box.messages, len(box.after_persist)) == ([], 1)
    box.grant(Vote(GROUP, 2, 1, 5, 9, 4, pre=True))
    box.deny(Vote(GROUP, 3, 1, 4, 9, 4), 4)
    assert box.messages == [
        VoteReply(GROUP, 1, 2, 5, granted=True, pre=True),
        VoteReply(GROUP, 1, 3, 4, granted=False),
    ]


def test_an_acknowledgement_waits_for_the_disk_and_a_rejection_does_not() -> None:
    box = outbox()
    box.acknowledge(2, 4, 9)
    box.reject(Append(GROUP, 2, 1, 4, 12, 4, 0, ()), 4, 8, 3)
    assert box.after_persist == [AppendReply(GROUP, 1, 2, 4, 9)]
    assert box.messages == [AppendReply(GROUP, 1, 2, 4, 12, True, 8, 3)]


@pytest.mark.parametrize(
    ("stale", "answer"),
    [
        (Append(GROUP, 2, 1, 3, 12, 3, 0, ()), AppendReply(GROUP, 1, 2, 4, 12, True)),
        (SnapshotOffer(GROUP, 2, 1, 3, 12, 3), AppendReply(GROUP, 1, 2, 4, 12, True)),
        (Heartbeat(GROUP, 2, 1, 3, 0, 5), HeartbeatReply(GROUP, 1, 2, 4)),
        (Vote(GROUP, 2, 1, 3, 12, 3), VoteReply(GROUP, 1, 2, 4, False)),
        (Commit(GROUP, 2, 1, 3, 12), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whoever_is_stale_learns_our_term(stale: Message, answer: Message | None) -> None:
    box = outbox()
    box.refuse(stale, 4)
    assert box.messages == ([] if answer is None else [answer])
    assert box.after_persist == []


def test_everything_is_handed_out_once() -> None:
    box = outbox()
    box.acknowledge(2, 4, 9)
    box.reads_lost.append(5)
    made = handed_out(box)
    assert (len(made.messages_after_persist), made.reads_lost) == (1, (5,))
    assert handed_out(box) == Ready()


def test_term_and_vote_are_told_when_they_are_others() -> None:
    box = outbox()
    assert handed_out(box).hard_state is None
    assert handed_out(box, vote=3).hard_state == HardState(4, 3)
    assert handed_out(box, vote=3).hard_state is None


def test_a_role_is_told_when_it_changed_and_came_to_stay() -> None:
    box = outbox()
    assert box.role_changed(Role.FOLLOWER, 2, 4)
    assert not handed_out(box).role_changed, "the leader was lost again before anybody was told"
    assert handed_out(box, leader=2).role_changed
    assert not handed_out(box, leader=2).role_changed
