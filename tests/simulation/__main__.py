"""``python -m tests.simulation --first 0 --count 1000``: many seeds, several at a time.

--for 60 --first now    fresh seeds for a minute
--regressions           those that failed once (regressions.txt), before all others
--first 4711            one run, played again
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from itertools import count

from tests.simulation.campaign import Campaign, Play, regressions
from tests.simulation.runs import Plan


def seed_of(text: str) -> int:
    return int(time.time()) if text == "now" else int(text)


def parser() -> argparse.ArgumentParser:
    usual = Plan()
    made = argparse.ArgumentParser(
        prog="python -m tests.simulation",
        description="Run the simulated cluster from many seeds.",
    )
    add = made.add_argument
    add("--first", type=seed_of, default=0, help="a seed; 'now' takes the time of day for one")
    add("--count", type=int, help="how many seeds; 1 by default, with --for any number")
    add("--for", type=float, dest="for_s", metavar="S", help="begin runs for so many seconds")
    add("--regressions", action="store_true", help="first, what failed once")
    add("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time")
    add(
        "--nodes", type=int, nargs="+", default=[usual.nodes], help="with several, seeds take turns"
    )
    add("--seconds", type=float, default=usual.seconds, help="virtual seconds of trouble")
    add("--pace", type=float, default=usual.pace, help="seconds between faults, on average")
    add("--clients", type=int, default=usual.clients)
    add("--tellers", type=int, default=usual.tellers)
    add("--surveyors", type=int, default=usual.surveyors, help="delete in chunks (hubs.py)")
    add("--impatient", action="store_true", help="decide at once for silent coordinators")
    add("--only", default="", help="the kinds of faults wanted, with commas: crash,pause")
    return made


def plan_of(options: argparse.Namespace, seed: int) -> Plan:
    return Plan(
        nodes=options.nodes[seed % len(options.nodes)],
        seconds=options.seconds,
        clients=options.clients,
        tellers=options.tellers,
        surveyors=options.surveyors,
        pace=options.pace,
        impatient=options.impatient,
        only=tuple(kind for kind in options.only.split(",") if kind),
    )


def play_of(words: list[str]) -> Play:
    options = parser().parse_args(words)
    return options.first, plan_of(options, options.first)


def say(text: str) -> None:
    print(text, flush=True)


def main() -> int:
    options = parser().parse_args()
    first = options.first
    fresh = options.count if options.count is not None or options.for_s else 1
    jobs = max(1, min(options.jobs, fresh or options.jobs))
    campaign = Campaign(jobs, say, each=fresh is not None and fresh <= 20)
    if options.regressions:
        known = regressions(play_of)
        say(f"{len(known)} runs that failed once")
        campaign.run(known)
    seeds = count(first) if fresh is None else range(first, first + fresh)
    say(f"seeds from {first}")
    campaign.run(((seed, plan_of(options, seed)) for seed in seeds), for_s=options.for_s)
    say(campaign.verdict)
    return 1 if campaign.failed else 0


if __name__ == "__main__":
    sys.exit(main())
