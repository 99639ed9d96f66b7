"""What a replica wants done, as one value."""

from __future__ import annotations

import msgspec

from cluster_core.raft.read_only import ReadState
from cluster_core.wire.messages import Entry, HardState, Message

__all__ = ["Ready"]


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that became due since the last Ready. Each item is handed out exactly once.

    The contract of the host, Readys taken one after the other in this order:

    1. **Write** ``hard_state`` and ``entries`` as one atomic batch, in the order of the Readys.
       First delete every entry at or beyond ``entries[0].index``. Once written they must be
       visible to the :class:`~cluster_core.raft.log.LogReader`, durable or not.
    2. **Send** ``messages`` at once; they need not wait for the disk.
    3. **Apply** ``committed`` in order, and say so with ``Raft.applied_to``. They may not be
       durable here yet (a quorum has them on its disks), so what they change must never be durable
       before the log is: one write-ahead log for both does it.
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
