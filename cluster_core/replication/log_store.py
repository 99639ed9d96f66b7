"""A group's log and votes on the engine: what Raft reads back, and what a flush writes."""

from __future__ import annotations

from struct import Struct
from typing import Final

import msgspec

from cluster_core.ports import RAFT, Batch, Engine
from cluster_core.storage import keys
from cluster_core.types import GroupId
from cluster_core.wire.messages import Entry, HardState

__all__ = ["LogStore"]

_TERM: Final = Struct(">Q")
"""The head of a stored entry: its kind in the highest byte, its term in the others."""
_KIND_SHIFT: Final = 56
_TERM_MASK: Final = (1 << _KIND_SHIFT) - 1
_START: Final = Struct(">QQ")
_encode = msgspec.msgpack.Encoder().encode
_decode_hard_state = msgspec.msgpack.Decoder(HardState).decode


class LogStore:
    """The log of one group: one key an entry, kind and term in the first 8 bytes of its value.

    ``last_index`` follows :meth:`append`, so it counts what was written, synced or not. Of the
    entry before the first, which a truncation or a snapshot dropped, index and term are kept; they
    are 0 and 0 for a log that begins at 1 (Raft, figure 2).
    """

    def __init__(self, engine: Engine, group: GroupId) -> None:
        self._engine = engine
        self._group = group
        self._end = keys.log_entry(group, (1 << 64) - 1)
        start = engine.get(RAFT, keys.log_start(group))
        self._before: int
        self._before_term: int
        self._before, self._before_term = (0, 0) if start is None else _START.unpack(start)
        self._last = self._find_last()

    def _find_last(self) -> int:
        begin = keys.log_entry(self._group, 0)
        for key, _ in self._engine.scan(RAFT, begin, self._end, reverse=True):
            return int.from_bytes(key[-8:], "big")
        return self._before

    def first_index(self) -> int:
        return self._before + 1

    def last_index(self) -> int:
        return self._last

    def term(self, index: int) -> int:
        """The term of the entry at ``index``, which must be in the log or right before it."""
        if index == self._before:
            return self._before_term
        value = self._engine.get(RAFT, keys.log_entry(self._group, index))
        assert value is not None, (self._group, index, self._before, self._last)
        head: int = _TERM.unpack_from(value)[0]
        term: int = head & _TERM_MASK
        return term

    def entries(self, low: int, high: int, bytes_max: int) -> list[Entry]:
        """Entries in ``[low, high)``: as many as fit ``bytes_max``, but at least one."""
        entries: list[Entry] = []
        size = 0
        begin, end = keys.log_entry(self._group, low), keys.log_entry(self._group, high)
        for key, value in self._engine.scan(RAFT, begin, end):
            size += len(value)
            if entries and size > bytes_max:
                break
            head = _TERM.unpack_from(value)[0]
            index = int.from_bytes(key[-8:], "big")
            entries.append(Entry(head & _TERM_MASK, index, value[8:], head >> _KIND_SHIFT))
        return entries

    def truncate(self, batch: Batch, index: int) -> None:
        """Drop the log up to ``index``, in a batch behind all that was written before."""
        assert self._before < index <= self._last
        term = self.term(index)
        group = self._group
        batch.delete_range(
            RAFT, keys.log_entry(group, self._before + 1), keys.log_entry(group, index + 1)
        )
        self._begin_behind(batch, index, term)

    def replace(self, batch: Batch, index: int, term: int) -> None:
        """Forget the whole log; it begins behind the last entry of a snapshot."""
        batch.delete_range(RAFT, keys.log_entry(self._group, 0), self._end)
        self._begin_behind(batch, index, term)
        self._last = index

    def _begin_behind(self, batch: Batch, index: int, term: int) -> None:
        batch.put(RAFT, keys.log_start(self._group), _START.pack(index, term))
        self._before, self._before_term = index, term

    def hard_state(self) -> HardState:
        value = self._engine.get(RAFT, keys.hard_state(self._group))
        return HardState() if value is None else _decode_hard_state(value)

    def append(self, batch: Batch, entries: tuple[Entry, ...]) -> None:
        """Add ``entries`` to ``batch``; what the log held at or beyond the first is cut off."""
        first = entries[0].index
        assert first <= self._last + 1, "never entry n+1 without n"
        last = entries[-1].index
        if self._last > last:
            batch.delete_range(RAFT, keys.log_entry(self._group, last + 1), self._end)
        group = self._group
        for entry in entries:
            head = _TERM.pack(entry.term | entry.kind << _KIND_SHIFT)
            batch.put(RAFT, keys.log_entry(group, entry.index), head + entry.data)
        self._last = last

    def save_hard_state(self, batch: Batch, hard_state: HardState) -> None:
        batch.put(RAFT, keys.hard_state(self._group), _encode(hard_state))
