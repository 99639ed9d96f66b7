"""What a leader knows of each peer, and how much it may send it (Raft figure 2, ``nextIndex``).

A peer is in one of three states:

PROBE
    The leader does not know where the logs agree, or whether the peer hears it. One Append at a
    time; the next one waits for an answer to it or to a heartbeat.
REPLICATE
    The logs agree up to ``match``. Appends are sent ahead of their acknowledgements (pipelining,
    dissertation §10.2.1), bounded by :class:`Inflights`; ``next`` moves when they are sent.

SNAPSHOT
    What the peer lacks is no longer in the leader's log (§7). It gets heartbeats and no Appends
    until it has everything up to ``pending``, by a snapshot that ends there or later; the leader
    keeps its log from there on. It goes on to keep what the peer still lacks when that has arrived,
    for as long as the peer comes nearer (:meth:`Progress.catch_up`): else a leader that writes much
    while it sends would soon have dropped what comes after the snapshot, and send another one.
"""

from __future__ import annotations

from collections import deque
from enum import Enum

from cluster_core.types import ReplicaId

__all__ = ["Inflights", "Progress", "ProgressState"]


class ProgressState(Enum):
    """See the head of this module."""

    PROBE = "probe"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"


class Inflights:
    """Appends with entries that were sent and not acknowledged yet, bounded in number and bytes.

    The bound on bytes may be passed by one message: what is checked is whether another may leave.
    """

    __slots__ = ("_messages", "bytes", "bytes_max", "messages_max")

    def __init__(self, messages_max: int, bytes_max: int) -> None:
        assert messages_max > 0
        assert bytes_max > 0
        self.messages_max = messages_max
        self.bytes_max = bytes_max
        self.bytes = 0
        self._messages: deque[tuple[int, int]] = deque()
        """``(index of the last entry, bytes)``, indexes ascending."""

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def full(self) -> bool:
        return len(self._messages) >= self.messages_max or self.bytes >= self.bytes_max

    def add(self, last_index: int, size: int) -> None:
        assert not self.full, "nothing is sent beyond the bound"
        assert not self._messages or self._messages[-1][0] < last_index
        self._messages.append((last_index, size))
        self.bytes += size

    def free_to(self, index: int) -> None:
        """Everything up to ``index`` is acknowledged."""
        messages = self._messages
        while messages and messages[0][0] <= index:
            self.bytes -= messages.popleft()[1]

    def clear(self) -> None:
        self._messages.clear()
        self.bytes = 0


class Progress:
    """One peer as its leader sees it. Invariant: ``0 <= match < next``."""

    __slots__ = (
        "_round_end",
        "_round_lag",
        "_round_match",
        "ask",
        "commit_sent",
        "inflights",
        "match",
        "next",
        "pending",
        "probe_sent",
        "recent_active",
        "replica",
        "round_acked",
        "stalled",
        "state",
        "was_active",
    )

    def __init__(self, replica: ReplicaId, inflights: Inflights) -> None:
        self.replica = replica
        self.inflights = inflights
        self.reset(1)

    def reset(self, next_index: int) -> None:
        """A new leader knows nothing, and guesses that the peer has all that it has itself."""
        assert next_index > 0
        self.state = ProgressState.PROBE
        self.match = 0
        """The peer has, on its disk, every entry of the leader's log up to here."""
        self.next = next_index
        """The entry that will be sent next."""
        self.pending = 0
        """SNAPSHOT: where the snapshot ends that the peer waits for, or before that."""
        self.probe_sent = False
        """PROBE: an Append is on its way, the next one waits."""
        self.ask = False
        """REPLICATE: an Append is due even if it is empty, to find out what was lost."""
        self.stalled = False
        """At the last heartbeat something was unanswered, and nothing of it was answered since."""
        self.commit_sent = 0
        """The highest commit index that the peer was told of, as far as the leader can know."""
        self.recent_active = False
        """The peer answered since the last check of the quorum (dissertation §6.2)."""
        self.was_active = False
        """And in the period before that check."""
        self.round_acked = 0
        """The latest read-index round that the peer confirmed (§6.4)."""
        self._round_end = 0
        """Behind a snapshot: where the log ended when this round of catching up began."""
        self._round_lag = 0
        """What the peer lacked then."""
        self._round_match = 0
        """``match`` when the quorum was checked last."""
        self.inflights.clear()

    @property
    def is_live(self) -> bool:
        """The peer was heard within the last one or two election time-outs."""
        return self.recent_active or self.was_active

    @property
    def catches_up(self) -> bool:
        """Behind a snapshot, and coming nearer."""
        return self._round_end > 0

    def become_probe(self) -> None:
        """What was sent ahead may be lost: forget it, and start again behind ``match``."""
        self.state = ProgressState.PROBE
        self.next = self.match + 1
        self.probe_sent = False
        self.ask = False
        self.stalled = False
        self.commit_sent = 0
        self.inflights.clear()

    def become_replicate(self) -> None:
        self.state = ProgressState.REPLICATE
        self.next = self.match + 1
        self.probe_sent = False
        self.inflights.clear()

    def become_snapshot(self, pending: int) -> None:
        """Wait for a snapshot that ends at ``pending`` or later."""
        assert pending > self.match
        self.become_probe()
        self.state = ProgressState.SNAPSHOT
        self.pending = pending
        self.next = pending + 1

    def snapshot_failed(self) -> None:
        """Ask again where the logs agree, but not before the peer has answered a heartbeat."""
        if self.state is ProgressState.SNAPSHOT:
            self.become_probe()
            self.probe_sent = True

    def catch_up(self, last_index: int) -> None:
        """The log ends at ``last_index``: see how far the peer has come behind a snapshot.

        It catches up in rounds (D §4.2.1), each over when it has what the log held at its
        beginning. A round that leaves as much to do as it found is the last one, and so is one
        that a period passes in without progress.
        """
        if not 0 < self._round_end <= self.match:
            return
        lag = last_index - self.match
        nearer = lag > 0 and (lag < self._round_lag or not self._round_lag)
        self._round_end, self._round_lag = (last_index, lag) if nearer else (0, 0)

    def acked(self, index: int) -> bool:
        """The peer has everything up to ``index``. False when that is no news."""
        if index > self.match:
            self.match = index
            if self.next <= index:
                self.next = index + 1
        elif self.state is not ProgressState.PROBE or index < self.match:
            return False
        if self.state is ProgressState.REPLICATE:
            self.inflights.free_to(index)
        elif self.state is ProgressState.PROBE or index >= self.pending:
            if self.state is ProgressState.SNAPSHOT:
                self._round_end, self._round_lag = index, 0
            self.become_replicate()
        self.stalled = False
        assert 0 <= self.match < self.next
        return True

    def rejected(self, index: int, hint: int) -> bool:
        """The peer has no entry at ``index`` that agrees with ours; the logs may agree at ``hint``.

        False when the rejection is an old one: what is known to match cannot be refused, a
        probe has one ``prev_index``, and nothing was sent from beyond ``next``.
        """
        if not self.match < index < self.next or self.state is ProgressState.SNAPSHOT:
            return False
        if self.state is ProgressState.PROBE and index != self.next - 1:
            return False
        self.become_probe()
        self.next = max(self.match + 1, min(index, hint + 1))
        assert 0 <= self.match < self.next
        return True

    def sent(self, last_index: int, size: int, commit: int) -> None:
        """An Append left that carries entries up to ``last_index`` (or none) and ``commit``."""
        assert last_index >= self.next - 1
        assert self.state is not ProgressState.SNAPSHOT
        if self.state is ProgressState.PROBE:
            self.probe_sent = True
        elif last_index >= self.next:
            self.inflights.add(last_index, size)
            self.next = last_index + 1
        self.ask = False
        self.commit_sent = commit

    def end_period(self) -> None:
        """The quorum was checked: what the peer answered so far was before that."""
        self.was_active = self.recent_active
        self.recent_active = False
        if self.match == self._round_match:
            self._round_end = self._round_lag = 0
        self._round_match = self.match

    def beat(self) -> None:
        """The regular heartbeat is sent now: its answer will tell whether what is out is lost."""
        self.stalled = self.probe_sent or self.match < self.next - 1

    def answered_beat(self) -> bool:
        """The peer answered a heartbeat. Whether an Append is due, to find out what is lost.

        It hears us, so what was out before the heartbeat was lost, unless its disk is slow. Asked
        at most once a heartbeat, for read-index rounds come as often as there are reads.
        """
        if self.stalled:
            self.stalled = False
            self.probe_sent = False
            self.ask = self.state is ProgressState.REPLICATE
        return self.ask or (self.state is ProgressState.PROBE and not self.probe_sent)
