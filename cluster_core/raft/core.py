"""The Raft state machine: messages and ticks in, one :class:`Ready` out.

This file owns every transition of term, role and vote. Section numbers are those of the Raft paper
(Ongaro and Ousterhout 2014, extended version); those marked D are of Ongaro's dissertation.

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

Leases (D §4.2.3)
    A replica that heard its leader within an election time-out ignores campaigns, unless the
    leader asked for them (a transfer) or the host said that the leader is gone
    (:meth:`Raft.leader_lost`).

Leading
    What a leader does in its term is in ``leadership.py``, with its rules: CheckQuorum, Appends,
    commitment, reads, transfer, changes of the members.

Following (§5.3)
    Followers acknowledge what is durable. A refusal names the last entry that could agree, by term.

Membership (§6, D §4)
    The latest configuration in the log counts, committed or not; ``membership.py`` says why. One
    that is no voter any more campaigns until that is committed (D §4.2.2). Requests are taken from
    replicas that we have never heard of: they may know a newer configuration.

Compaction (§7)
    The host drops what is applied, durable, and needed by no peer that is near. A peer that needs
    it all the same gets a snapshot, out of band; ``ready.py`` has the contract for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any, Final

from cluster_core.config import RaftConfig
from cluster_core.ports import Random
from cluster_core.raft.leadership import Leadership
from cluster_core.raft.log import LogReader, RaftLog
from cluster_core.raft.membership import Change, ConfigurationLog
from cluster_core.raft.outbox import Outbox
from cluster_core.raft.peers import Peers
from cluster_core.raft.quorum import UNKNOWN, Configuration, VoteResult
from cluster_core.raft.ready import Ready
from cluster_core.raft.refusals import NotLeading, ProposalRefused, Refusal
from cluster_core.raft.roles import NOBODY, Role
from cluster_core.types import GroupId, ReplicaId
from cluster_core.wire.messages import (
    Append,
    AppendReply,
    Commit,
    HardState,
    Heartbeat,
    HeartbeatReply,
    Message,
    SnapshotOffer,
    TimeoutNow,
    Vote,
    VoteReply,
)

__all__ = ["Raft"]

_kind_of: Final = attrgetter("kind")


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
        "_config",
        "_configurations",
        "_elapsed",
        "_leadership",
        "_level",
        "_log",
        "_outbox",
        "_peers",
        "_random",
        "_restoring",
        "_timeout",
        "_votes",
        "distrusted",
        "group",
        "leader",
        "replica",
        "retiring",
        "role",
        "term",
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

        self._elapsed = 0
        """Ticks since the leader was heard, or a campaign begun; a leader counts its own."""
        self._timeout = self._draw_timeout()
        self._votes: dict[ReplicaId, bool] = {}
        """Answers to the campaign that is under way."""
        self._restoring: SnapshotOffer | None = None
        """The snapshot that the host is taking in."""
        self._level = 0
        """Up to here all who answer our leader have the log, as it said last."""
        self.distrusted = False
        """See :meth:`distrust`."""
        self.retiring = False
        """See :meth:`retire`."""

        self._peers = Peers(replica, config)
        founding = Configuration.of(voters, learners) if voters else UNKNOWN
        self._configurations = ConfigurationLog(configuration or founding)
        for entries in self._log.unapplied():
            self._configurations.append(entries)
        self._take_configuration()
        self._outbox = Outbox(group, replica, hard_state, self.role, self.leader)
        self._leadership = Leadership(
            config=config,
            log=self._log,
            peers=self._peers,
            configurations=self._configurations,
            outbox=self._outbox,
        )

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
        return self._configurations.change_pending

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
        return self.role is Role.LEADER and self._leadership.has_committed

    @property
    def term_start(self) -> int:
        """As a leader: index of the empty entry with which this term began."""
        return self._leadership.term_start

    @property
    def commit_untold(self) -> bool:
        """As a leader: something was committed since :meth:`tell_commit`."""
        return self._leadership.commit_untold

    @property
    def transferee(self) -> ReplicaId:
        """As a leader: whom the leadership is being handed to (D §3.10)."""
        return self._leadership.transferee

    @property
    def uncommitted_bytes(self) -> int:
        """Bytes of what was proposed in this term and is not committed yet."""
        return self._leadership.uncommitted_bytes if self.role is Role.LEADER else 0

    def match_index(self, replica: ReplicaId) -> int:
        """As a leader: up to where ``replica`` has the log on its disk, as far as we know."""
        if self.role is not Role.LEADER or replica not in self._peers:
            return 0
        return self._peers[replica].match

    # -- Requests of the host --------------------------------------------------------------------

    def tick(self) -> None:
        """One tick of ``tick_ms`` has passed."""
        if self.role is Role.LEADER:
            self._leadership.tick()
            if self._leadership.resigned:
                self.step_down()
            return
        self._elapsed += 1
        if self._elapsed >= self._timeout:
            self.campaign()

    def refusal(self) -> Refusal | None:
        """Why a proposal would be refused now; None when the next one is let in, however large."""
        if self.role is not Role.LEADER:
            return Refusal.NOT_LEADER
        return self._leadership.refusal()

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
        return self._leadership.append(data, kind), self.term

    def change_refusal(self, change: Change) -> Refusal | None:
        """Why :meth:`propose_configuration` would refuse ``change`` now."""
        return self.refusal() or self._leadership.change_refusal(change)

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
        return self._leadership.begin_change(change), self.term

    def read_index(self, context: int) -> None:
        """Ask for a point at which a linearizable read can be served (D §6.4).

        Ends as a :class:`ReadState` in ``Ready.reads``, or as ``context`` in
        ``Ready.reads_lost``. Raises :class:`NotLeading`.
        """
        if self.role is not Role.LEADER:
            raise NotLeading
        self._leadership.reads.add(context)

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
        if self.role is Role.LEADER:
            self._leadership.tell_commit()

    def transfer_leadership(self, target: ReplicaId) -> None:
        """Hand the leadership to the voter ``target`` (D §3.10), within an election time-out.

        Nothing if we do not lead, or ``target`` is ourselves or no voter.
        """
        if self.role is Role.LEADER:
            self._leadership.transfer(target)

    def abort_transfer(self, target: ReplicaId) -> None:
        """``target`` does not want the leadership. It takes it all the same if it was asked before
        it said so and wins an election."""
        if self.role is Role.LEADER:
            self._leadership.abort_transfer(target)
            if self._leadership.resigned:
                self.step_down()

    def peer_unreachable(self, replica: ReplicaId) -> None:
        """The stream to ``replica`` broke: what was sent ahead is taken for lost, and a leadership
        is not handed there any more."""
        if self.role is Role.LEADER:
            self._leadership.unreachable(replica)
            self.abort_transfer(replica)

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

    def retire(self) -> None:
        """Its node is about to stop: from now on it begins no campaign, not even when a leader
        hands over to it. What it leads, or has asked votes for, goes on."""
        self.retiring = True
        if self.role is Role.PRE_CANDIDATE:
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
            self._leadership.persisted()
            if self._leadership.resigned:
                self.step_down()

    def applied_to(self, index: int) -> None:
        """The state machine has applied everything up to ``index``."""
        self._log.applied_to(index)
        self._configurations.applied_to(index)

    # -- Truncation and snapshots (§7) -----------------------------------------------------------

    def truncation_point(self, keep_entries: int, *, spare_followers: bool = True) -> int:
        """The highest index up to which the log may be dropped; ``first_index - 1`` for nothing.

        Never what is not applied, not durable, or behind a snapshot that is on its way to a peer;
        nor the newest ``keep_entries``; nor what a follower that answers still lacks, at the leader
        or at who may be the next one, unless the host finds the log too long for that and says so
        without ``spare_followers``: then it is only one that catches up behind a snapshot.
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
        elif spare_followers:
            point = min(point, self._level)
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
        if self.role is Role.LEADER:
            self._leadership.snapshot_finished(target, index)
            if self._leadership.resigned:
                self.step_down()

    def snapshot_failed(self, target: ReplicaId) -> None:
        """``target`` has not got its snapshot. If it answers heartbeats, it is asked anew."""
        if self.role is Role.LEADER:
            self._leadership.snapshot_failed(target)

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
            self._outbox.acknowledge(self.leader, self.term, offer.index)

    def abandon_restore(self) -> None:
        """Nothing was taken in after all."""
        self._restoring = None

    # -- Output ----------------------------------------------------------------------------------

    def has_ready(self) -> bool:
        """Whether :meth:`ready` would return something to do."""
        log, outbox, leadership = self._log, self._outbox, self._leadership
        return bool(
            leadership.append_due
            or outbox.messages
            or outbox.after_persist
            or log.has_unwritten
            or log.has_unapplied
            or leadership.heartbeat_due
            or outbox.reads
            or outbox.reads_lost
            or outbox.hard_state_changed(self.term, self.vote)
            or outbox.role_changed(self.role, self.leader, self.term)
            or (leadership.reads.waiting and leadership.has_committed)
        )

    def take_replies(self) -> tuple[Message, ...]:
        """The messages that may leave at once, if they are all that is due; else none, and
        :meth:`ready` has them. Most heartbeats need no more, and a Ready costs ten times as much.
        """
        outbox = self._outbox
        replies = outbox.messages
        if not replies:
            return ()
        outbox.messages = []
        if self.has_ready():
            outbox.messages = replies
            return ()
        return tuple(replies)

    def ready(self) -> Ready:
        """Take everything that is to be done.

        :meth:`has_ready` may still hold afterwards: entries to apply come in bounded portions.
        """
        if self.role is Role.LEADER:
            self._leadership.speak()
        return self._outbox.hand_out(
            term=self.term,
            vote=self.vote,
            role=self.role,
            leader=self.leader,
            entries=self._log.take_unwritten(),
            committed=self._log.take_committed(self._config.apply_bytes_max),
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
            self._outbox.refuse(message, self.term)
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

    def _enter(self, role: Role, term: int, leader: ReplicaId) -> None:
        """Every change of role or term comes through here."""
        assert term >= self.term
        if self.role is Role.LEADER:
            self._leadership.end()
        if term != self.term:
            self.term = term
            self.vote = NOBODY
        self.role = role
        self.leader = leader
        self._elapsed = 0
        self._timeout = self._draw_timeout()
        self._votes.clear()

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
        return not (self.distrusted or self.retiring) and any(
            configuration.is_voter(self.replica)
            for configuration in self._configurations.undecided(self._log.committed)
        )

    def _become_pre_candidate(self) -> None:
        self._enter(Role.PRE_CANDIDATE, self.term, NOBODY)
        self._outbox.rehearse(self._other_voters(), self.term + 1, self._last)
        self._count_vote(self.replica, True)

    def _become_candidate(self, *, transfer: bool) -> None:
        self._enter(Role.CANDIDATE, self.term + 1, NOBODY)
        self.vote = self.replica
        self._outbox.ask_for_votes(self._other_voters(), self.term, self._last, transfer=transfer)

    def _on_timeout_now(self, _message: TimeoutNow) -> None:
        """No rehearsal: the leader wants it, and its followers must not stand on their leases."""
        if self.role is not Role.LEADER and not self._restoring and self._may_campaign():
            self._become_candidate(transfer=True)

    @property
    def _last(self) -> tuple[int, int]:
        """Index and term of the last entry."""
        return self._log.last_index, self._log.last_term

    def _other_voters(self) -> list[ReplicaId]:
        is_voter = self.configuration.is_voter
        return [peer.replica for peer in self._peers.others if is_voter(peer.replica)]

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
            self._outbox.deny(message, self.term)
            return
        if not message.pre:
            self.vote = message.source
            self._elapsed = 0
        self._outbox.grant(message)

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
        self._leadership.begin(self.term)

    # -- Leading (leadership.py) -----------------------------------------------------------------

    def _on_append_reply(self, message: AppendReply) -> None:
        if self.role is Role.LEADER:
            self._leadership.on_append_reply(message)
            if self._leadership.resigned:
                self.step_down()

    def _on_heartbeat_reply(self, message: HeartbeatReply) -> None:
        if self.role is Role.LEADER:
            self._leadership.on_heartbeat_reply(message)

    # -- Following (§5.3, §7) --------------------------------------------------------------------

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
            self._outbox.acknowledge(message.source, self.term, log.committed)
        elif log.try_append(message.prev_index, message.prev_term, message.entries):
            if self._configurations.latest_index or any(map(_kind_of, message.entries)):
                self._configurations.retain(log.matches)
                self._configurations.append(message.entries)
                self._take_configuration()
            last = message.prev_index + len(message.entries)
            log.commit_to(min(message.commit, last))
            self._outbox.acknowledge(message.source, self.term, last)
        else:
            self._reject(message)

    def _take_configuration(self) -> None:
        """Let the latest configuration of the log count."""
        self._peers.take(self._configurations.latest, self._log.last_index + 1)

    def _reject(self, message: Append) -> None:
        """Name the last entry that could agree: none of a greater term than ``prev_term`` can."""
        log = self._log
        hint = log.last_at_most(message.prev_index, message.prev_term)
        self._outbox.reject(message, self.term, hint, log.term(hint))

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
            self._outbox.acknowledge(message.source, self.term, log.committed)

    def _on_heartbeat(self, message: Heartbeat) -> None:
        self._follow(message.source)
        if not self._restoring:
            self._log.commit_to(message.commit)
        self._level = message.level
        self._outbox.answer_beat(message, self.term)


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
