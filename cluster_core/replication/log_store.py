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
_encode = msgspec.msgpack.Encoder().encode
_decode_hard_state = msgspec.msgpack.Decoder(HardState).decode


class LogStore:
    """The log of one group: one key an entry, the term in the first 8 bytes of its value.

    ``first_index`` is 1 until logs are truncated; ``last_index`` follows :meth:`append`, so it
    counts what was written, synced or not. The term of index 0 is 0 (Raft, figure 2).
    """

    def __init__(self, engine: Engine, group: GroupId) -> None:
        self._engine = engine
        self._group = group
        self._begin = keys.log_entry(group, 0)
        self._end = keys.log_entry(group, (1 << 64) - 1)
        self._last = self._find_last()

    def _find_last(self) -> int:
        for key, _ in self._engine.scan(RAFT, self._begin, self._end, reverse=True):
            return int.from_bytes(key[-8:], "big")
        return 0

    def first_index(self) -> int:
        return 1

    def last_index(self) -> int:
        return self._last

    def term(self, index: int) -> int:
        """The term of the entry at ``index``, which must be in the log."""
        if index == 0:
            return 0
        value = self._engine.get(RAFT, keys.log_entry(self._group, index))
        assert value is not None, (self._group, index, self._last)
        term: int = _TERM.unpack_from(value)[0]
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
            term = _TERM.unpack_from(value)[0]
            entries.append(Entry(term, int.from_bytes(key[-8:], "big"), value[8:]))
        return entries

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
            batch.put(RAFT, keys.log_entry(group, entry.index), _TERM.pack(entry.term) + entry.data)
        self._last = last

    def save_hard_state(self, batch: Batch, hard_state: HardState) -> None:
        batch.put(RAFT, keys.hard_state(self._group), _encode(hard_state))
