"""What a leader does, from its election to its end, in the term in which it was elected.

It changes neither role nor term nor vote, which are ``core.py``'s: where a rule says that the
leader steps down, :attr:`Leadership.resigned` is set, and the core does it.

CheckQuorum (D §6.2)
    A leader that does not hear a quorum within an election time-out steps down.

Replication (§5.3, D §10.2)
    Appends are sent ahead of their answers and of the leader's own disk. A refusal names the last
    entry that could agree, by term, and the leader skips with its own terms: one round per term
    that differs, not one per entry.

Commitment (§5.4.2)
    Durable on a quorum *and* of the leader's own term; then everything before it is committed as
    well. The leader's own copy counts when its disk says so (D §10.2.1). A new leader appends an
    empty entry (§8), and until that is committed answers no reads. Followers learn of it with the
    next Append or heartbeat, or from a notice that asks for no answer (:meth:`tell_commit`).

Reads (D §6.4)
    ReadIndex rounds, see ``read_only.py``. No clock is trusted.

Transfer (D §3.10)
    The leader takes no more proposals, brings the target up to date and tells it to campaign. It
    goes on by itself after an election time-out.

Membership (§6, D §4)
    ``membership.py`` says which changes take two steps, and when one is let in. A leader that is no
    voter any more goes on until that is committed, without counting itself, then hands over and
    steps down.

Messages are not made when their cause occurs but when :meth:`Leadership.speak` is called, for each
Ready: whatever happened since the last one leaves as one Append, one Heartbeat per peer.
"""

from __future__ import annotations

from cluster_core.config import RaftConfig
from cluster_core.raft.log import RaftLog
from cluster_core.raft.membership import (
    Change,
    ConfigurationLog,
    changed,
    encode_configuration,
    left,
    unfit,
)
from cluster_core.raft.outbox import Outbox
from cluster_core.raft.peers import Peers
from cluster_core.raft.progress import Progress, ProgressState
from cluster_core.raft.quorum import Configuration
from cluster_core.raft.read_only import ReadRounds
from cluster_core.raft.ready import SnapshotNeeded
from cluster_core.raft.refusals import Refusal
from cluster_core.raft.roles import NOBODY
from cluster_core.types import ReplicaId
from cluster_core.wire.messages import (
    CONFIGURATION,
    Append,
    AppendReply,
    Commit,
    Entry,
    Heartbeat,
    HeartbeatReply,
    TimeoutNow,
)

__all__ = ["Leadership"]


class Leadership:
    """See the head of this module: figure 2, "volatile state on leaders", and what they do.

    Between :meth:`begin` and :meth:`end` the replica leads ``term``; at other times nothing is due,
    and nothing but these attributes may be asked for. ``log``, ``peers``, ``configurations`` and
    ``outbox`` are those of the replica.
    """

    __slots__ = (
        "_config",
        "_configurations",
        "_heartbeat_elapsed",
        "_log",
        "_outbox",
        "_peers",
        "_quorum_elapsed",
        "_transfer_elapsed",
        "append_due",
        "commit_untold",
        "heartbeat_due",
        "reads",
        "resigned",
        "term",
        "term_start",
        "transferee",
    )

    def __init__(
        self,
        *,
        config: RaftConfig,
        log: RaftLog,
        peers: Peers,
        configurations: ConfigurationLog,
        outbox: Outbox,
    ) -> None:
        self._config = config
        self._log = log
        self._peers = peers
        self._configurations = configurations
        self._outbox = outbox
        self.term = 0
        self.term_start = 0
        """Index of the empty entry with which this term began."""
        self.reads = ReadRounds()
        self.transferee = NOBODY
        """D §3.10: whom the leadership is being handed to."""
        self.append_due = False
        """Some peer is to get entries or a probe."""
        self.heartbeat_due = False
        self.commit_untold = False
        """Something was committed since :meth:`tell_commit`."""
        self.resigned = False
        """The quorum is lost, or nobody is left to hand over to: it is to end."""
        self._quorum_elapsed = 0
        """Ticks since the quorum was checked."""
        self._heartbeat_elapsed = 0
        self._transfer_elapsed = 0

    def begin(self, term: int) -> None:
        """Elected in ``term``."""
        log = self._log
        self.term = term
        self.resigned = False
        self._quorum_elapsed = self._heartbeat_elapsed = 0
        self._peers.reset(log.last_index + 1)
        self._peers.own.acked(log.persisted)
        self.term_start = log.last_index + 1
        log.append(Entry(term, self.term_start))
        self.append_due = True

    def end(self) -> None:
        """Another term has begun, or the replica steps down in this one."""
        self._outbox.reads_lost += self.reads.abandon()
        self.transferee = NOBODY
        self.append_due = False
        self.heartbeat_due = False
        self.commit_untold = False

    @property
    def has_committed(self) -> bool:
        """Whether an entry of its own term is committed: the commit index is no older than any
        write that a client was told of (§8)."""
        return self._log.committed >= self.term_start

    @property
    def uncommitted_bytes(self) -> int:
        """Bytes of what was proposed in this term and is not committed yet."""
        return self._log.bytes_from(max(self._log.committed, self.term_start) + 1)

    # -- Proposals (§5.3) ------------------------------------------------------------------------

    def refusal(self) -> Refusal | None:
        """Why a proposal would be refused now."""
        if self.transferee:
            return Refusal.TRANSFERRING
        if self.uncommitted_bytes >= self._config.uncommitted_bytes_max:
            return Refusal.TOO_MANY_UNCOMMITTED
        return None

    def append(self, data: bytes, kind: int) -> int:
        """Append an entry to the log, which is the first thing to do with a proposal; its index."""
        index = self._log.last_index + 1
        self._log.append(Entry(self.term, index, data, kind))
        self.append_due = True
        return index

    # -- The clock (D §6.2, §3.10) ---------------------------------------------------------------

    def tick(self) -> None:
        """One tick of ``tick_ms`` has passed."""
        self._quorum_elapsed += 1
        if self._quorum_elapsed >= self._config.election_ticks:
            self._quorum_elapsed = 0
            if not self._peers.heard_quorum():
                self.resigned = True
                return
        if self.transferee:
            self._transfer_elapsed += 1
            if self._transfer_elapsed >= self._config.election_ticks:
                self.abort_transfer(self.transferee)
                if self.resigned:
                    return
        self._heartbeat_elapsed += 1
        if self._heartbeat_elapsed >= self._config.heartbeat_ticks:
            self._heartbeat_elapsed = 0
            self.heartbeat_due = bool(self._peers.others)
            for peer in self._peers.others:
                peer.beat()

    # -- What it says (§5.3, D §10.2) ------------------------------------------------------------

    def speak(self) -> None:
        """Make the messages that are due, each kind once for all that happened."""
        if self.reads.waiting and self.has_committed:
            self._peers.own.round_acked = self.reads.open(self._log.committed)
            self._confirm_reads()
            self.heartbeat_due = self.heartbeat_due or self.reads.unconfirmed
        if self.append_due:
            self.append_due = False
            for peer in self._peers.others:
                self._send_appends(peer)
        if self.heartbeat_due:
            self.heartbeat_due = False
            level = self._level()
            for peer in self._peers.others:
                self._send_heartbeat(peer, level)

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
        log, outbox = self._log, self._outbox
        prev_index = peer.next - 1
        last = prev_index + len(entries)
        commit = min(log.committed, last)
        outbox.messages.append(
            Append(
                outbox.group,
                outbox.replica,
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
            self._outbox.snapshots.append(SnapshotNeeded(peer.replica, peer.pending))
        elif peer.state is ProgressState.REPLICATE:
            peer.become_probe()

    def _level(self) -> int:
        """Up to where all who answer have the log; 0 while we have not heard yet who has what."""
        if not self.has_committed:
            return 0
        return self._peers.needed_from(self._log.committed, spare_followers=True)

    def _send_heartbeat(self, peer: Progress, level: int) -> None:
        """Commits no more than what ``peer`` surely has: a heartbeat checks no log."""
        outbox = self._outbox
        outbox.messages.append(
            Heartbeat(
                outbox.group,
                outbox.replica,
                peer.replica,
                self.term,
                min(peer.match, self._log.committed),
                self.reads.latest,
                level,
            )
        )

    def tell_commit(self) -> None:
        """Tell the followers how far the log is committed, those that do not know it yet."""
        outbox = self._outbox
        self.commit_untold = False
        for peer in self._peers.others:
            commit = min(peer.match, self._log.committed)
            if commit > peer.commit_sent:
                peer.commit_sent = commit
                outbox.messages.append(
                    Commit(outbox.group, outbox.replica, peer.replica, self.term, commit)
                )

    # -- What it hears (§5.3, §7) ----------------------------------------------------------------

    def on_append_reply(self, message: AppendReply) -> None:
        peer = self._peers[message.source]
        peer.recent_active = True
        if message.reject:
            self._on_rejection(peer, message)
        else:
            self._acked(peer, message.index)

    def _acked(self, peer: Progress, index: int) -> None:
        assert index <= self._log.last_index, "acknowledged what we never had"
        if not peer.acked(index):
            return
        peer.catch_up(self._log.last_index)
        transferring = peer.replica == self.transferee
        self._try_commit(index)
        if self.resigned:
            return
        if peer.next <= self._log.last_index:
            self.append_due = True
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
            self.append_due = True

    def on_heartbeat_reply(self, message: HeartbeatReply) -> None:
        peer = self._peers[message.source]
        peer.recent_active = True
        if peer.answered_beat():
            self.append_due = True
        if message.round > peer.round_acked:
            peer.round_acked = message.round
            self._confirm_reads()

    def persisted(self) -> None:
        """Our own disk has more of the log than before."""
        self._peers.own.acked(self._log.persisted)
        self._try_commit(self._log.persisted)

    def unreachable(self, replica: ReplicaId) -> None:
        """What was sent ahead to ``replica`` is taken for lost."""
        peer = self._peers.find(replica)
        if peer is not None and peer.state is not ProgressState.SNAPSHOT:
            peer.become_probe()

    def snapshot_finished(self, target: ReplicaId, index: int) -> None:
        """``target`` has a snapshot that ends at ``index``, durably: go on behind it."""
        peer = self._peers.find(target)
        if peer is not None:
            self._acked(peer, index)

    def snapshot_failed(self, target: ReplicaId) -> None:
        peer = self._peers.find(target)
        if peer is not None:
            peer.snapshot_failed()

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
        if self.reads.unconfirmed:
            self._outbox.reads += self.reads.confirm(self._peers.confirmed())

    # -- Membership (§6, D §4) -------------------------------------------------------------------

    def change_refusal(self, change: Change) -> Refusal | None:
        """Why ``change`` would be refused now, though a proposal is let in."""
        peers = self._peers
        if self._configurations.change_pending:
            return Refusal.CHANGE_PENDING
        if not self.has_committed:
            return Refusal.TERM_TOO_YOUNG
        if unfit(peers.configuration, change):
            return Refusal.IMPOSSIBLE
        last_index = self._log.last_index
        if not all(peers.caught_up(learner, last_index) for learner in change.promote):
            return Refusal.NOT_CAUGHT_UP
        after = changed(peers.configuration, change)
        if after.voters != peers.configuration.voters and not peers.could_decide(after):
            return Refusal.QUORUM_LOST
        return None

    def begin_change(self, change: Change) -> int:
        """Append the first step of ``change``; the index of its entry."""
        return self._append_configuration(changed(self._peers.configuration, change))

    def _append_configuration(self, configuration: Configuration) -> int:
        index = self._log.last_index + 1
        entry = Entry(self.term, index, encode_configuration(configuration), CONFIGURATION)
        self._log.append(entry)
        self._configurations.append((entry,))
        self._peers.take(self._configurations.latest, index + 1)
        self.append_due = True
        # Fewer may be needed now for what is on its way; never for this entry, which is nowhere.
        self._try_commit(index)
        self._confirm_reads()
        return index

    def _finish_change(self, *, hand_over: bool = True) -> None:
        """Something was committed, or a transfer has failed: take the step that is next.

        A joint configuration is left as soon as it is committed. A leader whose removal is hands
        over first, if another voter is there, and then steps down. None of it during a transfer,
        which another entry would hold up.
        """
        if self.transferee or self._configurations.latest_index > self._log.committed:
            return
        configuration = self._peers.configuration
        if configuration.is_joint:
            self._append_configuration(left(configuration))
        elif not configuration.is_voter(self._outbox.replica):
            successor = self._peers.successor() if hand_over else None
            if successor is None:
                self.resigned = True
            else:
                self._begin_transfer(successor)

    # -- Transfer (D §3.10) ----------------------------------------------------------------------

    def transfer(self, target: ReplicaId) -> None:
        """Hand over to ``target``. Nothing if that is us, or no voter."""
        if target in (self._outbox.replica, self.transferee):
            return
        if self._peers.configuration.is_voter(target):
            self._begin_transfer(target)

    def abort_transfer(self, target: ReplicaId) -> None:
        """Go on leading if it is ``target`` to whom we hand over."""
        if target == self.transferee:
            self.transferee = NOBODY
            self._finish_change(hand_over=False)

    def _begin_transfer(self, target: ReplicaId) -> None:
        self.transferee = target
        self._transfer_elapsed = 0
        peer = self._peers[target]
        if peer.match < self._log.last_index:
            peer.ask = self.append_due = True
        self._try_transfer(peer)

    def _try_transfer(self, peer: Progress) -> None:
        """Tell the target to campaign as soon as it has everything."""
        if peer.replica == self.transferee and peer.match == self._log.last_index:
            outbox = self._outbox
            outbox.messages.append(
                TimeoutNow(outbox.group, outbox.replica, peer.replica, self.term)
            )
