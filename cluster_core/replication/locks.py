"""Locks of undecided transactions, and who waits for them.

A lock is held on the digest of an entity: SHARED says that a vertex must go on existing, WRITE that
the entity's record changes, EXCLUSIVE that it appears or goes away. So edges of one hub are not
serialised, and no edge dangles.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Final

from cluster_core.graph.parts import LockKind
from cluster_core.replication.waiters import Waiters
from cluster_core.types import Digest

__all__ = ["LockTable"]

Lock = tuple[Digest, LockKind]
Priority = tuple[int, bytes]
"""(begin timestamp, transaction id): the smaller is the older, and the older waits."""

_NOBODY: Final[dict[bytes, tuple[LockKind, Priority]]] = {}


class LockTable:
    """The locks of one partition as its leader sees them: those in flight included.

    SHARED goes with SHARED and WRITE, WRITE with SHARED only, EXCLUSIVE with nothing. SHARED locks
    are kept apart, so that the next edge of a hub does not look at all those in the making: while a
    graph is loaded, a hub has hundreds. A transaction holds one lock of an entity, its strongest.
    """

    def __init__(self) -> None:
        self._shared: dict[Digest, dict[bytes, Priority]] = {}
        self._stronger: dict[Digest, dict[bytes, tuple[LockKind, Priority]]] = {}
        self._waiting: dict[Digest, Waiters[None]] = {}

    def __len__(self) -> int:
        return len(self._shared) + len(self._stronger)

    def acquire(self, locks: Iterable[Lock], priority: Priority) -> None:
        transaction = priority[1]
        for digest, kind in locks:
            stronger = self._stronger.get(digest, _NOBODY)
            before = stronger.get(transaction)
            if kind is LockKind.SHARED:
                if before is None:
                    self._shared.setdefault(digest, {})[transaction] = priority
            elif before is None or before[0] < kind:
                _drop(self._shared, digest, transaction)
                self._stronger.setdefault(digest, {})[transaction] = (kind, priority)

    def release(self, locks: Iterable[Lock], transaction: bytes) -> None:
        for digest, _ in locks:
            if not _drop(self._stronger, digest, transaction) and not _drop(
                self._shared, digest, transaction
            ):
                continue
            waiters = self._waiting.pop(digest, None)
            if waiters is not None:
                waiters.tell(None)

    def conflict(self, locks: Iterable[Lock], transaction: bytes) -> tuple[Digest, Priority] | None:
        """The first lock in the way of ``locks``, with the oldest of those that hold it."""
        for digest, wanted in locks:
            against = [
                priority
                for holder, (kind, priority) in self._stronger.get(digest, _NOBODY).items()
                if holder != transaction
                and (wanted is not LockKind.SHARED or kind is LockKind.EXCLUSIVE)
            ]
            if wanted is LockKind.EXCLUSIVE:
                shared = self._shared.get(digest, {})
                against += [held for holder, held in shared.items() if holder != transaction]
            if against:
                return digest, min(against)
        return None

    def released(self, digest: Digest) -> asyncio.Future[None]:
        """Done when a lock on ``digest`` is released next. Who gives up waiting need not say so."""
        future = self._waiting.setdefault(digest, Waiters()).wait()
        future.add_done_callback(_observe)
        return future

    def abandon(self, error: Exception) -> None:
        """This node leads no longer: nobody waits here any more."""
        for waiters in self._waiting.values():
            waiters.fail(error)
        self._waiting.clear()


def _observe(future: asyncio.Future[None]) -> None:
    """That nobody waits any more when leadership is lost is no error."""
    if not future.cancelled():
        future.exception()


def _drop(table: dict[Digest, dict[bytes, Any]], digest: Digest, transaction: bytes) -> bool:
    """Whether the transaction was among the holders; now it is not."""
    holders = table.get(digest)
    if holders is None or holders.pop(transaction, None) is None:
        return False
    if not holders:
        del table[digest]
    return True
