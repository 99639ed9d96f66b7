"""The engine of the simulator: ordered maps in memory, and a disk that forgets.

What a write changes is visible at once and lives in the engine. What reached the *disk* is a
:class:`MemoryDisk`, which outlives the engine: a crash keeps everything synced and, of the batches
that were not, a prefix of random length, as a write-ahead log does. Open a new engine on the same
disk to restart the node.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final, NoReturn
from weakref import WeakSet

from sortedcontainers import SortedDict

from cluster_core.errors import KotobaError, StorageFailed, StorageFull
from cluster_core.ports import DATA, RAFT, Batch, Random, StorageState
from cluster_core.storage.reserve import Reserve

__all__ = ["MemoryBatch", "MemoryDisk", "MemoryEngine"]

_Pair = tuple[bytes, bytes]
_Change = tuple[int, bytes, bytes | None, bytes]
"""Family, key, value, end: a put; a delete where the value is None; a range where there is an
end."""

_FAMILIES: Final = (RAFT, DATA)
_FETCH_MAX: Final = 64
"""Pairs that a scan hands over at once; enough that the loop around them costs nothing."""


def _no_delay() -> float:
    return 0.0


class MemoryBatch:
    """Changes in the order in which they were given."""

    __slots__ = ("changes", "written")

    def __init__(self) -> None:
        self.changes: list[_Change] = []
        self.written = False

    def put(self, family: int, key: bytes, value: bytes) -> None:
        self.changes.append((family, key, value, b""))

    def delete(self, family: int, key: bytes) -> None:
        self.changes.append((family, key, None, b""))

    def delete_range(self, family: int, begin: bytes, end: bytes) -> None:
        if begin < end:
            self.changes.append((family, begin, None, end))

    def __len__(self) -> int:
        return len(self.changes)


class _Families:
    """One ordered map for each column family."""

    __slots__ = ("maps", "size")

    def __init__(self, source: _Families | None = None) -> None:
        self.maps: tuple[SortedDict, ...] = tuple(
            SortedDict() if source is None else source.maps[family].copy() for family in _FAMILIES
        )
        self.size: int = 0 if source is None else source.size
        """Bytes of all keys and values."""

    def apply(self, batch: MemoryBatch) -> None:
        for family, key, value, end in batch.changes:
            pairs = self.maps[family]
            if value is not None:
                self._remove(pairs, key)
                pairs[key] = value
                self.size += len(key) + len(value)
            elif end:
                for old in list(pairs.irange(key, end, (True, False))):
                    self._remove(pairs, old)
            else:
                self._remove(pairs, key)

    def _remove(self, pairs: SortedDict, key: bytes) -> None:
        old = pairs.pop(key, None)
        if old is not None:
            self.size -= len(key) + len(old)


class MemoryDisk:
    """What survives a crash, and the ways in which a disk can misbehave.

    ``sync_delay()`` is asked at every sync for its seconds of virtual time. While ``fail_writes``
    is set, writes raise it, and syncs do if it is StorageFailed; a write beyond ``capacity_bytes``
    raises StorageFull, and so does opening an engine with not a byte free. All three may be changed
    at any time.
    """

    def __init__(
        self,
        *,
        sync_delay: Callable[[], float] = _no_delay,
        capacity_bytes: int = 1 << 40,
        reserve_bytes: int = 0,
    ) -> None:
        self.sync_delay = sync_delay
        self.capacity_bytes = capacity_bytes
        self.reserve = Reserve(reserve_bytes, reserve_bytes)
        self.fail_writes: type[StorageFull] | type[StorageFailed] | None = None
        self.families = _Families()
        self.owner: MemoryEngine | None = None


class MemoryEngine:
    """An :class:`~cluster_core.ports.Engine` on a :class:`MemoryDisk`."""

    def __init__(self, disk: MemoryDisk | None = None) -> None:
        self.disk = MemoryDisk() if disk is None else disk
        if self.disk.owner is not None:
            raise StorageFailed("another engine uses this disk")
        self._families = _Families(self.disk.families)
        reserve = self.disk.reserve
        reserve.held = reserve.before_opening(self.disk_free_bytes())
        if not self.disk_free_bytes():
            raise _error(StorageFull)
        self.has_room()
        self.disk.owner = self
        self._journal: list[MemoryBatch] = []
        """Written and not synced, oldest first: batches ``_synced`` to ``_written``."""
        self._written = 0
        self._synced = 0
        self._state: StorageState = "ok"
        self._gone: str | None = None
        self._scans: WeakSet[_MemoryScan] = WeakSet()

    @property
    def state(self) -> StorageState:
        return self._state if self._state != "ok" or self.disk.reserve.has_room else "full"

    @property
    def reserve_bytes(self) -> int:
        return self.disk.reserve.size

    def has_room(self) -> bool:
        reserve = self.disk.reserve
        reserve.held = reserve.look(self.disk_free_bytes())
        return reserve.has_room

    def room_bytes(self) -> int:
        return self.disk_free_bytes() + self.disk.reserve.held

    @property
    def is_open(self) -> bool:
        """Neither closed nor crashed."""
        return self._gone is None

    @property
    def unsynced(self) -> int:
        """Batches that a crash at this moment may lose."""
        return len(self._journal)

    def batch(self) -> MemoryBatch:
        return MemoryBatch()

    def write(self, batch: Batch) -> None:
        assert isinstance(batch, MemoryBatch)
        assert not batch.written, "a batch is used once"
        self._check_writable()
        batch.written = True
        self._journal.append(batch)  # also if it fails: then nobody knows whether it is on disk
        self._written += 1
        self._check_fault(sum(len(key) + len(value or b"") for _, key, value, _ in batch.changes))
        for scan in list(self._scans):  # in no order, which nothing depends on
            scan.freeze()
        self._families.apply(batch)

    async def sync(self) -> None:
        self._check_writable()
        target = self._written
        await asyncio.sleep(self.disk.sync_delay())
        self._check_writable()
        if self.disk.fail_writes is StorageFailed:
            self._fail(StorageFailed)
        if target > self._synced:
            self._to_disk(target - self._synced)

    def get(self, family: int, key: bytes) -> bytes | None:
        self._check_open()
        value: bytes | None = self._families.maps[family].get(key)
        return value

    def first(self, family: int, begin: bytes, end: bytes) -> _Pair | None:
        self._check_open()
        pairs = self._families.maps[family]
        for key in pairs.irange(begin, end, (True, False)):
            return key, pairs[key]
        return None

    def scan(self, family: int, begin: bytes, end: bytes, *, reverse: bool = False) -> _MemoryScan:
        self._check_open()
        scan = _MemoryScan(self, self._families.maps[family], begin, end, reverse)
        self._scans.add(scan)
        return scan

    def disk_bytes(self) -> int:
        return self._families.size

    def disk_free_bytes(self) -> int:
        return max(0, self.disk.capacity_bytes - self._used())

    def _used(self) -> int:
        return self._families.size + self.disk.reserve.held

    def close(self) -> None:
        """End as a process that exits: what it wrote stays, synced or not."""
        if self._gone is None:
            # A batch that failed is on the disk, or is not: every other one.
            lost = self._state != "ok" and self._written % 2
            self._leave("the store is closed", keep=max(0, len(self._journal) - lost))

    def crash(self, random: Random | None = None) -> MemoryDisk:
        """Lose power. The disk keeps all that was synced, and a prefix of the rest: as long as
        ``random`` has it, or none.

        Every later use of this engine raises StorageFailed.
        """
        self._check_open()
        keep = 0 if random is None else random.randrange(0, len(self._journal) + 1)
        self._leave("the node has crashed", keep=keep)
        return self.disk

    def _leave(self, reason: str, *, keep: int) -> None:
        self._to_disk(keep)
        self._journal.clear()
        self._gone = reason
        self.disk.owner = None

    def _to_disk(self, count: int) -> None:
        for batch in self._journal[:count]:
            self.disk.families.apply(batch)
        del self._journal[:count]
        self._synced += count

    def _check_open(self) -> None:
        if self._gone is not None:
            raise StorageFailed(self._gone)

    def _check_writable(self) -> None:
        self._check_open()
        if self._state == "full":
            raise StorageFull("no space was left on the disk")
        if self._state == "failed":
            raise StorageFailed(
                "an earlier write failed; restart the node when its disk is well again"
            )

    def _check_fault(self, size: int) -> None:
        fault = self.disk.fail_writes
        if fault is None and self._used() + size > self.disk.capacity_bytes:
            fault = StorageFull
        if fault is not None:
            self._fail(fault)

    def _fail(self, fault: type[StorageFull] | type[StorageFailed]) -> NoReturn:
        self._state = "full" if fault is StorageFull else "failed"
        raise _error(fault)


def _error(fault: type[StorageFull] | type[StorageFailed]) -> KotobaError:
    if fault is StorageFull:
        return StorageFull("no space is left on the disk")
    return fault("the disk failed")


class _MemoryScan:
    """Walks the live map until something is about to change it, then a copy of what is left."""

    __slots__ = (
        "__weakref__",
        "_buffer",
        "_end",
        "_engine",
        "_last",
        "_pairs",
        "_rest",
        "_reverse",
    )

    def __init__(
        self, engine: MemoryEngine, pairs: SortedDict, begin: bytes, end: bytes, reverse: bool
    ) -> None:
        self._engine = engine
        self._pairs = pairs
        self._end = begin if reverse else end
        self._reverse = reverse
        self._buffer: Iterator[_Pair] = iter(())
        """Fetched and not delivered."""
        self._last: bytes | None = None
        """The last key fetched: a seek never goes back behind it."""
        self._rest: Iterator[_Pair] = self._walk(begin, end, (True, False))

    def __iter__(self) -> _MemoryScan:
        return self

    def __next__(self) -> _Pair:
        for pair in self._buffer:
            return pair
        self._buffer = iter(self.fetch())
        return next(self._buffer)

    def fetch(self) -> list[_Pair]:
        self._engine._check_open()
        pairs = list(self._buffer) or list(islice(self._rest, _FETCH_MAX))
        if pairs:
            self._last = pairs[-1][0]
        return pairs

    def seek(self, key: bytes) -> None:
        if self._last is not None and (key >= self._last if self._reverse else key <= self._last):
            self._buffer = iter([pair for pair in self._buffer if not self._is_before(pair, key)])
            return
        self._buffer = iter(())
        self._rest = self._seek_rest(key)

    def freeze(self) -> None:
        """Called before the map changes."""
        self._rest = iter(list(self._rest))
        self._pairs = None
        self._engine._scans.discard(self)

    def _seek_rest(self, key: bytes) -> Iterator[_Pair]:
        if self._pairs is None:
            rest = self._rest
            return (pair for pair in rest if not self._is_before(pair, key))
        if self._reverse:
            return self._walk(self._end, key, (True, True))
        return self._walk(key, self._end, (True, False))

    def _is_before(self, pair: _Pair, key: bytes) -> bool:
        return pair[0] > key if self._reverse else pair[0] < key

    def _walk(self, begin: bytes, end: bytes, inclusive: tuple[bool, bool]) -> Iterator[_Pair]:
        if begin > end:
            return iter(())
        pairs = self._pairs
        return ((key, pairs[key]) for key in pairs.irange(begin, end, inclusive, self._reverse))
