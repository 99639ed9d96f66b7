"""Whole nodes under virtual time: what they promise holds through whatever goes wrong."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

from tests.simulation.runs import run

pytestmark = [pytest.mark.simulation, pytest.mark.timeout(300)]


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


def test_nor_does_it_differ_with_more_nodes_than_replicas() -> None:
    first, again = run(9, nodes=5, seconds=4), run(9, nodes=5, seconds=4)
    assert first.world.trace == again.world.trace


_PRINT = "from tests.simulation.runs import run; print(run(7, seconds=3).world.fingerprint())"


def test_a_run_does_not_depend_on_the_order_of_sets() -> None:
    """Python hashes strings differently in each process, and so orders sets of them."""
    prints = {
        subprocess.run(
            [sys.executable, "-c", _PRINT],
            env={**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": "."},
            cwd=pathlib.Path(__file__).parents[2],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in (1, 2)
    }
    assert len(prints) == 1
