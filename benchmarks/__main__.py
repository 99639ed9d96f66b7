"""``make bench``: writes, reads and failover of this cluster, and of etcd where there is one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.console import Console

from benchmarks.report import as_json, print_report
from benchmarks.run import Plan, run_rounds
from benchmarks.systems import Etcd, Kotoba, System, etcd_version

_PLAIN_WIDTH = 120
_QUICK = Plan(seconds=2, rounds=1, connections=(1, 64), batch_connections=(16,), kills=1)


def main(
    seconds: Annotated[float | None, typer.Option(help="Length of each load.  [5]")] = None,
    rounds: Annotated[int | None, typer.Option(help="How often all is measured.  [3]")] = None,
    kills: Annotated[int | None, typer.Option(help="Leaders killed in each round.  [2]")] = None,
    quick: Annotated[bool, typer.Option(help="A first impression in a minute.")] = False,
    etcd: Annotated[bool, typer.Option(help="Measure etcd as well.")] = True,
    json: Annotated[Path | None, typer.Option(help="Write all samples to this file.")] = None,
) -> None:
    """Measure a cluster of three nodes on this machine."""
    plan = _QUICK if quick else Plan()
    plan = replace(
        plan,
        seconds=plan.seconds if seconds is None else seconds,
        rounds=plan.rounds if rounds is None else rounds,
        kills=plan.kills if kills is None else kills,
    )
    version = etcd_version() if etcd else None
    systems: dict[str, Callable[[], System]] = {"kotoba": Kotoba}
    if version is not None:
        systems["etcd"] = Etcd
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_PLAIN_WIDTH)
    results = run_rounds(systems, plan, _progress(console))
    console.print()
    print_report(console, results, plan, version)
    if json is not None:
        json.write_bytes(orjson.dumps(as_json(results, plan, version), option=orjson.OPT_INDENT_2))


def _progress(console: Console) -> Callable[[str], None]:
    """What is going on: one line that changes on a terminal, else nothing but new rounds."""
    if not console.is_terminal:
        return lambda text: print(text, file=sys.stderr, flush=True)
    status = console.status("")
    status.start()
    return status.update


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(main)
    app()
