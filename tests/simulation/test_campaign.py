"""What `make sim` and `make sim-ci` promise: commands that replay, seeds that are kept."""

from __future__ import annotations

import shlex

import pytest

from tests.simulation.__main__ import play_of
from tests.simulation.campaign import Campaign, Outcome, regressions
from tests.simulation.runs import Plan


@pytest.mark.parametrize(
    "plan",
    [
        Plan(),
        Plan(nodes=5, seconds=8, pace=0.3),
        Plan(clients=0, tellers=5, only=("crash", "pause")),
    ],
)
def test_the_command_that_is_printed_plays_the_same_run(plan: Plan) -> None:
    words = shlex.split(plan.command(4711))
    assert words[:3] == ["python", "-m", "tests.simulation"]
    assert play_of(words[3:]) == (4711, plan)


def test_seeds_that_failed_once_are_kept() -> None:
    kept = regressions(play_of)
    assert (203, Plan(seconds=8, clients=0, tellers=5)) in kept
    assert len({seed for seed, _ in kept}) == len(kept)


def test_the_verdict_names_what_failed_and_how_to_play_it_again() -> None:
    said: list[str] = []
    campaign = Campaign(2, said.append)
    campaign._note(Outcome(1, Plan(), 0.1, virtual_s=20.0, operations=900))
    campaign._note(Outcome(2, Plan(nodes=5), 0.1, failure="seed 2: half an edge"))
    assert "seed 2: half an edge" in said
    assert "2 runs, 1 failed" in campaign.verdict
    assert campaign.verdict.endswith("python -m tests.simulation --first 2 --nodes 5")
