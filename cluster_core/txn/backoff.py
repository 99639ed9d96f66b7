"""How whoever lost against another transaction waits before it tries again.

A single lock in the way tells when it is released. Where no single one is, nobody tells: pauses
grow then, so that many who want the same leave each other room, and are drawn, so that no two of
them keep step.
"""

from __future__ import annotations

import asyncio
from typing import Final

from cluster_core.ports import Random

__all__ = ["PAUSE_S", "PAUSE_S_MAX", "Backoff"]

PAUSE_S: Final = 0.02
"""The first pause at most: a transaction over two partitions takes some milliseconds."""
PAUSE_S_MAX: Final = 0.32
"""A sixteenth of the time that a request has by default: there is time for tries until the end."""


class Backoff:
    """The pauses of one operation, until ``deadline``, a time of the event loop."""

    __slots__ = ("_deadline", "_pause_s", "_random")

    def __init__(self, random: Random, deadline: float) -> None:
        self._random = random
        self._deadline = deadline
        self._pause_s = PAUSE_S

    async def pause(self, released: asyncio.Future[None] | None) -> bool:
        """Wait until the lock in the way is released, or for a while. False at the deadline."""
        clock = asyncio.get_running_loop().time
        remaining = max(0.0, self._deadline - clock())
        if released is None:
            await asyncio.sleep(min(self._random.uniform(0.5, 1.0) * self._pause_s, remaining))
            self._pause_s = min(2 * self._pause_s, PAUSE_S_MAX)
        else:
            await asyncio.wait([released], timeout=remaining)
            # It fails when leadership was lost: the next try finds out.
            released.cancel()
        return clock() < self._deadline
