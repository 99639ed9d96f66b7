"""Where new vertices go: to partitions that this node leads, a few at a time.

A vertex lives where its digest says, and its digest depends on a random nonce: so whoever creates
it may choose, by trying nonces. One that is created by itself is put into a partition led here,
which saves the way to another leader; and all that are created within a moment share a few of those
partitions, so that they share log entries, messages and acknowledgements. The next moment takes the
next few, and over time all partitions led here get the same number (Kafka's sticky partitioner does
the same for records without a key).

Batches and requests with an Idempotency-Key are spread over all partitions.
"""

from __future__ import annotations

import asyncio
from typing import Final

from cluster_core.graph.operations import CreateNode, Creation, place_among
from cluster_core.ports import Random
from cluster_core.replication.host import ReplicationHost
from cluster_core.types import META_GROUP

__all__ = ["StickyPlacement"]

WINDOW: Final = 10
"""Partitions that are used at the same time. One of 64 would take 64 tries of 1 µs, ten take 6."""

MOMENT_S: Final = 0.004
"""How long a window lasts: about as long as a busy flush gathers and is replicated."""


class StickyPlacement:
    """See the module."""

    def __init__(self, host: ReplicationHost, partition_count: int, random: Random) -> None:
        self._host = host
        self._partition_count = partition_count
        self._random = random
        self._window: frozenset[int] = frozenset()
        self._until = 0.0
        self._next = 0

    def place(self, operation: CreateNode) -> Creation | None:
        """``operation`` as a vertex of a partition led here; None when none is."""
        now = asyncio.get_running_loop().time()
        if now >= self._until:
            self._move_on(now)
        if not self._window:
            return None
        nonce = self._random.randbytes(16)
        return place_among(operation, self._window, nonce, self._partition_count)

    def partition(self) -> int | None:
        """A partition led here, for vertices that shall live together; None when none is."""
        now = asyncio.get_running_loop().time()
        if now >= self._until:
            self._move_on(now)
        window = sorted(self._window)
        return window[self._random.randbytes(1)[0] % len(window)] if window else None

    def _move_on(self, now: float) -> None:
        led = [
            group - 1
            for group, replica in self._host.replicas.items()
            if group != META_GROUP and replica.evaluation is not None
        ]
        self._until = now + MOMENT_S
        self._next += WINDOW
        start = self._next % max(1, len(led))
        self._window = frozenset((led[start:] + led[:start])[:WINDOW])
