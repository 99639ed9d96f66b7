"""The log as the Raft core sees it: a window in memory over a store that only the host writes.

The window holds the newest entries: surely all that are not known to be durable, all appended by
this process and not applied yet, and some older ones for followers a little behind. Older
entries are read through a :class:`LogReader`. ::

    first_index .. window ................................................. last_index
    | LogReader    | window: kept back   | to apply | to commit | to persist |

Three numbers move forward on their own: ``applied <= committed <= last`` and
``persisted <= last``. An entry may well be committed and applied before it is durable *here*:
a quorum has it on its disks.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from itertools import accumulate
from typing import Final, Protocol

from cluster_core.wire.messages import CHECKPOINT, Entry

__all__ = ["LogReader", "RaftLog", "entry_bytes"]

_ENTRY_OVERHEAD_BYTES: Final = 64
"""What an entry costs beside its data, about: so that a million empty ones are not free."""


def entry_bytes(entry: Entry) -> int:
    """What ``entry`` counts for wherever bytes are bounded."""
    return len(entry.data) + _ENTRY_OVERHEAD_BYTES


class LogReader(Protocol):
    """The entries that the host has written, durable or not.

    Of the entry before the first (dropped by a truncation, or the last one of a snapshot, §7) the
    index and term are kept; 0 and 0 for a log that begins at 1.
    """

    def first_index(self) -> int:
        """Index of the oldest entry that is kept; 1 for a log that was never truncated."""
        ...

    def last_index(self) -> int:
        """Index of the newest entry; ``first_index() - 1`` when there is none."""
        ...

    def term(self, index: int) -> int:
        """Term of the entry at ``index``, for ``first_index() - 1 <= index <= last_index()``."""
        ...

    def entries(self, low: int, high: int, bytes_max: int) -> list[Entry]:
        """Entries with ``low <= index < high``, in order, up to about ``bytes_max`` of data.

        Never none: the first one is returned even when it alone is larger.
        """
        ...


class _Write:
    """Entries handed out in one Ready, until they are durable."""

    __slots__ = ("index", "term", "valid")

    def __init__(self, index: int, term: int) -> None:
        self.index = index
        self.term = term
        """Index and term of the last entry: the name by which the host reports the write."""
        self.valid = index
        """The part of it that no later entry has replaced."""


class RaftLog:
    """The log of one replica. Invariants:

    - ``first_index - 1 <= applied <= committed <= last_index``; none of the first three ever
      decreases;
    - entries up to ``committed`` are never replaced;
    - everything above ``persisted`` is in the window.
    """

    __slots__ = (
        "_before_bytes",
        "_before_term",
        "_cache_bytes_max",
        "_first",
        "_handed",
        "_handed_committed",
        "_reader",
        "_sums",
        "_window",
        "_writes",
        "applied",
        "committed",
        "first_index",
        "last_index",
        "last_term",
        "persisted",
    )

    def __init__(self, reader: LogReader, applied: int, cache_bytes_max: int) -> None:
        last = reader.last_index()
        assert 0 <= applied <= last, "what is applied is in the log (Ready, point 3)"
        assert applied >= reader.first_index() - 1
        self._reader = reader
        self._cache_bytes_max = cache_bytes_max
        self.first_index = reader.first_index()
        """Of the oldest entry that can be sent; the term of the one before it is known too."""
        self.last_index = last
        self.last_term = reader.term(last) if last else 0
        self.persisted = last
        """Everything up to here is durable on this replica's disk."""
        self.committed = applied
        self.applied = applied
        self._window: list[Entry] = []
        self._first = last + 1
        """Index of the first entry of the window, or where it will be."""
        self._before_term = self.last_term
        """Term of the entry before the window: the ``prev_term`` that is asked for most."""
        self._sums: list[int] = []
        """For each entry of the window, :func:`entry_bytes` of all up to it. Only differences mean
        something: the size of any range is one subtraction, a split by bytes one bisection."""
        self._before_bytes = 0
        """The sum before the window."""
        self._handed = last
        """Entries up to here were handed out to be written."""
        self._handed_committed = applied
        """Entries up to here were handed out to be applied."""
        self._writes: deque[_Write] = deque()
        """What was handed out and is not durable yet; as many as the host has Readys in work."""

    # -- Looking ---------------------------------------------------------------------------------

    def term(self, index: int) -> int:
        """Term of the entry at ``index``, from the one before the first on; 0 for index 0."""
        offset = index - self._first
        if offset >= 0:
            return self._window[offset].term
        if offset == -1:
            return self._before_term
        return self._reader.term(index) if index else 0

    def matches(self, index: int, term: int) -> bool:
        """Whether the entry at ``index`` is the one of ``term`` (the consistency check of §5.3)."""
        if index >= self.last_index:
            return index == self.last_index and term == self.last_term
        return self.term(index) == term

    def is_up_to_date(self, last_index: int, last_term: int) -> bool:
        """Whether a candidate's log that ends so is at least as up-to-date as ours (§5.4.1)."""
        return (last_term, last_index) >= (self.last_term, self.last_index)

    def last_at_most(self, index: int, term: int) -> int:
        """The greatest index up to ``index`` whose entry has at most ``term``.

        Terms never decrease along a log, so a bisection finds it: a rejection costs a logarithm
        of look-ups in the store, also when thousands of entries diverge. What is before the first
        entry cannot be told apart any more, and counts.
        """
        high = min(index, self.last_index)
        low = min(self.first_index - 1, high)
        while low < high:
            middle = (low + high + 1) // 2
            if self.term(middle) <= term:
                low = middle
            else:
                high = middle - 1
        return low

    def entries(self, low: int, high: int, bytes_max: int) -> tuple[Entry, ...]:
        """Some of the entries from ``low`` on, below ``high``: at least one, else ``bytes_max``.

        May return fewer than fit, where the window begins.
        """
        assert self.first_index <= low < high <= self.last_index + 1
        if low < self._first:
            older = self._reader.entries(low, min(high, self._first), bytes_max)
            assert older[0].index == low
            assert older[-1].index < high
            return tuple(older)
        start, end = low - self._first, high - self._first
        fitting = bisect_right(self._sums, self._sum_before(low) + bytes_max, start, end)
        return tuple(self._window[start : max(start + 1, fitting)])

    def size_of(self, entries: tuple[Entry, ...]) -> int:
        """Bytes of ``entries``, which :meth:`entries` returned."""
        low = entries[0].index
        if low < self._first:
            return sum(map(entry_bytes, entries))
        return self._sum_before(low + len(entries)) - self._sum_before(low)

    def bytes_from(self, low: int) -> int:
        """Bytes of all entries from ``low`` on, all of them in the window."""
        assert low >= self._first
        return self._sum_before(self.last_index + 1) - self._sum_before(low)

    def _sum_before(self, index: int) -> int:
        place = index - self._first
        return self._sums[place - 1] if place else self._before_bytes

    def unapplied(self) -> Iterator[tuple[Entry, ...]]:
        """All entries behind what is applied, some at a time."""
        index = self.applied + 1
        while index <= self.last_index:
            entries = self.entries(index, self.last_index + 1, self._cache_bytes_max)
            yield entries
            index = entries[-1].index + 1

    # -- Appending -------------------------------------------------------------------------------

    def append(self, entry: Entry) -> None:
        """Append one entry of our own (Leader Append-Only: nothing is replaced)."""
        assert entry.index == self.last_index + 1
        assert entry.term >= self.last_term
        self._window.append(entry)
        self._sums.append(self._sum_before(entry.index) + entry_bytes(entry))
        self.last_index = entry.index
        self.last_term = entry.term

    def try_append(self, prev_index: int, prev_term: int, entries: tuple[Entry, ...]) -> bool:
        """AppendEntries, rules 2 to 4 of figure 2. False when the consistency check fails.

        An entry that conflicts goes, with all that follow; entries that are there already stay,
        and so does what follows them: the message may be an old one.
        """
        if not self.matches(prev_index, prev_term):
            return False
        if prev_index != self.last_index:
            entries = self._unknown(entries)
            if entries and entries[0].index <= self.last_index:
                self._truncate(entries[0].index)
        if entries:
            assert entries[0].index == self.last_index + 1
            assert entries[-1].index == self.last_index + len(entries)
            assert entries[-1].term >= entries[0].term >= self.last_term
            sums = accumulate(map(entry_bytes, entries), initial=self._sum_before(entries[0].index))
            next(sums)
            self._sums += sums
            self._window += entries
            self.last_index = entries[-1].index
            self.last_term = entries[-1].term
        return True

    def _unknown(self, entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
        """What is left of ``entries`` after those that are in the log."""
        for known, entry in enumerate(entries):
            if entry.index > self.last_index or self.term(entry.index) != entry.term:
                return entries[known:]
        return ()

    def _truncate(self, index: int) -> None:
        """Drop the entry at ``index`` and all that follow."""
        assert index > self.committed, "a committed entry is never replaced"
        last_term = self.term(index - 1)
        if index >= self._first:
            del self._window[index - self._first :]
            del self._sums[index - self._first :]
        else:
            self._window.clear()
            self._sums.clear()
            self._first = index
            self._before_term = last_term
        self.last_index = index - 1
        self.last_term = last_term
        self.persisted = min(self.persisted, self.last_index)
        self._handed = min(self._handed, self.last_index)
        for write in self._writes:
            write.valid = min(write.valid, self.last_index)

    # -- Moving forward --------------------------------------------------------------------------

    def commit_to(self, index: int) -> None:
        """Entries up to ``index`` are committed; older news than ours change nothing."""
        assert index <= self.last_index, "commit beyond the log: entries were lost"
        self.committed = max(self.committed, index)

    @property
    def has_unwritten(self) -> bool:
        """Whether there are entries to hand out for writing."""
        return self._handed < self.last_index

    @property
    def has_unapplied(self) -> bool:
        """Whether there are committed entries to hand out."""
        return self._handed_committed < self.committed

    def take_unwritten(self) -> tuple[Entry, ...]:
        """The entries that were never handed out to be written, once."""
        if self._handed == self.last_index:
            return ()
        entries = tuple(self._window[self._handed + 1 - self._first :])
        self._handed = self.last_index
        self._writes.append(_Write(self.last_index, self.last_term))
        return entries

    def take_committed(self, bytes_max: int) -> tuple[Entry, ...]:
        """Committed entries that were never handed out, once, about ``bytes_max`` at a time, and
        never any behind a checkpoint together with it."""
        if self._handed_committed == self.committed:
            return ()
        entries = self.entries(self._handed_committed + 1, self.committed + 1, bytes_max)
        for count, entry in enumerate(entries, start=1):
            if entry.kind == CHECKPOINT:
                entries = entries[:count]
                break
        self._handed_committed = entries[-1].index
        return entries

    def persisted_to(self, index: int, term: int) -> bool:
        """The write that ended with this entry is durable, and so are all before it.

        Whether that moved ``persisted``. Entries replaced since do not count: neither on disk
        (the write that replaces them may be there or not) nor in the log. Of two writes that end
        with the same entry the older one is meant: the younger may still be on its way.
        """
        writes = self._writes
        if not any(write.index == index and write.term == term for write in writes):
            return False
        before = self.persisted
        while True:
            write = writes.popleft()
            self.persisted = max(self.persisted, write.valid)
            if write.index == index and write.term == term:
                break
        assert self.persisted <= self.last_index
        self._evict()
        return self.persisted > before

    def applied_to(self, index: int) -> None:
        assert self.applied <= index <= self._handed_committed, "applied what was handed out"
        self.applied = index
        self._evict()

    def truncated_to(self, index: int) -> None:
        """The host has dropped everything up to ``index`` from its store (§7)."""
        assert self.first_index - 1 <= index <= min(self.applied, self.persisted)
        self.first_index = index + 1
        assert self._reader.first_index() == self.first_index, "dropped and reported, in one turn"

    def restore(self, index: int, term: int) -> None:
        """Begin anew behind a snapshot that ends with this entry (§7): nothing of ours is left.

        Writes that are still on their way were of the old log: they prove nothing any more.
        """
        assert index > self.committed, "a snapshot never goes back"
        assert not self.has_unwritten, "handed out before the snapshot was taken in"
        assert not self.has_unapplied, "handed out before the snapshot was taken in"
        self._window.clear()
        self._sums.clear()
        self._first = index + 1
        self._before_term = term
        self.first_index = index + 1
        self.last_index = self.persisted = self.committed = self.applied = index
        self.last_term = term
        self._handed = self._handed_committed = index
        for write in self._writes:
            write.valid = 0
        assert self._reader.first_index() == self.first_index, "taken in before it is reported"

    def _evict(self) -> None:
        """Drop the oldest entries of a window that grew too large, as far as nobody needs them.

        Down to half of the bound, so that the list is moved seldom.
        """
        held = self.bytes_from(self._first)
        if held <= self._cache_bytes_max:
            return
        unneeded = min(self.persisted, self.applied) + 1 - self._first
        surplus = self._before_bytes + held - self._cache_bytes_max // 2
        dropped = min(unneeded, bisect_right(self._sums, surplus))
        if dropped > 0:
            self._before_term = self._window[dropped - 1].term
            self._before_bytes = self._sums[dropped - 1]
            self._first += dropped
            del self._window[:dropped]
            del self._sums[:dropped]
