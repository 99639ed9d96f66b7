"""Holds: answers that wait for a snapshot, so that snapshots respect real time.

A snapshot of several partitions at a time T raises the clock of each leader to T, one a little
after the other. Between the first and the last of these moments one leader writes above T already,
and another still below. Were a write above T (W1, not in the snapshot) acknowledged then, somebody
could know of it and begin another one (W2) that gets a time below T: the snapshot would have W2
without W1 (*causal reverse*). So from the moment at which a node raises its clock for a reader
until the reader says that all have, the node *holds* each answer that depends on anything above T.

Only answers are held, never proposals or replication, so what is held is applied meanwhile. What is
held is what a leader says: the outcome of a proposal (``Replica.written``), a refusal or a repeated
answer (``confirm``), and the moments that it gives to readers (``node/reads.py``). All strong
answers are one of these, or a snapshot, which needs no hold; ``node/snapshot_rounds.py`` has the
argument. What promises no order in real time is not held: reads of closed timestamps, events,
writes at ``eventual``.

A hold cannot starve an answer: it begins only while the node's clock is not above T, so it holds
nothing that was written before it began. And it ends by itself, for its reader may be dead. A
reader whose hold has ended early is told so, and starts again.
"""

from __future__ import annotations

import asyncio
from typing import Final

from cluster_core.hlc import TIMESTAMP_MAX, HybridClock
from cluster_core.types import NodeId, Timestamp

__all__ = ["HOLD_S_MAX", "Holds", "Reader"]

HOLD_S_MAX: Final = 2.0
"""No reader holds anything up for longer."""

Reader = tuple[NodeId, int]
"""The node that reads, and a number that it gives only once."""


class Holds:
    """The holds of one node."""

    def __init__(self, clock: HybridClock) -> None:
        self.lowest: Timestamp = TIMESTAMP_MAX
        """Answers that depend on anything above it have to wait."""
        self._clock = clock
        self._on: dict[Reader, tuple[Timestamp, asyncio.TimerHandle]] = {}
        self._waiting: list[tuple[Timestamp, asyncio.Future[Timestamp]]] = []

    def begin(self, reader: Reader, timestamp: Timestamp, seconds: float) -> bool:
        """Raise the clock to ``timestamp`` and hold, for ``seconds`` at most, what depends on
        anything above. False, and nothing is done, where the clock is above it already."""
        if self._clock.latest > timestamp:
            return False
        self._clock.merge(timestamp)
        self.end(reader)
        timer = asyncio.get_running_loop().call_later(min(seconds, HOLD_S_MAX), self.end, reader)
        self._on[reader] = (timestamp, timer)
        self.lowest = min(self.lowest, timestamp)
        return True

    def end(self, reader: Reader) -> bool:
        """Whether the hold was on until now."""
        hold = self._on.pop(reader, None)
        if hold is None:
            return False
        hold[1].cancel()
        self.lowest = min((one[0] for one in self._on.values()), default=TIMESTAMP_MAX)
        self._release()
        return True

    def end_all_of(self, node: NodeId) -> None:
        """There is no connection to ``node`` any more: its readers have to start again."""
        for reader in [reader for reader in self._on if reader[0] == node]:
            self.end(reader)

    def answer(self, future: asyncio.Future[Timestamp], timestamp: Timestamp) -> None:
        """Let ``future`` have its ``timestamp`` as soon as nothing holds it."""
        if timestamp > self.lowest:
            self._waiting.append((timestamp, future))
        elif not future.done():
            future.set_result(timestamp)

    async def passed(self, timestamp: Timestamp) -> None:
        """Return when nothing holds what depends on ``timestamp``."""
        if timestamp > self.lowest:
            future: asyncio.Future[Timestamp] = asyncio.get_running_loop().create_future()
            self.answer(future, timestamp)
            await future

    def _release(self) -> None:
        waiting, self._waiting = self._waiting, []
        for timestamp, future in waiting:
            self.answer(future, timestamp)
