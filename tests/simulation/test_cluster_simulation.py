"""Whole nodes under virtual time: what they promise holds through whatever goes wrong."""

from __future__ import annotations

import pytest

from tests.simulation.runs import run

pytestmark = pytest.mark.simulation


def test_a_cluster_without_faults_is_linearizable() -> None:
    made = run(1, seconds=10, chaos=False)
    assert len(made.history.acknowledged) > 100
    assert all(event.returned is not None for event in made.history.events)


@pytest.mark.parametrize("seed", range(100, 110))
def test_promises_hold_through_faults(seed: int) -> None:
    run(seed)


def test_the_same_seed_gives_the_same_run() -> None:
    first, again, other = run(7, seconds=8), run(7, seconds=8), run(8, seconds=8)
    assert first.world.trace == again.world.trace
    assert first.world.fingerprint() != other.world.fingerprint()
