"""What has arrived of a snapshot, on the receiver's disk, and how it becomes the replica.

It lies in the engine beside the replica, under keys of its own, so neither side ever has more than
a chunk of it in memory, and a transfer goes on where a crash of the receiver left it.

**Replacing** the replica takes many writes, for the same reason. They begin with a durable mark, in
one write with the deletion of the old state: from then on the replica is neither the old one nor
the new one, and :meth:`Staging.replace`, which may be begun again at any time, is all that may
happen to it. The last write takes the mark away together with the staged chunks. Writes reach the
disk in their order; so whatever a crash leaves is the whole old replica without the mark, the whole
new one without it, or the mark with all that is needed to make the new one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from hashlib import sha256
from typing import Final

import msgspec

from cluster_core.errors import StorageFailed
from cluster_core.ports import DATA, RAFT, Batch, Engine
from cluster_core.replication.log_store import LogStore
from cluster_core.replication.snapshots.messages import decode_pairs, is_intact
from cluster_core.storage import keys
from cluster_core.types import GroupId
from cluster_core.wire.messages import SnapshotOffer

__all__ = ["Manifest", "Staging"]

_CHECKSUM_BYTES: Final = 32

Write = Callable[[Batch], None]
Synced = Callable[[], Awaitable[None]]


class Manifest(msgspec.Struct, array_like=True, frozen=True):
    """Which snapshot is being staged. ``replacing`` is the mark; with ``keeps_log`` the log has the
    snapshot's last entry and stays."""

    transfer: bytes
    offer: SnapshotOffer
    configuration: bytes
    replacing: bool = False
    keeps_log: bool = False


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Manifest).decode


class Staging:
    """One transfer to one replica of this node.

    ``write`` puts a batch behind all that was written before; ``synced`` returns when everything
    written is durable. Both raise what ended this node's storage.
    """

    def __init__(self, engine: Engine, write: Write, synced: Synced, manifest: Manifest) -> None:
        self.manifest = manifest
        self.group: GroupId = manifest.offer.group
        self.next = 0
        """The chunk that is wanted next; all before it are there."""
        self._engine = engine
        self._write = write
        self._synced = synced

    @classmethod
    def load(cls, engine: Engine, group: GroupId, write: Write, synced: Synced) -> Staging | None:
        """What an earlier process has staged for ``group``."""
        value = engine.get(RAFT, keys.staged_transfer(group))
        if value is None:
            return None
        staging = cls(engine, write, synced, _decode(value))
        begin, end = keys.staged_chunk(group, 0), keys.after(keys.staged(group))
        for key, _ in engine.scan(RAFT, begin, end, reverse=True):
            staging.next = int.from_bytes(key[-8:], "big") + 1
            break
        return staging

    def begin(self) -> None:
        """Make room for this transfer: what was staged of another one goes."""
        batch = self._engine.batch()
        self._clear(batch)
        batch.put(RAFT, keys.staged_transfer(self.group), _encode(self.manifest))
        self._write(batch)

    def add(self, checksum: bytes, pairs: bytes) -> None:
        """Stage the next chunk; its checksum was looked at."""
        batch = self._engine.batch()
        batch.put(RAFT, keys.staged_chunk(self.group, self.next), checksum + pairs)
        self._write(batch)
        self.next += 1

    def drop(self) -> None:
        """Nothing will come of this transfer."""
        assert not self.manifest.replacing, "the old replica is gone"
        batch = self._engine.batch()
        self._clear(batch)
        self._write(batch)

    async def verify(self, chunks: int, digest: bytes) -> bool:
        """Whether the disk has what was sent, all of it."""
        of_all = sha256()
        for number in range(self.next):
            checksum, pairs = self._chunk(number)
            if not is_intact(pairs, checksum):
                return False
            of_all.update(checksum)
            await asyncio.sleep(0)
        return self.next == chunks and of_all.digest() == digest

    async def replace(self, log: LogStore, *, keeps_log: bool = False) -> None:
        """Make the replica that of the snapshot; durable when it returns. See the module.

        ``log`` is the replica's; nobody else uses replica or log meanwhile.
        """
        prefix = keys.group_prefix(self.group)
        self._begin_replacing(prefix, keeps_log)
        for number in range(self.next):
            batch = self._engine.batch()
            self._put_chunk(batch, number, prefix)
            self._write(batch)
            await self._synced()
        batch = self._engine.batch()
        if not keeps_log:
            log.replace(batch, self.manifest.offer.index, self.manifest.offer.last_term)
        batch.delete(RAFT, keys.collected(self.group))  # these two were said of the old state
        batch.delete(RAFT, keys.distrusted(self.group))
        self._clear(batch)
        self._write(batch)
        await self._synced()

    def _begin_replacing(self, prefix: bytes, keeps_log: bool) -> None:
        """The mark, and with it the end of the old state."""
        self.manifest = msgspec.structs.replace(self.manifest, replacing=True, keeps_log=keeps_log)
        batch = self._engine.batch()
        batch.put(RAFT, keys.staged_transfer(self.group), _encode(self.manifest))
        batch.delete_range(DATA, prefix, keys.after(prefix))
        self._write(batch)

    def _put_chunk(self, batch: Batch, number: int, prefix: bytes) -> None:
        checksum, encoded = self._chunk(number)
        if not is_intact(encoded, checksum):
            raise StorageFailed(f"the disk has changed a staged snapshot of group {self.group}")
        pairs = iter(decode_pairs(encoded))
        for key, value in zip(pairs, pairs, strict=True):
            assert key.startswith(prefix), "a snapshot holds its own group"
            batch.put(DATA, key, value)

    def _chunk(self, number: int) -> tuple[bytes, bytes]:
        value = self._engine.get(RAFT, keys.staged_chunk(self.group, number))
        if value is None:
            raise StorageFailed(f"chunk {number} of a staged snapshot is not on the disk")
        return value[:_CHECKSUM_BYTES], value[_CHECKSUM_BYTES:]

    def _clear(self, batch: Batch) -> None:
        staged = keys.staged(self.group)
        batch.delete_range(RAFT, staged, keys.after(staged))
