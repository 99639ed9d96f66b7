"""Many runs in several processes: progress, throughput, and how to play a failure again."""

from __future__ import annotations

import gc
import shlex
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Final

from tests.simulation.runs import Plan, run

__all__ = ["Campaign", "Outcome", "Play", "regressions"]

PROGRESS_S: Final = 10.0
REGRESSIONS: Final = Path(__file__).with_name("regressions.txt")

Play = tuple[int, Plan]
"""A seed, and what its run is made of."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one run. ``failure`` is empty when it held all it promised."""

    seed: int
    plan: Plan
    wall_s: float
    virtual_s: float = 0.0
    operations: int = 0
    summary: str = ""
    failure: str = ""


def play(seed: int, plan: Plan) -> Outcome:
    """One run, in a worker process."""
    # A run that fails leaves coroutines behind, and they complain when they are collected.
    warnings.simplefilter("ignore")
    started = time.perf_counter()
    try:
        made = run(seed, **asdict(plan))
    except AssertionError as error:
        return Outcome(seed, plan, time.perf_counter() - started, failure=str(error))
    finally:
        gc.collect()
    return Outcome(
        seed,
        plan,
        time.perf_counter() - started,
        virtual_s=made.world.loop.time(),
        operations=len(made.history.events) + len(made.bank.transactions),
        summary=made.summary,
    )


def regressions(parse: Callable[[list[str]], Play]) -> list[Play]:
    """The runs of ``regressions.txt``: on each line a seed, its options, and what it is about."""
    lines = REGRESSIONS.read_text().splitlines()
    words = (shlex.split(line, comments=True) for line in lines)
    return [parse(["--first", *line]) for line in words if line]


@dataclass(slots=True)
class Campaign:
    """Runs as many plays at a time as there are ``jobs``; ``say`` prints a line."""

    jobs: int
    say: Callable[[str], None]
    each: bool = False
    """Say a line for every run, not only for those that fail."""
    done: int = 0
    failed: list[Outcome] = field(default_factory=list)
    virtual_s: float = 0.0
    operations: int = 0
    started: float = field(default_factory=time.perf_counter)
    _told: float = 0.0

    def run(self, plays: Iterable[Play], *, for_s: float | None = None) -> None:
        """All of ``plays``, or as many as are begun within ``for_s`` seconds."""
        until = None if for_s is None else time.perf_counter() + for_s
        upcoming = iter(plays)
        with ProcessPoolExecutor(self.jobs, mp_context=get_context("spawn")) as pool:
            running = {pool.submit(play, *one) for one in islice(upcoming, self.jobs)}
            while running:
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    self._note(future.result())
                if until is None or time.perf_counter() < until:
                    running |= self._submit(pool, upcoming, self.jobs - len(running))

    def _submit(
        self, pool: ProcessPoolExecutor, upcoming: Iterator[Play], count: int
    ) -> set[Future[Outcome]]:
        return {pool.submit(play, *one) for one in islice(upcoming, count)}

    def _note(self, outcome: Outcome) -> None:
        self.done += 1
        self.virtual_s += outcome.virtual_s
        self.operations += outcome.operations
        if outcome.failure:
            self.failed.append(outcome)
            self.say(outcome.failure)
        elif self.each:
            self.say(f"{outcome.summary} ({outcome.wall_s:.1f} s)")
        now = time.perf_counter()
        if not self.each and now - self._told >= PROGRESS_S:
            self._told = now
            self.say(self.progress)

    @property
    def progress(self) -> str:
        wall_s = time.perf_counter() - self.started
        return (
            f"{self.done} runs, {len(self.failed)} failed, {wall_s:.0f} s: "
            f"{self.virtual_s / wall_s:.1f} simulated seconds and "
            f"{self.operations / wall_s:,.0f} operations per second, {self.jobs} at a time"
        )

    @property
    def verdict(self) -> str:
        """The last word: how much was run, and how to play again what failed."""
        again = [f"  {outcome.plan.command(outcome.seed)}" for outcome in self.failed]
        return "\n".join([self.progress, *(["to play again:"] if again else []), *again])
