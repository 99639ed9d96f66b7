"""All nodes are restarted in turn while clients write."""

from __future__ import annotations

from typing import Final

import pytest

from benchmarks.rolling import measure_rolling

pytestmark = pytest.mark.process

GAP_S: Final = 2.0
"""Far above what it takes (``python -m benchmarks.liveness`` says), for machines that do much else
beside this test."""


@pytest.mark.timeout(180)
def test_a_rolling_restart_loses_no_request_that_is_retried_once() -> None:
    measured = measure_rolling(print, settle_s=1.0)
    assert measured.lost == 0, measured
    assert not any("500" in reason for reason in measured.reasons), measured
    assert measured.longest_gap < GAP_S, measured
    assert measured.acknowledged > 50, measured
