"""``python -m tests.simulation.mutants``: hunts every mutant, several at a time.

Prints the table of ``docs/correctness.md``. With names: only those.
"""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

from tests.simulation.mutants.catalogue import CATALOGUE, Outcome, hunt_by_name
from tests.simulation.mutants.hunt import Mutant

HEAD = ("mutant", "rule that it breaks", "noticed by", "runs", "of at most")


def row(*cells: object) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def table(rows: dict[str, Outcome]) -> str:
    lines = [row(*HEAD), row("---", "---", "---", "---:", "---:")]
    for mutant in CATALOGUE:
        if mutant.name in rows:
            runs, _, by, problem = rows[mutant.name]
            lines.append(
                row(f"`{mutant.name}`", mutant.rule, by or problem, runs or "–", mutant.within)
            )
    return "\n".join(lines)


def wanted(names: list[str], *, quick: bool) -> list[Mutant]:
    unknown = sorted(set(names) - {mutant.name for mutant in CATALOGUE})
    if unknown:
        raise SystemExit(f"no such mutant: {', '.join(unknown)}")
    chosen = [one for one in CATALOGUE if not names or one.name in names]
    return [one for one in chosen if one.quick or not quick]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.mutants")
    parser.add_argument("names", nargs="*")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--quick", action="store_true", help="only those of every test run")
    options = parser.parse_args()
    rows: dict[str, Outcome] = {}
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        chosen = wanted(options.names, quick=options.quick)
        hunts = {pool.submit(hunt_by_name, mutant.name): mutant for mutant in chosen}
        for done in as_completed(hunts):
            name = hunts[done].name
            rows[name] = runs, wall_s, by, problem = done.result()
            said = problem or f"{by}, after {runs} runs"
            print(f"{name}: {said} ({wall_s:.0f} s)", flush=True)
    print(f"\n{table(rows)}")
    return 1 if any(problem for *_, problem in rows.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
