"""Wall clocks that are wrong, each in its own way."""

from __future__ import annotations

import asyncio
from typing import Final

__all__ = ["EPOCH_MS", "SimClock"]

EPOCH_MS: Final = 1_700_000_000_000
"""Virtual time begins here: any moment at which real clocks could stand."""


class SimClock:
    """A port ``Clock`` over the loop's time: ``offset_ms`` off, and ``drift`` fast."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, *, offset_ms: float = 0.0, drift: float = 0.0
    ):
        self._loop = loop
        self.offset_ms = offset_ms
        self.drift = drift

    def wall_ms(self) -> int:
        return int(EPOCH_MS + self._loop.time() * 1000 * (1 + self.drift) + self.offset_ms)

    def steady_s(self) -> float:
        return self._loop.time()

    def jump(self, milliseconds: float) -> None:
        """What an operator or NTP does to a clock, in either direction."""
        self.offset_ms += milliseconds
