"""``python -m tests.simulation --first 0 --count 1000``: many seeds, one line each."""

from __future__ import annotations

import argparse
import sys
import time

from tests.simulation.runs import run


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the simulated cluster from many seeds.")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15.0, help="virtual seconds of trouble")
    parser.add_argument(
        "--pace", type=float, default=1.0, help="seconds between faults, on average"
    )
    options = parser.parse_args()
    failed = []
    for seed in range(options.first, options.first + options.count):
        started = time.perf_counter()
        try:
            made = run(seed, nodes=options.nodes, seconds=options.seconds, pace=options.pace)
        except AssertionError as error:
            failed.append(seed)
            print(error, flush=True)
        else:
            print(f"{made.summary} ({time.perf_counter() - started:.1f} s)", flush=True)
    print(f"{len(failed)} of {options.count} seeds failed{': ' if failed else ''}", *failed)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
