"""Mutants: the shipped code with one rule broken on purpose, and the hunt for them.

A test that cannot fail proves nothing, and neither does a simulator. So each rule of safety that
can be broken is broken here, by a patch of the code as it is shipped, and simulated runs have to
notice within a stated number of seeds. A mutant counts as found only where the same run without it
holds.
"""

from __future__ import annotations

import gc
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Protocol

import pytest

from cluster_core.config import ClusterConfig
from tests.simulation.runs import Plan, run
from tests.simulation.world import SIM_CONFIG, World, simulate

__all__ = [
    "ROOT",
    "Everywhere",
    "Found",
    "Mutant",
    "Same",
    "Scenario",
    "Sighting",
    "Whole",
    "hunt",
    "play",
]

ROOT: Final = Path(__file__).parents[3]

LIVENESS: Final = ("world", "runs", "workload", "of_transactions")
"""Modules whose assertions are about what has to happen in time."""

Break = Callable[[pytest.MonkeyPatch], None]


class Scenario(Protocol):
    """Raises an AssertionError when the run from this seed breaks a promise."""

    def __call__(self, seed: int) -> object: ...


@dataclass(frozen=True, slots=True)
class Whole:
    """A run of the whole simulation (``runs.py``)."""

    plan: Plan

    def __call__(self, seed: int) -> None:
        run(seed, **asdict(self.plan))


@dataclass(frozen=True, slots=True)
class Everywhere:
    """A scenario of its own, in a world from the seed; the nodes' own complaints count as well."""

    live: Callable[[World], object]
    config: ClusterConfig = SIM_CONFIG
    nodes: int = 3

    def __call__(self, seed: int) -> None:
        world = simulate(seed, self.live, nodes=self.nodes, config=self.config)  # type: ignore[arg-type]
        assert not world.failures, "\n".join(world.failures)


@dataclass(frozen=True, slots=True)
class Same:
    """A test of one schedule, whatever the seed."""

    test: Callable[[], None]

    def __call__(self, seed: int) -> None:
        self.test()


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """``broken`` patches the code; ``rule`` says what it is that is broken, ``area`` which table of
    docs/correctness.md has it. Runs begin at seed ``first``, and ``within`` so many must notice.
    ``quick``: found in seconds, so that every test run looks for it."""

    broken: Break
    area: str
    rule: str
    scenario: Scenario
    first: int = 0
    within: int = 40
    quick: bool = True

    @property
    def name(self) -> str:
        return getattr(self.broken, "__name__", "mutant")


@dataclass(frozen=True, slots=True)
class Sighting:
    """A run that noticed: ``by`` names the checker."""

    seed: int
    by: str
    says: str


@dataclass(frozen=True, slots=True)
class Found:
    """What came of a hunt; ``sighting`` is None when nothing noticed."""

    mutant: Mutant
    runs: int
    wall_s: float
    sighting: Sighting | None


def play(mutant: Mutant, seed: int) -> Sighting | None:
    """One run with the mutant. Raises what is no verdict: then the mutant is wrong, not the run."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        # A run that ends in the middle leaves coroutines behind, and they complain.
        warnings.simplefilter("ignore")
        mutant.broken(patch)
        try:
            mutant.scenario(seed)
        except AssertionError as failure:
            return Sighting(seed, _checker(failure), str(failure))
        finally:
            gc.collect()
    return None


def hunt(mutant: Mutant, say: Callable[[str], None] = lambda _: None) -> Found:
    """Run seed after seed until one notices, and nothing is wrong with it without the mutant."""
    started = time.perf_counter()
    for seed in range(mutant.first, mutant.first + mutant.within):
        sighting = play(mutant, seed)
        if sighting is not None:
            mutant.scenario(seed)
            runs = seed - mutant.first + 1
            return Found(mutant, runs, time.perf_counter() - started, sighting)
        say(f"{mutant.name}: not by seed {seed}")
    return Found(mutant, mutant.within, time.perf_counter() - started, None)


def _checker(failure: AssertionError) -> str:
    """The module whose assertion it was."""
    cause = failure.__cause__ or failure
    said = str(cause)
    if " logs: " in said:
        return "an error in a node's log"
    if said.startswith("violation at key"):
        return "linearizability"
    if "\nand a scan:\n" in said:
        return "librarian"
    places = [Path(frame.filename) for frame in traceback.extract_tb(cause.__traceback__)]
    ours = [path.relative_to(ROOT) for path in places if path.is_relative_to(ROOT)]
    ours = [path for path in ours if path.parts[0] in ("tests", "cluster_core")]
    if not ours:
        return type(cause).__name__
    last = ours[-1]
    if last.parts[0] == "cluster_core":
        return f"an assertion in {last.name}"
    words = last.stem.removeprefix("test_").replace("_", " ")
    return "liveness" if last.stem in LIVENESS else words
