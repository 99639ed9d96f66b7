"""One run: rounds in which each system is started fresh, loaded, robbed of its leader, stopped."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from benchmarks.failover import Failover, measure_failover
from benchmarks.load import BATCH, Measured, run_load
from benchmarks.systems import System

__all__ = ["Plan", "Sample", "Series", "run_rounds"]

Kind = Literal["write", "batch", "read"]

_WARM_UP_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    seconds: float = 5.0
    rounds: int = 3
    connections: Sequence[int] = (1, 16, 64, 256)
    batch_connections: Sequence[int] = (4, 32)
    kills: int = 2

    def loads(self) -> Iterator[tuple[Kind, int]]:
        """What is driven in each round, reads first: they ask for what was loaded just before."""
        yield from (("read", count) for count in self.connections)
        yield from (("write", count) for count in self.connections)
        yield from (("batch", count) for count in self.batch_connections)


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement: operations a second, request latencies in milliseconds, errors."""

    per_second: float
    p50_ms: float
    p99_ms: float
    refused: int
    broken: int


@dataclass(slots=True)
class Series:
    """All samples of one system."""

    loads: dict[tuple[Kind, int], list[Sample]] = field(default_factory=dict)
    failovers: list[Failover] = field(default_factory=list)


def run_rounds(
    systems: dict[str, Callable[[], System]], plan: Plan, say: Callable[[str], None]
) -> dict[str, Series]:
    """Measure each system in each round, in turn, so that a slow minute meets all of them."""
    results = {name: Series() for name in systems}
    for number in range(1, plan.rounds + 1):
        for name, make in systems.items():
            say(f"round {number} of {plan.rounds}: {name} starts")
            system = make()
            try:
                system.start()
                _measure(system, plan, results[name], say)
            finally:
                system.close()
    return results


def _measure(system: System, plan: Plan, series: Series, say: Callable[[str], None]) -> None:
    with _names_file(system.preload()) as names:
        run_load(f"{system.name}-write", system.write_urls(), connections=16, seconds=_WARM_UP_S)
        for kind, connections in plan.loads():
            say(f"{system.name}: {kind}, {connections} connections")
            sample = _load(system, kind, connections, plan.seconds, names)
            series.loads.setdefault((kind, connections), []).append(sample)
    for kill in range(1, plan.kills + 1):
        say(f"{system.name}: kill {kill} of {plan.kills}")
        series.failovers.append(measure_failover(system))


def _load(system: System, kind: Kind, connections: int, seconds: float, names: Path) -> Sample:
    measured = run_load(
        f"{system.name}-{kind}",
        system.read_urls() if kind == "read" else system.write_urls(),
        connections=connections,
        seconds=seconds,
        names=names if kind == "read" else None,
    )
    # A pause, so that what one load leaves in queues is not counted to the next.
    time.sleep(0.3)
    return _sample(measured, BATCH if kind == "batch" else 1)


def _sample(measured: Measured, operations: int) -> Sample:
    answered = max(measured.requests, 1)
    return Sample(
        per_second=measured.per_second * operations * (1 - measured.refused / answered),
        p50_ms=measured.percentile_ms(50),
        p99_ms=measured.percentile_ms(99),
        refused=measured.refused,
        broken=measured.broken,
    )


@contextmanager
def _names_file(names: Sequence[str]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="kotoba-bench-") as folder:
        path = Path(folder) / "names"
        path.write_text("\n".join(names) + "\n")
        yield path
