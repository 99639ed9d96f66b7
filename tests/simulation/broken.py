"""What tests share that break a rule on purpose, and see that somebody notices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import pytest

__all__ = ["BROKEN_RUNS", "assert_found"]

BROKEN_RUNS: Final = [
    pytest.mark.simulation,
    # A run that ends in the middle leaves coroutines behind, and they complain when collected.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
]


def assert_found(scenario: Callable[[], None]) -> None:
    with pytest.raises(AssertionError):
        scenario()
