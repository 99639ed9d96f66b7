"""What a replica has to hand out with its next :class:`Ready`: messages in two queues, and more.

Which queue a message belongs to is decided here, and nowhere else: what promises that something is
durable waits for the disk, what promises nothing leaves at once.
"""

from __future__ import annotations

from collections.abc import Iterable

from cluster_core.raft.read_only import ReadState
from cluster_core.raft.ready import Ready, SnapshotNeeded
from cluster_core.raft.roles import Role
from cluster_core.types import GroupId, ReplicaId
from cluster_core.wire.messages import (
    Append,
    AppendReply,
    Entry,
    HardState,
    Heartbeat,
    HeartbeatReply,
    Message,
    SnapshotOffer,
    Vote,
    VoteReply,
)

__all__ = ["Outbox"]


class Outbox:
    """See the head of this module. ``group`` and ``replica`` are those of the sender.

    It remembers what of the replica's state was handed out last, so that a change is told once.
    """

    __slots__ = (
        "_handed_leader",
        "_handed_role",
        "_handed_term",
        "_handed_vote",
        "_handed_vote_term",
        "after_persist",
        "group",
        "messages",
        "reads",
        "reads_lost",
        "replica",
        "snapshots",
    )

    def __init__(
        self,
        group: GroupId,
        replica: ReplicaId,
        hard_state: HardState,
        role: Role,
        leader: ReplicaId,
    ) -> None:
        self.group = group
        self.replica = replica
        self.messages: list[Message] = []
        """To send at once."""
        self.after_persist: list[Message] = []
        """To send when everything before it is durable."""
        self.snapshots: list[SnapshotNeeded] = []
        self.reads: list[ReadState] = []
        self.reads_lost: list[int] = []
        self._handed_vote_term = hard_state.term
        self._handed_vote = hard_state.vote
        self._handed_role = role
        self._handed_leader = leader
        self._handed_term = hard_state.term

    # -- Elections (§5.2) ------------------------------------------------------------------------

    def rehearse(self, voters: Iterable[ReplicaId], term: int, last: tuple[int, int]) -> None:
        """Ask ``voters`` whether they would vote in ``term`` for a log that ends with index and
        term ``last``: it promises nothing."""
        self.messages += [
            Vote(self.group, self.replica, voter, term, *last, True) for voter in voters
        ]

    def ask_for_votes(
        self, voters: Iterable[ReplicaId], term: int, last: tuple[int, int], *, transfer: bool
    ) -> None:
        """Ask ``voters`` for their votes, and ourselves for our own: see the head of ``core.py``
        for why the requests wait as well."""
        self.after_persist += [
            Vote(self.group, self.replica, voter, term, *last, False, transfer) for voter in voters
        ]
        self.after_persist.append(VoteReply(self.group, self.replica, self.replica, term, True))

    def grant(self, request: Vote) -> None:
        """Our vote in the term that is asked for; a rehearsed one binds nobody."""
        reply = VoteReply(self.group, self.replica, request.source, request.term, True, request.pre)
        (self.messages if request.pre else self.after_persist).append(reply)

    def deny(self, request: Vote, term: int) -> None:
        """No vote; ``term`` is ours."""
        self.messages.append(
            VoteReply(self.group, self.replica, request.source, term, False, request.pre)
        )

    # -- A follower's answers (§5.3) -------------------------------------------------------------

    def acknowledge(self, leader: ReplicaId, term: int, index: int) -> None:
        """Everything up to ``index`` is as ``leader`` has it."""
        self.after_persist.append(AppendReply(self.group, self.replica, leader, term, index))

    def reject(self, message: Append, term: int, hint: int, hint_term: int) -> None:
        """The consistency check failed; the logs may agree at ``hint``."""
        self.messages.append(
            AppendReply(
                self.group,
                self.replica,
                message.source,
                term,
                message.prev_index,
                True,
                hint,
                hint_term,
            )
        )

    def answer_beat(self, message: Heartbeat, term: int) -> None:
        self.messages.append(
            HeartbeatReply(self.group, self.replica, message.source, term, message.round)
        )

    def refuse(self, message: Message, term: int) -> None:
        """Tell a stale leader or candidate our ``term`` (§5.1); its answer promises nothing."""
        if isinstance(message, Append | SnapshotOffer):
            refused = message.prev_index if isinstance(message, Append) else message.index
            self.messages.append(
                AppendReply(self.group, self.replica, message.source, term, refused, True)
            )
        elif isinstance(message, Heartbeat):
            self.messages.append(HeartbeatReply(self.group, self.replica, message.source, term))
        elif isinstance(message, Vote):
            self.deny(message, term)

    # -- Handing out -----------------------------------------------------------------------------

    def hard_state_changed(self, term: int, vote: ReplicaId) -> bool:
        """Whether they are others than those handed out last."""
        return term != self._handed_vote_term or vote != self._handed_vote

    def role_changed(self, role: Role, leader: ReplicaId, term: int) -> bool:
        """Whether one of them is another than at the last Ready."""
        return (
            role is not self._handed_role
            or leader != self._handed_leader
            or term != self._handed_term
        )

    def hand_out(
        self,
        *,
        term: int,
        vote: ReplicaId,
        role: Role,
        leader: ReplicaId,
        entries: tuple[Entry, ...],
        committed: tuple[Entry, ...],
    ) -> Ready:
        """Everything that is due, once."""
        hard_state = None
        if self.hard_state_changed(term, vote):
            self._handed_vote_term = term
            self._handed_vote = vote
            hard_state = HardState(term, vote)
        role_changed = self.role_changed(role, leader, term)
        if role_changed:
            self._handed_role = role
            self._handed_leader = leader
            self._handed_term = term
        ready = Ready(
            entries=entries,
            hard_state=hard_state,
            messages=tuple(self.messages),
            messages_after_persist=tuple(self.after_persist),
            committed=committed,
            snapshots=tuple(self.snapshots),
            reads=tuple(self.reads),
            reads_lost=tuple(self.reads_lost),
            role_changed=role_changed,
        )
        self.messages.clear()
        self.after_persist.clear()
        self.snapshots.clear()
        self.reads.clear()
        self.reads_lost.clear()
        return ready
