"""The result as a table for people and as JSON for machines."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from statistics import median
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.failover import Failover
from benchmarks.load import BATCH, generator_name
from benchmarks.run import Plan, Sample, Series

__all__ = ["as_json", "print_report"]

_WIDE: Final = 100
"""Columns of a terminal that has room for the ranges."""
_TITLES: Final = {
    "write": "durable writes",
    "batch": f"same, {BATCH} a request",
    "read": "strong reads",
}


def print_report(
    console: Console, results: dict[str, Series], plan: Plan, etcd: str | None
) -> None:
    """Medians over the rounds, with their range, and the ratio to etcd where it ran."""
    console.print(_loads_table(results, with_range=console.width >= _WIDE))
    if any(series.failovers for series in results.values()):
        console.print()
        console.print(_failover_table(results))
    for line in _notes(results, plan, etcd):
        console.print(Text(line, "dim"))
    for line in _errors(results):
        console.print(Text(line, "yellow"))


def _loads_table(results: dict[str, Series], *, with_range: bool) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("")
    table.add_column("clients", justify="right")
    for name in results:
        table.add_column(f"{name}/s", justify="right")
        if with_range:
            table.add_column("range", justify="right", style="dim")
        table.add_column("p50/p99 ms", justify="right")
    if len(results) > 1:
        table.add_column("ratio", justify="right", style="bold")
    last = None
    for kind, connections in next(iter(results.values())).loads:
        samples = [series.loads.get((kind, connections), []) for series in results.values()]
        cells = [cell for one in samples for cell in _cells(one, with_range)]
        ratio = [_ratio(*samples)] if len(samples) > 1 else []
        title = _TITLES[kind] if kind != last else ""
        if last not in (None, kind):
            table.add_section()
        last = kind
        table.add_row(title, str(connections), *cells, *ratio)
    return table


def _cells(samples: Sequence[Sample], with_range: bool) -> list[str]:
    if not samples:
        return [""] * (2 + with_range)
    rates = [sample.per_second for sample in samples]
    spread = f"{min(rates):,.0f}–{max(rates):,.0f}" if len(rates) > 1 else ""
    p50 = median(sample.p50_ms for sample in samples)
    p99 = median(sample.p99_ms for sample in samples)
    return [f"{median(rates):,.0f}", *([spread] if with_range else []), f"{p50:.1f}/{p99:.1f}"]


def _ratio(ours: Sequence[Sample], theirs: Sequence[Sample]) -> str:
    if not ours or not theirs:
        return ""
    below = median(sample.per_second for sample in theirs)
    return f"{median(sample.per_second for sample in ours) / below:.2f}" if below else ""


_FAILOVER_ROWS: Final[tuple[tuple[str, Callable[[Failover], float | None]], ...]] = (
    ("first write at all", lambda failover: failover.first),
    ("first to what the dead led", lambda failover: failover.first_orphaned),
    ("all that the dead led", lambda failover: failover.all_orphaned),
)


def _failover_table(results: dict[str, Series]) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    kills = max(len(series.failovers) for series in results.values())
    table.add_column(f"ms after kill -9 of the leader, {kills}x")
    for name in results:
        table.add_column(name, justify="right")
        table.add_column("range", justify="right", style="dim")
    for title, of in _FAILOVER_ROWS:
        cells = [cell for series in results.values() for cell in _times(series.failovers, of)]
        table.add_row(title, *cells)
    return table


def _times(
    failovers: Sequence[Failover], of: Callable[[Failover], float | None]
) -> tuple[str, str]:
    times = [time for failover in failovers if (time := of(failover)) is not None]
    lost = len(failovers) - len(times)
    never = f" ({lost} never)" if lost else ""
    if not times:
        return f"never{never}", ""
    spread = f"{min(times) * 1000:,.0f}–{max(times) * 1000:,.0f}" if len(times) > 1 else ""
    return f"{median(times) * 1000:,.0f}{never}", spread


def _notes(results: dict[str, Series], plan: Plan, etcd: str | None) -> list[str]:
    notes = [
        "",
        f"Medians of {plan.rounds} round(s) of {plan.seconds:g} s, a fresh cluster in each; load "
        f"from {generator_name()}.",
        f"Nodes and load share {os.cpu_count()} cores and one disk: compare, do not extrapolate.",
        "Writes are synced by a majority before they are acknowledged, about 200 bytes each; reads "
        "are linearizable.",
    ]
    if "etcd" in results:
        notes += [
            f"etcd {etcd} is driven through its JSON gateway at its leader, its best case; kotoba "
            "at all nodes, which forward to the leaders of 64 partitions.",
            "They are not the same thing: a put of etcd replaces a value under a key; a write of "
            "kotoba makes a content-addressed, indexed, versioned node of a graph.",
            "Failover: clients at the other two nodes, 0.25 s a try. etcd has one leader for all; "
            "kotoba has one for each partition.",
        ]
    else:
        notes.append("No etcd beside it: there is no etcd binary here, or it was not wanted.")
    return notes


def _errors(results: dict[str, Series]) -> list[str]:
    lines = []
    for name, series in results.items():
        for (kind, connections), samples in series.loads.items():
            refused = sum(sample.refused for sample in samples)
            broken = sum(sample.broken for sample in samples)
            if refused or broken:
                lines.append(
                    f"{name}, {kind} with {connections} connections: {refused:,} answers were "
                    f"errors (not counted above), {broken:,} requests had no answer"
                )
    return lines


def as_json(results: dict[str, Series], plan: Plan, etcd: str | None) -> dict[str, Any]:
    """Everything that was measured, each sample by itself."""
    return {
        "plan": asdict(plan),
        "machine": {
            "cores": os.cpu_count(),
            "platform": platform.platform(),
            "python": platform.python_version(),
            "load": generator_name(),
        },
        "versions": {"kotoba": version("kotoba-db-cluster"), "etcd": etcd},
        "results": {
            name: {
                "loads": [
                    {
                        "kind": kind,
                        "connections": connections,
                        "samples": [asdict(s) for s in found],
                    }
                    for (kind, connections), found in series.loads.items()
                ],
                "failovers_s": [asdict(failover) for failover in series.failovers],
            }
            for name, series in results.items()
        },
    }
