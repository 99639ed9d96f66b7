"""What every task does alike: wait for transactions, read, count, and pause."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from struct import Struct
from typing import Any, Final

from cluster_core.graph.blocks import decode_block
from cluster_core.graph.records import EDGE, edge_ends, record_block, record_kind
from cluster_core.graph.values import Value
from cluster_core.ports import DATA
from cluster_core.query.host import QueryHost, ReadPoint
from cluster_core.query.predicates import predicate
from cluster_core.query.tasks import Budget, Stored
from cluster_core.storage import keys
from cluster_core.storage.mvcc import read_at
from cluster_core.types import Digest, group_of

__all__ = ["PAUSE_AFTER", "Work", "fitting", "properties_of", "weight_of"]

PAUSE_AFTER: Final = 500
"""Stored pairs between two pauses: at 3 to 5 us for a record that is decoded, some 2 ms."""
_PAIR_BYTES: Final = 2048
"""A pair counts once more for each of these: a record of 1 MiB is a pause of its own."""
_pack_u64: Final = Struct(">Q").pack


class Work:
    """What one task has spent, and what it may."""

    __slots__ = ("budget", "engine", "host", "point", "scanned", "timestamp", "unpaused")

    def __init__(self, host: QueryHost, point: ReadPoint, budget: Budget) -> None:
        self.host = host
        self.engine = host.engine
        self.point = point
        self.timestamp = point.timestamp
        self.budget = budget
        self.scanned = 0
        self.unpaused = 0

    async def settle(self, partition: int, digests: Sequence[Digest]) -> None:
        if not self.point.skip_intents:
            await self.host.settle(partition, self.timestamp, digests)

    async def settle_all(self, partition: int, *, past_holds: bool) -> None:
        """All of ``partition``; see :meth:`QueryHost.settle`."""
        if not self.point.skip_intents:
            await self.host.settle(partition, self.timestamp, None, past_holds=past_holds)

    async def settle_each(self, partitions: list[int], digests: list[Digest]) -> None:
        """``digests`` lie in ``partitions``, place by place."""
        if self.point.skip_intents:
            return
        grouped: dict[int, list[Digest]] = {}
        for partition, digest in zip(partitions, digests, strict=True):
            grouped.setdefault(partition, []).append(digest)
        for partition in sorted(grouped):
            await self.host.settle(partition, self.timestamp, grouped[partition])

    async def settle_ends(self, partition: int, ends: Iterable[Digest]) -> bool:
        """Wait for deletions of the vertices among ``ends`` that hold the edges just read in this
        partition. True where there were any: read again."""
        if self.point.skip_intents or not (detaching := self.host.detaching(partition)):
            return False
        held = sorted(detaching & set(ends))
        if held:
            await self.host.settle(partition, self.timestamp, held)
        return bool(held)

    async def spend(self, pairs: int, weight: int = 0) -> None:
        """Count pairs that were read, and pause when it is time."""
        self.note(pairs, weight)
        await self.breathe()

    def note(self, pairs: int, weight: int = 0) -> None:
        """Count pairs that were read, of ``weight`` bytes; whoever may wait breathes soon."""
        self.scanned += pairs
        self.unpaused += pairs + weight // _PAIR_BYTES

    async def breathe(self) -> None:
        """Pause when it is time."""
        if self.unpaused >= PAUSE_AFTER:
            self.unpaused = 0
            await asyncio.sleep(0)

    @property
    def exhausted(self) -> bool:
        return self.scanned >= self.budget.scanned

    def read(self, partition: int, digest: Digest) -> Stored | None:
        """The entity at the read's timestamp; a deletion has no record."""
        found = read_at(self.engine, keys.entity(group_of(partition), digest), self.timestamp)
        return None if found is None else Stored(digest, *found)

    async def read_settled(self, partition: int, digest: Digest) -> Stored | None:
        """As :meth:`read`; of an edge also once its ends are settled in its partition."""
        stored = self.read(partition, digest)
        if stored is None or not self.host.detaching(partition):
            return stored
        waited = await self.settle_ends(partition, edge_ends(stored.record))
        return self.read(partition, digest) if waited else stored

    def load(self, partition: int, digest: Digest) -> tuple[bytes, bytes] | None:
        """Key and record of an entity at the read's timestamp; None when it is not there."""
        user_key = keys.entity(group_of(partition), digest)
        begin = user_key + _pack_u64(keys.TIMESTAMP_MAX - self.timestamp)
        pair = self.engine.first(DATA, begin, user_key + keys.ALL_VERSIONS)
        if pair is None or not pair[1]:
            return None
        self.note(1, len(pair[1]))
        return pair

    def batches(self, begin: bytes, end: bytes) -> Iterator[tuple[int, list[tuple[bytes, bytes]]]]:
        """What a read sees of ``[begin, end)``, as the engine hands it over.

        Yields how many pairs were read, and the visible ones of them, with their timestamps.
        """
        oldest = _pack_u64(keys.TIMESTAMP_MAX - self.timestamp)
        scan = self.engine.scan(DATA, begin, end)
        done = b""
        while pairs := scan.fetch():
            visible = []
            for pair in pairs:
                key, value = pair
                user_key = key[:-8]
                if user_key == done or key[-8:] < oldest:
                    continue
                done = user_key
                if value:
                    visible.append(pair)
            yield len(pairs), visible


def weight_of(visible: list[tuple[bytes, bytes]]) -> int:
    return sum(len(value) for _, value in visible)


def properties_of(record: bytes) -> dict[str, Value]:
    properties: dict[str, Value] = decode_block(record_block(record))["properties"]
    return properties


def fitting(kind: int | None, labels: list[str], where: bytes) -> Callable[[bytes], bool]:
    """Whether a record is of this kind, has these labels and satisfies the condition."""
    holds = predicate(where)
    if not labels and holds is None:
        return lambda record: kind is None or record_kind(record) == kind
    wanted = frozenset(labels)
    # A record that does not contain the bytes of a label need not be decoded to be refused.
    needles = [label.encode() for label in sorted(wanted)]

    def fits(record: bytes) -> bool:
        if kind is not None and record_kind(record) != kind:
            return False
        if needles and not all(needle in record for needle in needles):
            return False
        content = decode_block(record_block(record))
        if not _has_labels(record_kind(record), wanted, content):
            return False
        return holds is None or holds(content["properties"])

    return fits


def _has_labels(kind: int, wanted: frozenset[str], content: dict[str, Any]) -> bool:
    if kind == EDGE:
        return all(label == content["label"] for label in wanted)
    return wanted.issubset(content["labels"])
