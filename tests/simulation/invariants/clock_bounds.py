"""No clock takes the others along: timestamps stay near true time, though one wall clock may be an
hour ahead of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cluster_core.hlc import wall_of
from tests.simulation.clock import EPOCH_MS
from tests.simulation.invariants.view import ReplicaView

__all__ = ["AHEAD_MS_MAX", "ClockBounds"]

AHEAD_MS_MAX: Final = 30_000
"""Each restart begins at a ceiling three seconds ahead of what was used: many in a row add up."""


class ClockBounds:
    """``true_s`` gives the seconds since the world began."""

    def __init__(self, true_s: Callable[[], float]) -> None:
        self._true_s = true_s

    def check(self, replicas: list[ReplicaView]) -> None:
        bound = EPOCH_MS + self._true_s() * 1000 + AHEAD_MS_MAX
        for view in replicas:
            ahead_s = (wall_of(view.clock) - bound + AHEAD_MS_MAX) / 1000
            assert wall_of(view.clock) <= bound, f"{view.node}: {ahead_s:.0f} s ahead of true time"
