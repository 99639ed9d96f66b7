"""``make bench-graph``."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.console import Console

from benchmarks.graph.report import as_json, print_report
from benchmarks.graph.run import Plan, run

_PLAIN_WIDTH = 120
_QUICK = Plan(vertices=5_000, edges=25_000, seconds=3.0, asked_max=300)


def main(
    quick: Annotated[bool, typer.Option(help="5,000 vertices and 25,000 edges.")] = False,
    vertices: Annotated[int | None, typer.Option(min=10, help="How many.  [100000]")] = None,
    edges: Annotated[int | None, typer.Option(min=1, help="How many.  [500000]")] = None,
    seconds: Annotated[float | None, typer.Option(help="For each question, at most.  [10]")] = None,
    json: Annotated[Path | None, typer.Option(help="Write all samples to this file.")] = None,
) -> None:
    """Load a graph into a cluster of three nodes on this machine, and ask it questions."""
    plan = _QUICK if quick else Plan()
    plan = replace(
        plan,
        vertices=plan.vertices if vertices is None else vertices,
        edges=plan.edges if edges is None else edges,
        seconds=plan.seconds if seconds is None else seconds,
    )
    if plan.edges > plan.vertices * (plan.vertices - 1) // 4:
        raise typer.BadParameter("too many edges for so few vertices")
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_PLAIN_WIDTH)
    with tempfile.TemporaryDirectory(prefix="kotoba-bench-") as folder:
        results = run(plan, Path(folder), _say)
    console.print()
    print_report(console, results, plan)
    if json is not None:
        json.write_bytes(orjson.dumps(as_json(results, plan), option=orjson.OPT_INDENT_2))
    if any(asked.wrong for asked in results.asked):
        raise typer.Exit(1)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(main)
    app()
