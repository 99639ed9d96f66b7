"""The result as tables for people and as JSON for machines."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.graph.run import Plan, Results

__all__ = ["as_json", "print_report"]


def print_report(console: Console, results: Results, plan: Plan) -> None:
    """What loading and each kind of question cost."""
    loading = _table("loading", "rows", "seconds", "rows/s")
    for name, loaded in (("vertices", results.nodes), ("edges", results.edges)):
        loading.add_row(
            name, f"{loaded.rows:,}", f"{loaded.seconds:.1f}", f"{loaded.per_second:,.0f}"
        )
    console.print(loading)
    console.print()
    asking = _table("one client, strong", "asked", "rows each", "p50 ms", "p99 ms", "checked")
    asking.add_column("")
    for asked in results.asked:
        count = len(asked.latencies_ms)
        asking.add_row(
            asked.name,
            f"{count:,}",
            f"{asked.rows / max(count, 1):,.1f}",
            f"{asked.percentile_ms(50):.1f}",
            f"{asked.percentile_ms(99):.1f}",
            Text(f"{asked.wrong} wrong", "bold red") if asked.wrong else f"{asked.checked:,} right",
            Text(asked.note, "dim"),
        )
    console.print(asking)
    for line in _notes(results, plan):
        console.print(Text(line, "dim"))


def _table(name: str, *columns: str) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column(name)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _notes(results: Results, plan: Plan) -> list[str]:
    peaks = ", ".join(f"{peak:,.0f}" for peak in results.node_peaks_mib)
    return [
        "",
        f"{plan.vertices:,} vertices, {plan.edges:,} edges by preferential attachment; outgoing "
        "edges are followed for neighbourhoods, both directions for paths.",
        "Loaded with kotoba import, exactly once, synced by a majority of three nodes on this "
        f"machine ({os.cpu_count()} cores for all).",
        f"Peak memory: import {results.client_peak_mib:,.0f} MiB, nodes {peaks or 'not known'} "
        f"MiB; on disk {results.disk_bytes / (1 << 20):,.0f} MiB in all.",
    ]


def as_json(results: Results, plan: Plan) -> dict[str, Any]:
    """Everything that was measured, each latency by itself."""
    return {
        "plan": asdict(plan),
        "machine": {
            "cores": os.cpu_count(),
            "platform": platform.platform(),
            "python": platform.python_version(),
        },
        "version": version("kotoba-db-cluster"),
        "results": asdict(results),
    }
