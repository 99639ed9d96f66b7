from __future__ import annotations

from itertools import pairwise

from cluster_core.node.local import SystemClock


def test_the_steady_clock_tells_parts_of_a_millisecond() -> None:
    clock = SystemClock()
    readings = [clock.steady_s() for _ in range(10_000)]
    steps = [after - before for before, after in pairwise(readings)]
    assert min(steps) >= 0
    assert 0 < min(step for step in steps if step) < 0.000_1
