"""Vertices with many edges are deleted in chunks while everything goes wrong, at one moment."""

from __future__ import annotations

import pytest

from tests.simulation.runs import run

pytestmark = pytest.mark.simulation


@pytest.mark.parametrize("seed", [9, 22])
def test_a_hub_goes_with_all_of_its_edges_or_not_at_all(seed: int) -> None:
    """Seed 9 found the order in which the two halves of an edge have to go."""
    made = run(seed, seconds=8, clients=2, tellers=1, surveyors=2)
    assert made.hubs.seen_whole > 10
    assert made.hubs.seen_gone > 5
    assert sum(1 for hub in made.hubs.hubs if hub.gone) > 3
