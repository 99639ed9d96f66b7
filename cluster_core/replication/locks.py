"""Locks of undecided transactions, and who waits for them.

A lock is held on the digest of an entity: SHARED says that a vertex must go on existing, WRITE that
the entity's record changes, EXCLUSIVE that it appears or goes away. So edges of one hub are not
serialised, and no edge dangles.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from cluster_core.graph.parts import LockKind
from cluster_core.types import Digest

__all__ = ["LockTable", "compatible"]

Lock = tuple[Digest, LockKind]
Priority = tuple[int, bytes]
"""(begin timestamp, transaction id): the smaller is the older, and the older waits."""


def compatible(held: LockKind, wanted: LockKind) -> bool:
    """SHARED goes with SHARED and WRITE, WRITE with SHARED only, EXCLUSIVE with nothing."""
    if LockKind.EXCLUSIVE in (held, wanted):
        return False
    return LockKind.SHARED in (held, wanted)


class LockTable:
    """The locks of one partition as its leader sees them: those in flight included."""

    def __init__(self) -> None:
        self._held: dict[Digest, dict[bytes, tuple[LockKind, Priority]]] = {}
        self._waiting: dict[Digest, list[asyncio.Future[None]]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def acquire(self, locks: Iterable[Lock], priority: Priority) -> None:
        transaction = priority[1]
        for digest, kind in locks:
            holders = self._held.setdefault(digest, {})
            before = holders.get(transaction)
            if before is None or before[0] < kind:
                holders[transaction] = (kind, priority)

    def release(self, locks: Iterable[Lock], transaction: bytes) -> None:
        for digest, _ in locks:
            holders = self._held.get(digest)
            if holders is None or holders.pop(transaction, None) is None:
                continue
            if not holders:
                del self._held[digest]
            for waiter in self._waiting.pop(digest, ()):
                if not waiter.done():
                    waiter.set_result(None)

    def conflict(self, locks: Iterable[Lock], transaction: bytes) -> tuple[Digest, Priority] | None:
        """The first lock in the way of ``locks``, with the oldest of those that hold it."""
        if not self._held:
            return None
        for digest, wanted in locks:
            holders = self._held.get(digest)
            if holders is None:
                continue
            against = [
                priority
                for holder, (kind, priority) in holders.items()
                if holder != transaction and not compatible(kind, wanted)
            ]
            if against:
                return digest, min(against)
        return None

    def released(self, digest: Digest) -> asyncio.Future[None]:
        """Done when a lock on ``digest`` is released next."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(digest, []).append(future)
        return future

    def abandon(self, error: Exception) -> None:
        """This node leads no longer: nobody waits here any more."""
        for waiters in self._waiting.values():
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_exception(error)
        self._waiting.clear()
