"""The Raft state machine: messages and ticks in, one :class:`Ready` out.

This file owns every transition. Section numbers are those of the Raft paper (Ongaro and
Ousterhout 2014, extended version); those marked D are of Ongaro's dissertation.

Terms and roles (§5.1)
    A message of a higher term makes a follower of whoever reads it. Requests of a lower term are
    refused with our own term, so that a stale leader or candidate learns of it; answers of a
    lower term are ignored.

Elections (§5.2, §5.4.1)
    One vote a term, durable before it is answered, and only for a log at least as up-to-date as
    ours. Time-outs are drawn anew from ``[election_ticks, 2 * election_ticks)`` each time.
    A candidate's own vote is a message to itself that waits for the disk like any other vote, and
    its requests wait too: a candidate that could forget its term would ask again in the same one,
    and lead it twice.

PreVote (D §9.6)
    A campaign is rehearsed first, in the term that it would have: nobody changes term or vote for
    it, so a replica that cannot win disturbs nobody.

CheckQuorum and leases (D §6.2, §4.2.3)
    A leader that does not hear a quorum within an election time-out steps down. A replica that
    heard its leader within one ignores campaigns, unless the leader asked for them (a transfer)
    or the host said that the leader is gone (:meth:`Raft.leader_lost`).

Replication (§5.3, D §10.2)
    Appends are sent ahead of their answers and of the leader's own disk. Followers acknowledge
    what is durable. A refusal names the last entry that could agree, by term, and the leader skips
    with its own terms: one round per term that differs, not one per entry.

Commitment (§5.4.2)
    Durable on a quorum *and* of the leader's own term; then everything before it is committed as
    well. The leader's own copy counts when its disk says so (D §10.2.1). A new leader appends an
    empty entry (§8), and until that is committed answers no reads. Followers learn of it with the
    next Append or heartbeat, or from a notice that asks for no answer (:meth:`Raft.tell_commit`).

Reads (D §6.4)
    ReadIndex rounds, see ``read_only.py``. No clock is trusted.

Transfer (D §3.10)
    The leader takes no more proposals, brings the target up to date and tells it to campaign. It
    goes on by itself after an election time-out.

Messages of a leader are not made when their cause occurs but when :meth:`Raft.ready` is called:
whatever happened since the last call leaves as one Append, one Heartbeat per peer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any, Final

from cluster_core.config import RaftConfig
from cluster_core.ports import Random
from cluster_core.raft.log import LogReader, RaftLog
from cluster_core.raft.progress import Inflights, Progress, ProgressState
from cluster_core.raft.quorum import Configuration, VoteResult
from cluster_core.raft.read_only import ReadRounds, ReadState
from cluster_core.raft.ready import Ready
from cluster_core.types import GroupId, ReplicaId
from cluster_core.wire.messages import (
    Append,
    AppendReply,
    Commit,
    Entry,
    HardState,
    Heartbeat,
    HeartbeatReply,
    Message,
    TimeoutNow,
    Vote,
    VoteReply,
)

__all__ = ["NOBODY", "NotLeading", "ProposalRefused", "Raft", "Refusal", "Role"]

NOBODY: Final[ReplicaId] = 0
"""No leader known, no vote given, no transfer under way."""


class Role(Enum):
    """§5.1, and the rehearsal of D §9.6."""

    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


class Refusal(Enum):
    """Why a proposal was refused."""

    NOT_LEADER = "not the leader"
    TRANSFERRING = "leadership is being transferred"
    TOO_MANY_UNCOMMITTED = "too many bytes wait to be committed"


class ProposalRefused(Exception):
    """The proposal left nothing behind; it was certainly not and will not be executed."""

    def __init__(self, reason: Refusal) -> None:
        super().__init__(reason.value)
        self.reason = reason


class NotLeading(Exception):
    """Only a leader can start a read."""


class Raft:
    """One replica of one group. Synchronous and pure: it knows no clock, no disk, no network.

    The host calls the methods below in any order, and after any of them :meth:`ready` while
    :meth:`has_ready`, doing what the contract of :class:`Ready` says; and :meth:`tell_commit` a
    little after :attr:`commit_untold`. Attributes without an underscore are for reading.

    ``hard_state`` and ``log`` are what the disk held when the process started, ``applied`` the
    index up to which the state machine on the same disk had applied: commitment is recovered from
    it. ``random`` draws the election time-outs.
    """

    __slots__ = (
        "_append_due",
        "_config",
        "_elapsed",
        "_handed_leader",
        "_handed_role",
        "_handed_term",
        "_handed_vote",
        "_handed_vote_term",
        "_heartbeat_due",
        "_heartbeat_elapsed",
        "_log",
        "_match_of",
        "_messages",
        "_messages_after_persist",
        "_own",
        "_peers",
        "_progress",
        "_random",
        "_read_states",
        "_reads",
        "_reads_lost",
        "_round_of",
        "_timeout",
        "_transfer_elapsed",
        "_votes",
        "commit_untold",
        "configuration",
        "group",
        "leader",
        "replica",
        "role",
        "term",
        "term_start",
        "transferee",
        "vote",
    )

    def __init__(
        self,
        *,
        group: GroupId,
        replica: ReplicaId,
        voters: Iterable[ReplicaId],
        learners: Iterable[ReplicaId] = (),
        hard_state: HardState,
        log: LogReader,
        applied: int,
        config: RaftConfig,
        random: Random,
    ) -> None:
        self.group = group
        self.replica = replica
        self.configuration = Configuration.of(voters, learners)
        assert replica in self.configuration.members
        assert 0 < config.heartbeat_ticks < config.election_ticks
        self._config = config
        self._random = random
        self._log = RaftLog(log, applied, config.log_cache_bytes_max)
        assert self._log.last_term <= hard_state.term

        self.role = Role.FOLLOWER
        self.term = hard_state.term
        """§5.1 ``currentTerm``; never decreases."""
        self.vote = hard_state.vote
        """§5.2 ``votedFor`` in this term."""
        self.leader = NOBODY
        self.transferee = NOBODY
        """D §3.10: whom the leadership is being handed to."""
        self.term_start = 0
        """As a leader: index of the empty entry with which this term began."""

        self._elapsed = 0
        """Follower: ticks since the leader was heard. Leader: since the quorum was checked."""
        self._timeout = self._draw_timeout()
        self._heartbeat_elapsed = 0
        self._transfer_elapsed = 0
        self._votes: dict[ReplicaId, bool] = {}
        """Answers to the campaign that is under way."""

        self._progress = {
            member: Progress(
                member, Inflights(config.inflight_messages_max, config.inflight_bytes_max)
            )
            for member in self.configuration.members
        }
        """Of every member, ourselves included; means something only while we lead."""
        self._own = self._progress[replica]
        self._peers = [p for member, p in self._progress.items() if member != replica]
        progress = self._progress
        self._match_of: Callable[[ReplicaId], int] = lambda member: progress[member].match
        self._round_of: Callable[[ReplicaId], int] = lambda member: progress[member].round_acked
        self._reads = ReadRounds()

        self.commit_untold = False
        """As a leader: something was committed since :meth:`tell_commit`."""
        self._append_due = False
        """Some peer is to get entries or a probe."""
        self._heartbeat_due = False
        self._messages: list[Message] = []
        self._messages_after_persist: list[Message] = []
        self._read_states: list[ReadState] = []
        self._reads_lost: list[int] = []
        self._handed_vote_term = hard_state.term
        self._handed_vote = hard_state.vote
        self._handed_role = self.role
        self._handed_leader = self.leader
        self._handed_term = self.term

    def __repr__(self) -> str:
        return (
            f"<Raft {self.group}/{self.replica} {self.role.value} term={self.term}"
            f" commit={self.commit} last={self.last_index}>"
        )

    # -- State -----------------------------------------------------------------------------------

    @property
    def voters(self) -> tuple[ReplicaId, ...]:
        return self.configuration.voters

    @property
    def learners(self) -> tuple[ReplicaId, ...]:
        return self.configuration.learners

    @property
    def commit(self) -> int:
        """§5.3 ``commitIndex``."""
        return self._log.committed

    @property
    def applied(self) -> int:
        """§5.3 ``lastApplied``: what the host has reported."""
        return self._log.applied

    @property
    def last_index(self) -> int:
        return self._log.last_index

    @property
    def is_leader(self) -> bool:
        return self.role is Role.LEADER

    @property
    def committed_in_term(self) -> bool:
        """We lead, and an entry of our own term is committed: our commit index is no older than
        any write that a client was told of (§8). Reads wait for it, and so does who evaluates."""
        return self.role is Role.LEADER and self._log.committed >= self.term_start

    @property
    def uncommitted_bytes(self) -> int:
        """Bytes of what was proposed in this term and is not committed yet."""
        if self.role is not Role.LEADER:
            return 0
        return self._log.bytes_from(max(self._log.committed, self.term_start) + 1)

    def match_index(self, replica: ReplicaId) -> int:
        """As a leader: up to where ``replica`` has the log on its disk, as far as we know."""
        return self._progress[replica].match if self.role is Role.LEADER else 0

    # -- Requests of the host --------------------------------------------------------------------

    def tick(self) -> None:
        """One tick of ``tick_ms`` has passed."""
        self._elapsed += 1
        if self.role is Role.LEADER:
            self._tick_leader()
        elif self._elapsed >= self._timeout:
            self.campaign()

    def refusal(self) -> Refusal | None:
        """Why a proposal would be refused now; None when the next one is let in, however large."""
        if self.role is not Role.LEADER:
            return Refusal.NOT_LEADER
        if self.transferee:
            return Refusal.TRANSFERRING
        if self.uncommitted_bytes >= self._config.uncommitted_bytes_max:
            return Refusal.TOO_MANY_UNCOMMITTED
        return None

    def propose(self, data: bytes) -> tuple[int, int]:
        """Append ``data`` to the log of a leader: index and term of its entry.

        It is executed if the entry applied at that index has that term, and never if another one
        has. Raises :class:`ProposalRefused`, leaving nothing behind, exactly when :meth:`refusal`
        says why; so the uncommitted bytes may pass their bound by one proposal.
        """
        assert data, "empty entries are the leader's own"
        reason = self.refusal()
        if reason is not None:
            raise ProposalRefused(reason)
        index = self._log.last_index + 1
        self._log.append(Entry(self.term, index, data))
        self._append_due = True
        return index, self.term

    def read_index(self, context: int) -> None:
        """Ask for a point at which a linearizable read can be served (D §6.4).

        Ends as a :class:`ReadState` in ``Ready.reads``, or as ``context`` in
        ``Ready.reads_lost``. Raises :class:`NotLeading`.
        """
        if self.role is not Role.LEADER:
            raise NotLeading
        self._reads.add(context)

    def campaign(self) -> None:
        """Try to become the leader, beginning with the rehearsal. Nothing if we lead, or learn."""
        if self.role is Role.LEADER:
            return
        self._elapsed = 0
        if self.configuration.is_voter(self.replica):
            self._become_pre_candidate()
        else:
            self.leader = NOBODY

    def leader_lost(self) -> None:
        """The host saw the leader's node go away: forget it, so that campaigns are not ignored.

        Term and vote stay. A heartbeat makes it the leader again.
        """
        if self.role is not Role.LEADER:
            self.leader = NOBODY

    def tell_commit(self) -> None:
        """Tell the followers how far the log is committed, those that do not know it yet.

        The host calls this a little after :attr:`commit_untold`: the next Append may well say it
        for nothing. Heartbeats say it too.
        """
        self.commit_untold = False
        if self.role is not Role.LEADER:
            return
        for peer in self._peers:
            commit = min(peer.match, self._log.committed)
            if commit > peer.commit_sent:
                peer.commit_sent = commit
                self._messages.append(
                    Commit(self.group, self.replica, peer.replica, self.term, commit)
                )

    def transfer_leadership(self, target: ReplicaId) -> None:
        """Hand the leadership to the voter ``target`` (D §3.10), within an election time-out.

        Nothing if we do not lead, or ``target`` is ourselves or no voter.
        """
        if self.role is not Role.LEADER or target in (self.replica, self.transferee):
            return
        if not self.configuration.is_voter(target):
            return
        self.transferee = target
        self._transfer_elapsed = 0
        peer = self._progress[target]
        if peer.match < self._log.last_index:
            peer.ask = self._append_due = True
        self._try_transfer(peer)

    def peer_unreachable(self, replica: ReplicaId) -> None:
        """The stream to ``replica`` broke: what was sent ahead is taken for lost."""
        progress = self._progress.get(replica)
        if self.role is Role.LEADER and progress is not None and progress is not self._own:
            progress.become_probe()

    def step_down(self) -> None:
        """Give up the leadership without a new term: our disk fails, or is too slow."""
        if self.role is Role.LEADER:
            self._become_follower(self.term, NOBODY)

    def persisted(self, index: int, term: int) -> None:
        """The entries of a Ready that ended with ``(index, term)`` are durable, and all before.

        Reports come in the order of the Readys; an unknown one changes nothing.
        """
        if self._log.persisted_to(index, term) and self.role is Role.LEADER:
            self._own.acked(self._log.persisted)
            self._try_commit(self._log.persisted)

    def applied_to(self, index: int) -> None:
        """The state machine has applied everything up to ``index``."""
        self._log.applied_to(index)

    # -- Output ----------------------------------------------------------------------------------

    def has_ready(self) -> bool:
        """Whether :meth:`ready` would return something to do."""
        log = self._log
        return bool(
            self._append_due
            or self._messages
            or self._messages_after_persist
            or log.has_unwritten
            or log.has_unapplied
            or self._heartbeat_due
            or self._read_states
            or self._reads_lost
            or self._hard_state_changed()
            or self._role_changed()
            or (self._reads.waiting and self.committed_in_term)
        )

    def ready(self) -> Ready:
        """Take everything that is to be done.

        :meth:`has_ready` may still hold afterwards: entries to apply come in bounded portions.
        """
        if self.role is Role.LEADER:
            self._speak_as_leader()
        hard_state = None
        if self._hard_state_changed():
            self._handed_vote_term = self.term
            self._handed_vote = self.vote
            hard_state = HardState(self.term, self.vote)
        role_changed = self._role_changed()
        if role_changed:
            self._handed_role = self.role
            self._handed_leader = self.leader
            self._handed_term = self.term
        ready = Ready(
            entries=self._log.take_unwritten(),
            hard_state=hard_state,
            messages=tuple(self._messages),
            messages_after_persist=tuple(self._messages_after_persist),
            committed=self._log.take_committed(self._config.apply_bytes_max),
            reads=tuple(self._read_states),
            reads_lost=tuple(self._reads_lost),
            role_changed=role_changed,
        )
        self._messages.clear()
        self._messages_after_persist.clear()
        self._read_states.clear()
        self._reads_lost.clear()
        return ready

    def _hard_state_changed(self) -> bool:
        return self.term != self._handed_vote_term or self.vote != self._handed_vote

    def _role_changed(self) -> bool:
        return (
            self.role is not self._handed_role
            or self.leader != self._handed_leader
            or self.term != self._handed_term
        )

    # -- Terms and roles (§5.1) ------------------------------------------------------------------

    def step(self, message: Message) -> None:
        """Take in a message. Those for other replicas, or from strangers, change nothing."""
        assert message.group == self.group
        if message.target != self.replica or message.source not in self._progress:
            return
        if message.source == self.replica and type(message) is not VoteReply:
            return
        if message.term > self.term:
            if not self._admit_higher_term(message):
                return
        elif message.term < self.term:
            self._refuse_lower_term(message)
            return
        _STEPS[type(message)](self, message)

    def _admit_higher_term(self, message: Message) -> bool:
        """Follow the higher term, unless the message speaks of one that nobody has entered."""
        if isinstance(message, Vote):
            if self._holds_lease() and not message.transfer:
                return False
            if message.pre:
                return True
        elif isinstance(message, VoteReply) and message.pre and message.granted:
            return True
        self._become_follower(message.term, NOBODY)
        return True

    def _holds_lease(self) -> bool:
        """A leader was heard within the shortest election time-out (D §4.2.3)."""
        return self.leader != NOBODY and self._elapsed < self._config.election_ticks

    def _refuse_lower_term(self, message: Message) -> None:
        """Tell a stale leader or candidate our term (§5.1); its answer promises nothing."""
        reply: Message
        if isinstance(message, Append):
            reply = AppendReply(
                self.group, self.replica, message.source, self.term, message.prev_index, True
            )
        elif isinstance(message, Heartbeat):
            reply = HeartbeatReply(self.group, self.replica, message.source, self.term)
        elif isinstance(message, Vote):
            reply = self._vote_reply(message, self.term, granted=False)
        else:
            return
        self._messages.append(reply)

    def _enter(self, role: Role, term: int, leader: ReplicaId) -> None:
        """Every change of role or term comes through here."""
        assert term >= self.term
        if self.role is Role.LEADER:
            self._reads_lost += self._reads.abandon()
        if term != self.term:
            self.term = term
            self.vote = NOBODY
        self.role = role
        self.leader = leader
        self.transferee = NOBODY
        self._elapsed = 0
        self._timeout = self._draw_timeout()
        self._votes.clear()
        self._append_due = False
        self._heartbeat_due = False
        self.commit_untold = False

    def _draw_timeout(self) -> int:
        """§5.2: random, so that split votes are rare."""
        ticks = self._config.election_ticks
        return self._random.randrange(ticks, 2 * ticks)

    def _become_follower(self, term: int, leader: ReplicaId) -> None:
        self._enter(Role.FOLLOWER, term, leader)

    # -- Elections (§5.2, §5.4.1, D §9.6) --------------------------------------------------------

    def _become_pre_candidate(self) -> None:
        self._enter(Role.PRE_CANDIDATE, self.term, NOBODY)
        self._ask_for_votes(self._messages, self.term + 1, pre=True)
        self._count_vote(self.replica, True)

    def _become_candidate(self, *, transfer: bool) -> None:
        self._enter(Role.CANDIDATE, self.term + 1, NOBODY)
        self.vote = self.replica
        self._ask_for_votes(self._messages_after_persist, self.term, transfer=transfer)
        self._messages_after_persist.append(
            VoteReply(self.group, self.replica, self.replica, self.term, True)
        )

    def _ask_for_votes(
        self, outbox: list[Message], term: int, *, pre: bool = False, transfer: bool = False
    ) -> None:
        log = self._log
        outbox += [
            Vote(
                self.group,
                self.replica,
                peer.replica,
                term,
                log.last_index,
                log.last_term,
                pre,
                transfer,
            )
            for peer in self._peers
            if self.configuration.is_voter(peer.replica)
        ]

    def _on_vote(self, message: Vote) -> None:
        """Grant it if we may vote in that term, and the candidate lacks nothing that we have.

        A learner answers as well: a candidate that asks knows of its promotion before it does.
        """
        free = (
            self.vote == message.source
            or (self.vote == NOBODY and self.leader == NOBODY)
            or message.term > self.term  # a rehearsal in a term that we have not entered
        )
        up_to_date = self._log.is_up_to_date(message.last_index, message.last_term)
        if not (free and up_to_date):
            self._messages.append(self._vote_reply(message, self.term, granted=False))
        elif message.pre:
            self._messages.append(self._vote_reply(message, message.term, granted=True))
        else:
            self.vote = message.source
            self._elapsed = 0
            self._messages_after_persist.append(self._vote_reply(message, self.term, granted=True))

    def _vote_reply(self, message: Vote, term: int, *, granted: bool) -> VoteReply:
        return VoteReply(self.group, self.replica, message.source, term, granted, message.pre)

    def _on_vote_reply(self, message: VoteReply) -> None:
        if message.pre:
            # Granted in the term that we would enter, or refused in the one that we are in.
            asked = self.term + 1 if message.granted else self.term
            if self.role is Role.PRE_CANDIDATE and message.term == asked:
                self._count_vote(message.source, message.granted)
        elif self.role is Role.CANDIDATE:
            self._count_vote(message.source, message.granted)

    def _count_vote(self, voter: ReplicaId, granted: bool) -> None:
        self._votes.setdefault(voter, granted)
        result = self.configuration.vote_result(self._votes)
        if result is VoteResult.LOST:
            self._become_follower(self.term, NOBODY)
        elif result is VoteResult.WON and self.role is Role.PRE_CANDIDATE:
            self._become_candidate(transfer=False)
        elif result is VoteResult.WON:
            self._become_leader()

    def _become_leader(self) -> None:
        assert self.role is Role.CANDIDATE
        assert self.vote == self.replica
        self._enter(Role.LEADER, self.term, self.replica)
        self._heartbeat_elapsed = 0
        log = self._log
        for progress in self._progress.values():
            progress.reset(log.last_index + 1)
        self._own.acked(log.persisted)
        self.term_start = log.last_index + 1
        log.append(Entry(self.term, self.term_start))
        self._append_due = True

    # -- CheckQuorum and the leader's clock (D §6.2, §3.10) --------------------------------------

    def _tick_leader(self) -> None:
        if self._elapsed >= self._config.election_ticks:
            self._elapsed = 0
            if not self._heard_quorum():
                self._become_follower(self.term, NOBODY)
                return
        if self.transferee:
            self._transfer_elapsed += 1
            if self._transfer_elapsed >= self._config.election_ticks:
                self.transferee = NOBODY
        self._heartbeat_elapsed += 1
        if self._heartbeat_elapsed >= self._config.heartbeat_ticks:
            self._heartbeat_elapsed = 0
            self._heartbeat_due = bool(self._peers)
            for peer in self._peers:
                peer.beat()

    def _heard_quorum(self) -> bool:
        """Whether a quorum answered since the last time; starts the next period."""
        heard = {self.replica: True}
        for peer in self._peers:
            heard[peer.replica] = peer.recent_active
            peer.recent_active = False
        return self.configuration.vote_result(heard) is VoteResult.WON

    # -- Replication, as the leader (§5.3, D §10.2) ----------------------------------------------

    def _speak_as_leader(self) -> None:
        """Make the messages that are due, each kind once for all that happened."""
        if self._reads.waiting and self.committed_in_term:
            self._own.round_acked = self._reads.open(self._log.committed)
            self._confirm_reads()
            self._heartbeat_due = self._heartbeat_due or self._reads.unconfirmed
        if self._append_due:
            self._append_due = False
            for peer in self._peers:
                self._send_appends(peer)
        if self._heartbeat_due:
            self._heartbeat_due = False
            for peer in self._peers:
                self._send_heartbeat(peer)

    def _send_appends(self, peer: Progress) -> None:
        """Everything that ``peer`` lacks, as far as its state and the bounds allow."""
        last_index = self._log.last_index
        if peer.state is ProgressState.PROBE:
            if not peer.probe_sent:
                self._send_append(peer, self._entries_for(peer) if peer.next <= last_index else ())
            return
        while peer.next <= last_index and not peer.inflights.full:
            self._send_append(peer, self._entries_for(peer))
        if peer.ask:
            self._send_append(peer, ())

    def _entries_for(self, peer: Progress) -> tuple[Entry, ...]:
        log = self._log
        return log.entries(peer.next, log.last_index + 1, self._config.append_bytes_max)

    def _send_append(self, peer: Progress, entries: tuple[Entry, ...]) -> None:
        log = self._log
        prev_index = peer.next - 1
        last = prev_index + len(entries)
        commit = min(log.committed, last)
        self._messages.append(
            Append(
                self.group,
                self.replica,
                peer.replica,
                self.term,
                prev_index,
                log.term(prev_index),
                commit,
                entries,
            )
        )
        peer.sent(last, log.size_of(entries) if entries else 0, commit)

    def _send_heartbeat(self, peer: Progress) -> None:
        """Commits no more than what ``peer`` surely has: a heartbeat checks no log."""
        self._messages.append(
            Heartbeat(
                self.group,
                self.replica,
                peer.replica,
                self.term,
                min(peer.match, self._log.committed),
                self._reads.latest,
            )
        )

    def _on_append_reply(self, message: AppendReply) -> None:
        if self.role is not Role.LEADER:
            return
        peer = self._progress[message.source]
        peer.recent_active = True
        if message.reject:
            self._on_rejection(peer, message)
            return
        assert message.index <= self._log.last_index, "acknowledged what we never had"
        if not peer.acked(message.index):
            return
        self._try_commit(message.index)
        if peer.next <= self._log.last_index:
            self._append_due = True
        if peer.commit_sent < min(peer.match, self._log.committed):
            self.commit_untold = True
        self._try_transfer(peer)

    def _on_rejection(self, peer: Progress, message: AppendReply) -> None:
        """Step back to where the logs could agree.

        The follower's last candidate is ``hint_index`` with ``hint_term``. Entries of ours that
        have a greater term cannot agree with it or anything before it, so they are skipped.
        """
        hint = self._log.last_at_most(message.hint_index, message.hint_term)
        if peer.rejected(message.index, hint):
            self._append_due = True

    def _on_heartbeat_reply(self, message: HeartbeatReply) -> None:
        if self.role is not Role.LEADER:
            return
        peer = self._progress[message.source]
        peer.recent_active = True
        if peer.answered_beat():
            self._append_due = True
        if message.round > peer.round_acked:
            peer.round_acked = message.round
            self._confirm_reads()

    # -- Replication, as a follower (§5.3) -------------------------------------------------------

    def _follow(self, leader: ReplicaId) -> None:
        """A leader of our term was heard."""
        assert self.role is not Role.LEADER, "two leaders in one term (§5.2)"
        if self.role is not Role.FOLLOWER:
            self._become_follower(self.term, leader)
        self._elapsed = 0
        self.leader = leader

    def _on_append(self, message: Append) -> None:
        self._follow(message.source)
        log = self._log
        if message.prev_index < log.committed:
            # An old message: what is committed here agrees with every leader (§5.4).
            self._acknowledge(message, log.committed)
        elif log.try_append(message.prev_index, message.prev_term, message.entries):
            last = message.prev_index + len(message.entries)
            log.commit_to(min(message.commit, last))
            self._acknowledge(message, last)
        else:
            self._reject(message)

    def _acknowledge(self, message: Append, index: int) -> None:
        self._messages_after_persist.append(
            AppendReply(self.group, self.replica, message.source, self.term, index)
        )

    def _reject(self, message: Append) -> None:
        """Name the last entry that could agree: none of a greater term than ``prev_term`` can."""
        log = self._log
        hint = log.last_at_most(message.prev_index, message.prev_term)
        self._messages.append(
            AppendReply(
                self.group,
                self.replica,
                message.source,
                self.term,
                message.prev_index,
                True,
                hint,
                log.term(hint),
            )
        )

    def _on_commit(self, message: Commit) -> None:
        self._follow(message.source)
        self._log.commit_to(message.commit)

    def _on_heartbeat(self, message: Heartbeat) -> None:
        self._follow(message.source)
        self._log.commit_to(message.commit)
        self._messages.append(
            HeartbeatReply(self.group, self.replica, message.source, self.term, message.round)
        )

    # -- Commitment (§5.4.2) and reads (D §6.4) --------------------------------------------------

    def _try_commit(self, acked: int) -> None:
        """Commit what a quorum has, from the first entry of our own term on.

        ``acked`` was just acknowledged by somebody: that can commit nothing beyond it.
        """
        log = self._log
        if acked <= log.committed:
            return
        index = self.configuration.committed(self._match_of)
        if index <= log.committed or index < self.term_start:
            return
        log.commit_to(index)
        self.commit_untold = bool(self._peers)

    def _confirm_reads(self) -> None:
        if self._reads.unconfirmed:
            confirmed = self.configuration.committed(self._round_of)
            self._read_states += self._reads.confirm(confirmed)

    # -- Transfer (D §3.10) ----------------------------------------------------------------------

    def _try_transfer(self, peer: Progress) -> None:
        """Tell the target to campaign as soon as it has everything."""
        if peer.replica == self.transferee and peer.match == self._log.last_index:
            self._messages.append(TimeoutNow(self.group, self.replica, peer.replica, self.term))

    def _on_timeout_now(self, _message: TimeoutNow) -> None:
        """No rehearsal: the leader wants it, and its followers must not stand on their leases."""
        if self.role is not Role.LEADER and self.configuration.is_voter(self.replica):
            self._become_candidate(transfer=True)


_STEPS: Final[dict[type, Callable[[Raft, Any], None]]] = {
    Append: Raft._on_append,
    AppendReply: Raft._on_append_reply,
    Heartbeat: Raft._on_heartbeat,
    HeartbeatReply: Raft._on_heartbeat_reply,
    Vote: Raft._on_vote,
    VoteReply: Raft._on_vote_reply,
    TimeoutNow: Raft._on_timeout_now,
    Commit: Raft._on_commit,
}
