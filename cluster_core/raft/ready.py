"""What a replica wants done, as one value."""

from __future__ import annotations

import msgspec

from cluster_core.raft.read_only import ReadState
from cluster_core.types import ReplicaId
from cluster_core.wire.messages import Entry, HardState, Message

__all__ = ["Ready", "SnapshotNeeded"]


class SnapshotNeeded(msgspec.Struct, frozen=True):
    """``target`` lacks what the log no longer has: bring it a snapshot that ends at ``index`` or
    later, and tell :meth:`Raft.snapshot_finished` or :meth:`Raft.snapshot_failed`, always."""

    target: ReplicaId
    index: int


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that became due since the last Ready. Each item is handed out exactly once.

    The contract of the host, Readys taken one after the other in this order:

    1. **Write** ``hard_state`` and ``entries`` as one atomic batch, in the order of the Readys.
       First delete every entry at or beyond ``entries[0].index``. Once written they must be
       visible to the :class:`~cluster_core.raft.log.LogReader`, durable or not.
    2. **Send** ``messages`` at once; they need not wait for the disk.
    3. **Apply** ``committed`` in order, and say so with ``Raft.applied_to``. They may not be
       durable here yet (a quorum has them on its disks), so what they change must never be durable
       before the log is: one write-ahead log for both does it. To apply an entry of the kind
       CONFIGURATION is to store its data, in the same atomic write as the applied index: decoded,
       it is what the replica starts with again (``Raft(configuration=...)``). It counts since it
       is in the log, so there is nothing else to do for it. One of the kind CHECKPOINT changes
       nothing, and is the last one of its Ready: so the host may look at the state behind it.
    4. **Serve** ``reads`` once their index is applied; fail ``reads_lost``, which can be tried
       again anywhere.
    5. **Sync**. Writes become durable in the order in which they were written. When those of this
       Ready *and of every earlier one* are:
       a. call ``Raft.persisted(entries[-1].index, entries[-1].term)`` if there are entries (for
          several Readys made durable by one sync the last such call is enough);
       b. only then send ``messages_after_persist``. Those whose target is the replica itself go
          to its own ``Raft.step``: a candidate counts its own vote like this. A Ready that
          writes nothing may still hold such messages: they wait for the writes before it.

    Several Readys may be outstanding: the next may be taken, written and applied while the sync of
    the one before is under way. After a crash any suffix of the writes may be missing, and with it
    everything that waited for it. After a failed write nothing is reported as persisted any more.

    **Truncation** (§7), at any time: ask ``Raft.truncation_point``, drop the log up to there in a
    write behind all those before (keeping index and term of the last one dropped), and call
    ``Raft.truncated_to`` in the same turn. It need not be durable: a log that is longer is right.

    **A snapshot, at the leader**, for each of ``snapshots``. In one turn: freeze a view of the
    state machine as it is applied, and take ``Raft.snapshot_offer`` and
    ``Raft.applied_configuration``, which belong to it. Bring them to the target, in requests of the
    host's own. Then call ``Raft.snapshot_finished`` with the offer's index when the target has said
    that it is installed, or ``Raft.snapshot_failed`` after anything else, be it a refusal or
    silence. A report does no harm when it is late, nor when it comes twice; without one the target
    is kept waiting, and the log kept for it, as long as this leadership lasts.

    **A snapshot, at the receiver**:

    1. ``Raft.step(offer)`` makes it follow the leader. If not ``Raft.wants(offer)``, refuse: it
       has all that, or learns it by Appends. Else receive the bytes, beside the replica's own.
    2. With all of them there and their checksum right, ``Raft.begin_restore(offer)``. When False,
       throw them away. When True, nothing is appended, committed, campaigned for or read from the
       log until it ends; votes and heartbeats go on.
    3. Handle Readys until none is left, and wait until everything written is durable: the term of
       the snapshot's last entry must never be ahead of the hard state on the disk.
    4. Replace, in **one atomic step**: the state machine with its applied index and configuration,
       and the log by an empty one that begins behind ``(offer.index, offer.last_term)``. A crash
       leaves all of the old or all of the new, if need be by completing the step before the
       replica is started again; the hard state is not touched. If nothing was replaced after all,
       ``Raft.abandon_restore``.
    5. When that is durable, ``Raft.restore(configuration)``. Its Ready tells the leader.
    """

    entries: tuple[Entry, ...] = ()
    """To append to the log, after deleting what is at or beyond the first of them."""
    hard_state: HardState | None = None
    """Term and vote, if one of them changed."""
    messages: tuple[Message, ...] = ()
    """To send at once: all that a leader says, and answers that promise nothing durable."""
    messages_after_persist: tuple[Message, ...] = ()
    """To send when this Ready and all before it are durable: acknowledged entries, granted votes,
    and the requests of a candidate (it must not be able to forget its term and ask again in it)."""
    committed: tuple[Entry, ...] = ()
    """To apply, in order. Bounded in bytes: the rest follows in the next Ready."""
    snapshots: tuple[SnapshotNeeded, ...] = ()
    """Peers that need a snapshot, each once for every time that it does."""
    reads: tuple[ReadState, ...] = ()
    """Reads that may be served once their index is applied."""
    reads_lost: tuple[int, ...] = ()
    """Contexts of reads that this replica can no longer confirm."""
    role_changed: bool = False
    """Role, leader or term are others than at the last Ready."""

    @property
    def writes(self) -> bool:
        """Whether there is something to write and sync."""
        return bool(self.entries) or self.hard_state is not None
