"""Where new vertices go: to partitions that this node leads, a few at a time.

A vertex lives where its digest says, and its digest depends on a random nonce: so whoever creates
it may choose, by trying nonces. One that is created by itself is put into a partition led here,
which saves the way to another leader; and all that are created within a moment share a few of those
partitions, so that they share log entries, messages and acknowledgements. The next moment takes the
next few, and over time all partitions led here get the same number (Kafka's sticky partitioner does
the same for records without a key).

The creations of batches share partitions in the same way, but of another node each moment: who
loads a graph often asks one node only, and still all partitions shall get the same share of it.

Requests with an Idempotency-Key are spread over all partitions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from cluster_core.graph.operations import CreateNode, Creation, place_among
from cluster_core.ports import Random
from cluster_core.replication.router import Router
from cluster_core.types import group_of

__all__ = ["StickyPlacement"]

WINDOW: Final = 10
"""Partitions that are used at the same time. One of 64 would take 64 tries of 1 µs, ten take 6."""

MOMENT_S: Final = 0.004
"""How long a window lasts: about as long as a busy flush gathers and is replicated."""


class _Window:
    """Some of the partitions, others each moment."""

    __slots__ = ("partitions", "until", "used")

    def __init__(self) -> None:
        self.partitions: frozenset[int] = frozenset()
        self.until = 0.0
        self.used = 0

    def move_on(self, now: float, candidates: Sequence[int]) -> None:
        self.until = now + MOMENT_S
        self.used += WINDOW
        start = self.used % max(1, len(candidates))
        self.partitions = frozenset([*candidates[start:], *candidates[:start]][:WINDOW])


class StickyPlacement:
    """See the module."""

    def __init__(self, router: Router, partition_count: int, random: Random) -> None:
        self._router = router
        self._partition_count = partition_count
        self._random = random
        self._here = _Window()
        self._anywhere = _Window()

    def place(self, operation: CreateNode) -> Creation | None:
        """``operation`` as a vertex of a partition led here; None when none is."""
        return self._place_in(self._led_here(), operation)

    def place_in_batch(self, operation: CreateNode) -> Creation | None:
        """``operation`` as a vertex of a partition that the batches of this moment share; None when
        no leader is known."""
        window = self._anywhere
        now = asyncio.get_running_loop().time()
        if now >= window.until:
            window.move_on(now, self._by_leader())
        return self._place_in(window.partitions, operation)

    def partition(self) -> int | None:
        """A partition led here, for vertices that shall live together; None when none is."""
        window = sorted(self._led_here())
        return window[self._random.randbytes(1)[0] % len(window)] if window else None

    def _place_in(self, partitions: frozenset[int], operation: CreateNode) -> Creation | None:
        if not partitions:
            return None
        return place_among(operation, partitions, self._random.randbytes(16), self._partition_count)

    def _led_here(self) -> frozenset[int]:
        window = self._here
        now = asyncio.get_running_loop().time()
        if now >= window.until:
            window.move_on(now, [group - 1 for group in self._router.led_here()])
        return window.partitions

    def _by_leader(self) -> list[int]:
        """The partitions that have a leader, those of one node side by side."""
        found = []
        for partition in range(self._partition_count):
            leader = self._router.ready_leader(group_of(partition))
            if leader is not None:
                found.append((leader, partition))
        return [partition for _, partition in sorted(found)]
