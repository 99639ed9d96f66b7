"""What a node must remember of itself: its store, its proposed and its founded cluster, its clock.

The store id is drawn once, when the folder is first used, and is on the disk before anybody is told
of it. So a disk that was wiped is another store, and cannot pass for one that remembers its votes.
"""

from __future__ import annotations

import msgspec

from cluster_core.errors import StorageFailed
from cluster_core.hlc import HybridClock
from cluster_core.membership.forming import Founding
from cluster_core.ports import RAFT, Clock, Engine, Random
from cluster_core.replication.host import CEILING_KEY
from cluster_core.storage import keys
from cluster_core.types import NodeId

__all__ = ["FORMAT_VERSION", "Identity"]

FORMAT_VERSION = 1
"""Of the store's layout; a store of another version is refused."""

_IDENTITY = keys.NODE_SCOPE + b"identity"
_PROPOSED = keys.NODE_SCOPE + b"proposed"
_FOUNDED = keys.NODE_SCOPE + b"founded"

_decode_founding = msgspec.msgpack.Decoder(Founding).decode


class _Stored(msgspec.Struct, array_like=True, frozen=True):
    format_version: int
    node_id: NodeId
    store_id: str


_decode_stored = msgspec.msgpack.Decoder(_Stored).decode


class Identity:
    """See the module. ``proposed`` and ``founding`` are None until they are persisted."""

    def __init__(self, engine: Engine, store_id: str) -> None:
        self.store_id = store_id
        self._engine = engine
        self.proposed = self._read(_PROPOSED)
        self.founding = self._read(_FOUNDED)

    @classmethod
    async def load(cls, engine: Engine, node_id: NodeId, random: Random) -> Identity:
        """Read the identity from ``engine``, or draw and persist a new one.

        Raises StorageFailed when the store is another node's, or of another format.
        """
        value = engine.get(RAFT, _IDENTITY)
        if value is None:
            store_id = random.randbytes(16).hex()
            stored = _Stored(FORMAT_VERSION, node_id, store_id)
            batch = engine.batch()
            batch.put(RAFT, _IDENTITY, msgspec.msgpack.encode(stored))
            engine.write(batch)
            await engine.sync()
            return cls(engine, store_id)
        stored = _decode_stored(value)
        if stored.format_version != FORMAT_VERSION:
            raise StorageFailed(
                f"this data folder has format {stored.format_version}, this version of the "
                f"program reads {FORMAT_VERSION}"
            )
        if stored.node_id != node_id:
            raise StorageFailed(
                f"this data folder belongs to {stored.node_id}; give {node_id} a folder of its own"
            )
        return cls(engine, stored.store_id)

    async def propose(self, founding: Founding) -> None:
        """Persist what this node proposes; it will never propose anything else."""
        assert self.proposed in (None, founding)
        await self._save(_PROPOSED, founding)
        self.proposed = founding

    async def found(self, founding: Founding) -> None:
        """Persist the cluster that this node belongs to."""
        assert self.founding is None
        await self._save(_FOUNDED, founding)
        self.founding = founding

    def clock(self, wall: Clock, ahead_ms: int) -> HybridClock:
        """The node's clock, never behind a reading of an earlier process."""
        value = self._engine.get(RAFT, CEILING_KEY)
        ceiling = 0 if value is None else int.from_bytes(value, "big")
        return HybridClock(wall, ceiling=ceiling, ahead_ms=ahead_ms)

    def _read(self, key: bytes) -> Founding | None:
        value = self._engine.get(RAFT, key)
        return None if value is None else _decode_founding(value)

    async def _save(self, key: bytes, founding: Founding) -> None:
        batch = self._engine.batch()
        batch.put(RAFT, key, msgspec.msgpack.encode(founding))
        self._engine.write(batch)
        await self._engine.sync()
