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

Membership (§6, D §4)
    The latest configuration in the log counts, committed or not; ``membership.py`` says why, and
    which changes take two steps. A leader that is no voter any more goes on until that is
    committed, without counting itself, then hands over and steps down; until then it campaigns, too
    (D §4.2.2). Requests are taken from replicas that we have never heard of: they may know a newer
    configuration.

Compaction (§7)
    The host drops what is applied, durable, and needed by no peer that is near. A peer that needs
    it all the same gets a snapshot, out of band; ``ready.py`` has the contract for it.

Messages of a leader are not made when their cause occurs but when :meth:`Raft.ready` is called:
whatever happened since the last call leaves as one Append, one Heartbeat per peer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum
from operator import attrgetter
from typing import Any, Final

from cluster_core.config import RaftConfig
from cluster_core.ports import Random
from cluster_core.raft.log import LogReader, RaftLog
from cluster_core.raft.membership import (
    Change,
    ConfigurationLog,
    changed,
    encode_configuration,
    left,
    unfit,
)
from cluster_core.raft.peers import Peers
from cluster_core.raft.progress import Progress, ProgressState
from cluster_core.raft.quorum import UNKNOWN, Configuration, VoteResult
from cluster_core.raft.read_only import ReadRounds, ReadState
from cluster_core.raft.ready import Ready, SnapshotNeeded
from cluster_core.raft.refusals import NotLeading, ProposalRefused, Refusal
from cluster_core.types import GroupId, ReplicaId
from cluster_core.wire.messages import (
    CONFIGURATION,
    Append,
    AppendReply,
    Commit,
    Entry,
    HardState,
    Heartbeat,
    HeartbeatReply,
    Message,
    SnapshotOffer,
    TimeoutNow,
    Vote,
    VoteReply,
)

__all__ = ["NOBODY", "Raft", "Role"]

NOBODY: Final[ReplicaId] = 0
"""No leader known, no vote given, no transfer under way."""

_kind_of: Final = attrgetter("kind")


class Role(Enum):
    """§5.1, and the rehearsal of D §9.6."""

    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


class Raft:
    """One replica of one group. Synchronous and pure: it knows no clock, no disk, no network.

    The host calls the methods below in any order, and after any of them :meth:`ready` while
    :meth:`has_ready`, doing what the contract of :class:`Ready` says; and :meth:`tell_commit` a
    little after :attr:`commit_untold`. Attributes without an underscore are for reading.

    ``hard_state`` and ``log`` are what the disk held when the process started, ``applied`` the
    index up to which the state machine on the same disk had applied: commitment is recovered from
    it. ``configuration`` is the one that the state machine has applied (:class:`Ready`, point 3);
    as long as there is none, ``voters`` and ``learners`` are those with which the group began. A
    replica that joins later has neither. ``random`` draws the election time-outs.
    """

    __slots__ = (
        "_append_due",
        "_config",
        "_configurations",
        "_elapsed",
        "_handed_leader",
        "_handed_role",
        "_handed_term",
        "_handed_vote",
        "_handed_vote_term",
        "_heartbeat_due",
        "_heartbeat_elapsed",
        "_log",
        "_messages",
        "_messages_after_persist",
        "_peers",
        "_random",
        "_read_states",
        "_reads",
        "_reads_lost",
        "_restoring",
        "_snapshots",
        "_timeout",
        "_transfer_elapsed",
        "_votes",
        "commit_untold",
        "distrusted",
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
        voters: Iterable[ReplicaId] = (),
        learners: Iterable[ReplicaId] = (),
        configuration: Configuration | None = None,
        hard_state: HardState,
        log: LogReader,
        applied: int,
        config: RaftConfig,
        random: Random,
    ) -> None:
        self.group = group
        self.replica = replica
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

        self._peers = Peers(replica, config)
        founding = Configuration.of(voters, learners) if voters else UNKNOWN
        self._configurations = ConfigurationLog(configuration or founding)
        for entries in self._log.unapplied():
            self._configurations.append(entries)
        self._take_configuration()
        self._reads = ReadRounds()

        self.commit_untold = False
        """As a leader: something was committed since :meth:`tell_commit`."""
        self._append_due = False
        """Some peer is to get entries or a probe."""
        self._heartbeat_due = False
        self._restoring: SnapshotOffer | None = None
        """The snapshot that the host is taking in."""
        self.distrusted = False
        """See :meth:`distrust`."""
        self._messages: list[Message] = []
        self._messages_after_persist: list[Message] = []
        self._snapshots: list[SnapshotNeeded] = []
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
    def configuration(self) -> Configuration:
        """The one that counts: the latest in the log, committed or not (§6)."""
        return self._peers.configuration

    @property
    def voters(self) -> tuple[ReplicaId, ...]:
        return self.configuration.voters

    @property
    def learners(self) -> tuple[ReplicaId, ...]:
        return self.configuration.learners

    @property
    def applied_configuration(self) -> Configuration:
        """The one at :attr:`applied`, which a snapshot that ends there says."""
        return self._configurations.applied

    @property
    def change_pending(self) -> bool:
        """Whether a change of the configuration is not yet done: not applied, or joint."""
        return self._configurations.latest_index > 0 or self.configuration.is_joint

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
    def first_index(self) -> int:
        """Of the oldest entry in the log."""
        return self._log.first_index

    @property
    def is_leader(self) -> bool:
        return self.role is Role.LEADER

    @property
    def is_restoring(self) -> bool:
        """Whether the host is taking in a snapshot."""
        return self._restoring is not None

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
        if self.role is not Role.LEADER or replica not in self._peers:
            return 0
        return self._peers[replica].match

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

    def propose(self, data: bytes, kind: int = 0) -> tuple[int, int]:
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
        self._log.append(Entry(self.term, index, data, kind))
        self._append_due = True
        return index, self.term

    def change_refusal(self, change: Change) -> Refusal | None:
        """Why :meth:`propose_configuration` would refuse ``change`` now."""
        reason = self.refusal()
        if reason is not None:
            return reason
        if self.change_pending:
            return Refusal.CHANGE_PENDING
        if not self.committed_in_term:
            return Refusal.TERM_TOO_YOUNG
        if unfit(self.configuration, change):
            return Refusal.IMPOSSIBLE
        last_index = self._log.last_index
        if not all(self._peers.caught_up(learner, last_index) for learner in change.promote):
            return Refusal.NOT_CAUGHT_UP
        after = changed(self.configuration, change)
        if after.voters != self.voters and not self._peers.could_decide(after):
            return Refusal.QUORUM_LOST
        return None

    def propose_configuration(self, change: Change) -> tuple[int, int]:
        """Begin to change the members (§6): index and term of the entry, as for :meth:`propose`.

        It counts from now on, also before it is committed. Of a change in two steps the entry is
        the first; the second follows by itself, and the change is done when
        :attr:`change_pending` is False. Raises :class:`ProposalRefused` exactly when
        :meth:`change_refusal` says why.
        """
        reason = self.change_refusal(change)
        if reason is not None:
            raise ProposalRefused(reason)
        return self._append_configuration(changed(self.configuration, change))

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
        if self.role is Role.LEADER or self._restoring:
            return
        self._elapsed = 0
        if self._may_campaign():
            self._become_pre_candidate()
        else:
            self.leader = NOBODY

    def is_ahead_of(self, candidate: Vote) -> bool:
        """Whether ``candidate`` lacks something that our log has, so that we do not vote for it."""
        return not self._log.is_up_to_date(candidate.last_index, candidate.last_term)

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
        for peer in self._peers.others:
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
        self._begin_transfer(target)

    def peer_unreachable(self, replica: ReplicaId) -> None:
        """The stream to ``replica`` broke: what was sent ahead is taken for lost."""
        peer = self._peers.find(replica)
        if self.role is not Role.LEADER or peer is None:
            return
        if peer.state is not ProgressState.SNAPSHOT:
            peer.become_probe()

    def distrust(self) -> None:
        """The state machine of this replica is not what the log makes of it, as the host found out
        by comparison with others. It needs a snapshot, after which the host starts it anew.

        Until then it does not campaign, and keeps its log. It goes on to vote and to acknowledge:
        both say something of its log alone, and that is what it was.
        """
        assert self.role is not Role.LEADER, "it hands over first"
        self.distrusted = True
        if self.role is not Role.FOLLOWER:
            self._become_follower(self.term, NOBODY)

    def step_down(self) -> None:
        """Give up the leadership without a new term: our disk fails, or is too slow."""
        if self.role is Role.LEADER:
            self._become_follower(self.term, NOBODY)

    def persisted(self, index: int, term: int) -> None:
        """The entries of a Ready that ended with ``(index, term)`` are durable, and all before.

        Reports come in the order of the Readys; an unknown one changes nothing.
        """
        if self._log.persisted_to(index, term) and self.role is Role.LEADER:
            self._peers.own.acked(self._log.persisted)
            self._try_commit(self._log.persisted)

    def applied_to(self, index: int) -> None:
        """The state machine has applied everything up to ``index``."""
        self._log.applied_to(index)
        self._configurations.applied_to(index)

    # -- Truncation and snapshots (§7) -----------------------------------------------------------

    def truncation_point(self, keep_entries: int, *, spare_followers: bool = True) -> int:
        """The highest index up to which the log may be dropped; ``first_index - 1`` for nothing.

        Never what is not applied, not durable, or behind a snapshot that is on its way to a peer;
        nor the newest ``keep_entries``; nor what a follower that answers still lacks, unless the
        host finds the log too long for that and says so with ``spare_followers``: then it is only
        one that catches up behind a snapshot.
        """
        log = self._log
        nothing = log.first_index - 1
        if self._restoring or self.distrusted:
            return nothing
        point = min(log.applied, log.persisted, log.last_index - keep_entries)
        if self.role is Role.LEADER:
            if not self.committed_in_term:
                return nothing  # we have not heard yet who needs what
            point = self._peers.needed_from(point, spare_followers=spare_followers)
        return max(point, nothing)

    def truncated_to(self, index: int) -> None:
        """The host has dropped the log up to ``index``, which :meth:`truncation_point` allowed."""
        assert not self._restoring
        self._log.truncated_to(index)

    def snapshot_offer(self, target: ReplicaId) -> SnapshotOffer:
        """The offer of a snapshot of what is applied now. Raises :class:`NotLeading`."""
        if self.role is not Role.LEADER:
            raise NotLeading
        index = self._log.applied
        last_term = self._log.term(index)
        return SnapshotOffer(self.group, self.replica, target, self.term, index, last_term)

    def snapshot_finished(self, target: ReplicaId, index: int) -> None:
        """``target`` has a snapshot that ends at ``index``, durably: go on behind it."""
        peer = self._peers.find(target)
        if self.role is Role.LEADER and peer is not None:
            self._acked(peer, index)

    def snapshot_failed(self, target: ReplicaId) -> None:
        """``target`` has not got its snapshot. If it answers heartbeats, it is asked anew."""
        peer = self._peers.find(target)
        if self.role is Role.LEADER and peer is not None:
            peer.snapshot_failed()

    def wants(self, offer: SnapshotOffer) -> bool:
        """Whether the snapshot would bring this replica something; after it has stepped ``offer``.

        Never one that goes back, and none whose last entry the log has: what follows it there may
        have been acknowledged. But one that is distrusted wants just such a one, to go on from
        there by its log (:meth:`has_last_of`).
        """
        assert offer.term <= self.term, "an offer is stepped first"
        if self.role is Role.LEADER or self._restoring is not None:
            return False
        if self.has_last_of(offer):
            return self.distrusted
        return offer.index > self._log.committed

    def has_last_of(self, offer: SnapshotOffer) -> bool:
        """Whether the log has the last entry of the snapshot, or begins right behind it: then all
        that follows it there is kept."""
        return offer.index + 1 >= self._log.first_index and self._log.matches(
            offer.index, offer.last_term
        )

    def begin_restore(self, offer: SnapshotOffer) -> bool:
        """The host has all of the snapshot and is about to take it in: whether it still may.

        From now on the log and the state machine are the host's, until :meth:`restore` or
        :meth:`abandon_restore`.
        """
        if not self.wants(offer):
            return False
        if self.role is not Role.FOLLOWER:
            self._become_follower(self.term, NOBODY)
        self._restoring = offer
        return True

    def restore(self, configuration: Configuration) -> None:
        """The snapshot of :meth:`begin_restore` has replaced everything, durably.

        ``configuration`` is what it says. A log that conflicted with it is gone.
        """
        offer = self._restoring
        assert offer is not None
        self._restoring = None
        self._log.restore(offer.index, offer.last_term)
        self._configurations.restore(configuration)
        self._take_configuration()
        if self.leader != NOBODY:
            self._acknowledge(self.leader, offer.index)

    def abandon_restore(self) -> None:
        """Nothing was taken in after all."""
        self._restoring = None

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

    def take_replies(self) -> tuple[Message, ...]:
        """The messages that may leave at once, if they are all that is due; else none, and
        :meth:`ready` has them. Most heartbeats need no more, and a Ready costs ten times as much.
        """
        replies = self._messages
        if not replies:
            return ()
        self._messages = []
        if self.has_ready():
            self._messages = replies
            return ()
        return tuple(replies)

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
            snapshots=tuple(self._snapshots),
            reads=tuple(self._read_states),
            reads_lost=tuple(self._reads_lost),
            role_changed=role_changed,
        )
        self._messages.clear()
        self._messages_after_persist.clear()
        self._snapshots.clear()
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
        """Take in a message. Those for other replicas, and answers of strangers, change nothing."""
        assert message.group == self.group
        if message.target != self.replica:
            return
        if message.source == self.replica:
            if type(message) is not VoteReply:
                return
        elif message.source not in self._peers and isinstance(message, _ANSWERS):
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
        if isinstance(message, Append | SnapshotOffer):
            refused = message.prev_index if isinstance(message, Append) else message.index
            reply = AppendReply(self.group, self.replica, message.source, self.term, refused, True)
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

    def _may_campaign(self) -> bool:
        """We are a voter, or not known not to be: while our removal may yet be replaced, ours can
        be the only log that a majority of the old configuration would elect (D §4.2.2). Our own
        vote counts by the latest one as any other, so not then."""
        return not self.distrusted and any(
            configuration.is_voter(self.replica)
            for configuration in self._configurations.undecided(self._log.committed)
        )

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
            for peer in self._peers.others
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
        self._peers.reset(log.last_index + 1)
        self._peers.own.acked(log.persisted)
        self.term_start = log.last_index + 1
        log.append(Entry(self.term, self.term_start))
        self._append_due = True

    # -- CheckQuorum and the leader's clock (D §6.2, §3.10) --------------------------------------

    def _tick_leader(self) -> None:
        if self._elapsed >= self._config.election_ticks:
            self._elapsed = 0
            if not self._peers.heard_quorum():
                self._become_follower(self.term, NOBODY)
                return
        if self.transferee:
            self._transfer_elapsed += 1
            if self._transfer_elapsed >= self._config.election_ticks:
                self.transferee = NOBODY
                self._finish_change(hand_over=False)
                if self.role is not Role.LEADER:
                    return
        self._heartbeat_elapsed += 1
        if self._heartbeat_elapsed >= self._config.heartbeat_ticks:
            self._heartbeat_elapsed = 0
            self._heartbeat_due = bool(self._peers.others)
            for peer in self._peers.others:
                peer.beat()

    # -- Replication, as the leader (§5.3, D §10.2) ----------------------------------------------

    def _speak_as_leader(self) -> None:
        """Make the messages that are due, each kind once for all that happened."""
        if self._reads.waiting and self.committed_in_term:
            self._peers.own.round_acked = self._reads.open(self._log.committed)
            self._confirm_reads()
            self._heartbeat_due = self._heartbeat_due or self._reads.unconfirmed
        if self._append_due:
            self._append_due = False
            for peer in self._peers.others:
                self._send_appends(peer)
        if self._heartbeat_due:
            self._heartbeat_due = False
            for peer in self._peers.others:
                self._send_heartbeat(peer)

    def _send_appends(self, peer: Progress) -> None:
        """Everything that ``peer`` lacks, as far as its state and the bounds allow."""
        last_index = self._log.last_index
        if peer.state is ProgressState.SNAPSHOT or peer.probe_sent:
            return
        if peer.next < self._log.first_index:
            self._need_snapshot(peer)
            return
        if peer.state is ProgressState.PROBE:
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

    def _need_snapshot(self, peer: Progress) -> None:
        """What ``peer`` lacks is dropped (§7). One that does not answer is left alone."""
        if peer.is_live:
            peer.become_snapshot(self._log.applied)
            self._snapshots.append(SnapshotNeeded(peer.replica, peer.pending))
        elif peer.state is ProgressState.REPLICATE:
            peer.become_probe()

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
        peer = self._peers[message.source]
        peer.recent_active = True
        if message.reject:
            self._on_rejection(peer, message)
            return
        self._acked(peer, message.index)

    def _acked(self, peer: Progress, index: int) -> None:
        assert index <= self._log.last_index, "acknowledged what we never had"
        if not peer.acked(index):
            return
        peer.catch_up(self._log.last_index)
        transferring = peer.replica == self.transferee
        self._try_commit(index)
        if self.role is not Role.LEADER:
            return
        if peer.next <= self._log.last_index:
            self._append_due = True
        if peer.commit_sent < min(peer.match, self._log.committed):
            self.commit_untold = True
        if transferring:
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
        peer = self._peers[message.source]
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
        if self._restoring:
            return
        log = self._log
        if message.prev_index < log.committed:
            # An old message: what is committed here agrees with every leader (§5.4).
            self._acknowledge(message.source, log.committed)
        elif log.try_append(message.prev_index, message.prev_term, message.entries):
            if self._configurations.latest_index or any(map(_kind_of, message.entries)):
                self._configurations.retain(log.matches)
                self._configurations.append(message.entries)
                self._take_configuration()
            last = message.prev_index + len(message.entries)
            log.commit_to(min(message.commit, last))
            self._acknowledge(message.source, last)
        else:
            self._reject(message)

    def _acknowledge(self, leader: ReplicaId, index: int) -> None:
        self._messages_after_persist.append(
            AppendReply(self.group, self.replica, leader, self.term, index)
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
        if not self._restoring:
            self._log.commit_to(message.commit)

    def _on_snapshot_offer(self, message: SnapshotOffer) -> None:
        """A snapshot holds what is committed: having its last entry is having all of it."""
        self._follow(message.source)
        if self._restoring:
            return
        log = self._log
        if log.committed < message.index and log.matches(message.index, message.last_term):
            log.commit_to(message.index)
        if message.index <= log.committed:
            self._acknowledge(message.source, log.committed)

    def _on_heartbeat(self, message: Heartbeat) -> None:
        self._follow(message.source)
        if not self._restoring:
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
        index = self._peers.committed()
        if index <= log.committed or index < self.term_start:
            return
        log.commit_to(index)
        self.commit_untold = bool(self._peers.others)
        self._finish_change()

    def _confirm_reads(self) -> None:
        if self._reads.unconfirmed:
            confirmed = self._peers.confirmed()
            self._read_states += self._reads.confirm(confirmed)

    # -- Membership (§6, D §4) -------------------------------------------------------------------

    def _take_configuration(self) -> None:
        """Let the latest configuration of the log count."""
        configuration = self._configurations.latest
        if configuration != self._peers.configuration:
            self._peers.take(configuration, self._log.last_index + 1)

    def _append_configuration(self, configuration: Configuration) -> tuple[int, int]:
        index = self._log.last_index + 1
        entry = Entry(self.term, index, encode_configuration(configuration), CONFIGURATION)
        self._log.append(entry)
        self._configurations.append((entry,))
        self._take_configuration()
        self._append_due = True
        # Fewer may be needed now for what is on its way; never for this entry, which is nowhere.
        self._try_commit(index)
        self._confirm_reads()
        return index, self.term

    def _finish_change(self, *, hand_over: bool = True) -> None:
        """Something was committed, or a transfer has failed: take the step that is next.

        A joint configuration is left as soon as it is committed. A leader whose removal is hands
        over first, if another voter is there, and then steps down. None of it during a transfer,
        which another entry would hold up.
        """
        if self.transferee or self._configurations.latest_index > self._log.committed:
            return
        if self.configuration.is_joint:
            self._append_configuration(left(self.configuration))
        elif not self.configuration.is_voter(self.replica):
            successor = self._peers.successor() if hand_over else None
            if successor is None:
                self._become_follower(self.term, NOBODY)
            else:
                self._begin_transfer(successor)

    # -- Transfer (D §3.10) ----------------------------------------------------------------------

    def _begin_transfer(self, target: ReplicaId) -> None:
        self.transferee = target
        self._transfer_elapsed = 0
        peer = self._peers[target]
        if peer.match < self._log.last_index:
            peer.ask = self._append_due = True
        self._try_transfer(peer)

    def _try_transfer(self, peer: Progress) -> None:
        """Tell the target to campaign as soon as it has everything."""
        if peer.replica == self.transferee and peer.match == self._log.last_index:
            self._messages.append(TimeoutNow(self.group, self.replica, peer.replica, self.term))

    def _on_timeout_now(self, _message: TimeoutNow) -> None:
        """No rehearsal: the leader wants it, and its followers must not stand on their leases."""
        if self.role is not Role.LEADER and not self._restoring and self._may_campaign():
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
    SnapshotOffer: Raft._on_snapshot_offer,
}

_ANSWERS: Final = (AppendReply, HeartbeatReply, VoteReply)
