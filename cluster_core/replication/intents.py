"""Intents: what an undecided transaction will write to a partition, and holds locked there.

They are part of the replicated state, under their transaction's id. Every replica keeps an index of
the applied ones in memory, for readers: a read at T waits for the intents prepared at or below T on
what it reads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import msgspec

from cluster_core.graph.parts import LockKind
from cluster_core.replication.waiters import Waiters
from cluster_core.types import Digest, GroupId, Timestamp

__all__ = ["Intent", "IntentIndex", "decode_intent", "encode_intent"]


class Intent(msgspec.Struct, array_like=True, gc=False):
    """One transaction's part in one partition. Keys of ``writes`` get their timestamp at commit."""

    transaction: bytes
    begin: Timestamp
    prepared: Timestamp
    record_group: GroupId
    locks: list[tuple[Digest, LockKind]]
    writes: list[tuple[bytes, bytes]]
    pointers: list[tuple[bytes, bytes]]
    changes: list[tuple[Digest, bytes]]
    detach: Digest = b""
    """A vertex of which all edges go when the transaction commits, in entries of their own
    (``txn/detach.py``): the intent stays until they are gone."""

    @property
    def only_holds(self) -> bool:
        """It stands for edges of ``detach``, and for nothing else that is to be written."""
        return bool(self.detach) and not self.writes


encode_intent = msgspec.msgpack.Encoder().encode
decode_intent = msgspec.msgpack.Decoder(Intent).decode


class IntentIndex:
    """The applied intents of one replica."""

    def __init__(self) -> None:
        self._intents: dict[bytes, tuple[Intent, float]] = {}
        self._by_digest: dict[Digest, dict[bytes, None]] = {}
        self._waiting: dict[bytes, Waiters[Timestamp]] = {}
        self.detaching: set[Digest] = set()
        """Vertices whose edges here are held by a transaction: a read that met such an edge, by
        whatever way, waits for the vertex as well."""

    def __len__(self) -> int:
        return len(self._intents)

    def add(self, intent: Intent, now: float) -> None:
        """``now`` is when this replica saw it: its coordinator's silence counts from there."""
        self._intents[intent.transaction] = (intent, now)
        for digest, _ in intent.locks:
            self._by_digest.setdefault(digest, {})[intent.transaction] = None
        if intent.detach:
            self.detaching.add(intent.detach)

    def remove(self, transaction: bytes, commit: Timestamp) -> None:
        """The transaction is decided here: ``commit`` is its timestamp, 0 when it was aborted."""
        found = self._intents.pop(transaction, None)
        if found is not None:
            self.detaching.discard(found[0].detach)
            for digest, _ in found[0].locks:
                holders = self._by_digest.get(digest)
                if holders is not None:
                    holders.pop(transaction, None)
                    if not holders:
                        del self._by_digest[digest]
        waiters = self._waiting.pop(transaction, None)
        if waiters is not None:
            waiters.tell(commit)

    def get(self, transaction: bytes) -> Intent | None:
        found = self._intents.get(transaction)
        return None if found is None else found[0]

    def all(self) -> list[Intent]:
        return [intent for intent, _ in self._intents.values()]

    def heard_of(self, transaction: bytes, now: float) -> None:
        """Its coordinator's silence counts from now."""
        found = self._intents.get(transaction)
        if found is not None:
            self._intents[transaction] = (found[0], now)

    def seen_before(self, moment: float) -> list[Intent]:
        """Intents that this replica has known since before ``moment``."""
        return [intent for intent, seen in self._intents.values() if seen < moment]

    def undecided(
        self, timestamp: Timestamp, digests: Collection[Digest] | None, *, past_holds: bool = False
    ) -> Intent | None:
        """Some intent prepared at or below ``timestamp`` on one of ``digests`` (None: on any, but
        with ``past_holds`` those that only hold edges)."""
        if not self._intents:
            return None
        if digests is None:
            for intent, _ in self._intents.values():
                if intent.prepared <= timestamp and not (past_holds and intent.only_holds):
                    return intent
            return None
        for digest in digests:
            for transaction in self._by_digest.get(digest, ()):
                intent = self._intents[transaction][0]
                if intent.prepared <= timestamp:
                    return intent
        return None

    def decided(self, transaction: bytes) -> asyncio.Future[Timestamp]:
        """The commit timestamp of an undecided transaction, or 0, once it is applied here."""
        assert transaction in self._intents
        return self._waiting.setdefault(transaction, Waiters()).wait()

    def abandon(self, error: Exception) -> None:
        """Nothing is decided here any more."""
        for waiters in self._waiting.values():
            waiters.fail(error)
        self._waiting.clear()
