"""``python -m benchmarks.liveness``: what clients notice of nodes that die, and of a rolling
restart."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import orjson
import typer

from benchmarks.kills import Kill, measure_kills
from benchmarks.rolling import Rolling, measure_rolling

__all__ = ["kill_lines", "rolling_lines"]


def main(
    kills: Annotated[int, typer.Option(min=0, help="How many nodes are killed.")] = 20,
    rolling: Annotated[bool, typer.Option(help="Restart all nodes in turn under load.")] = True,
    json: Annotated[Path | None, typer.Option(help="Write all samples to this file.")] = None,
) -> None:
    """Measure three nodes with 64 partitions on this machine."""
    document: dict[str, Any] = {}
    if kills:
        killed = measure_kills(kills, _say)
        document["kills"] = [asdict(kill) for kill in killed]
        print("\n".join(kill_lines(killed)))
    if rolling:
        restarted = measure_rolling(_say)
        document["rolling"] = asdict(restarted)
        print("\n".join(rolling_lines(restarted)))
    if json is not None:
        json.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2))


def kill_lines(kills: Sequence[Kill]) -> list[str]:
    """Medians and worst cases, in words."""
    of_led = Counter(count for kill in kills for count in kill.elections_of_led)
    of_others = Counter(count for kill in kills for count in kill.elections_of_others)
    in_one = of_led[1] / max(1, of_led.total())
    rows: tuple[tuple[str, Callable[[Kill], float | None]], ...] = (
        ("next write acknowledged", lambda kill: kill.failover.first),
        ("first to what the dead led", lambda kill: kill.failover.first_orphaned),
        ("all that the dead led", lambda kill: kill.failover.all_orphaned),
    )
    return [
        f"{len(kills)} x kill -9 of a node, ms until:",
        *(f"  {title:28}{_spread([of(kill) for kill in kills])}" for title, of in rows),
        f"elections of a partition that the dead node led: one in {in_one:.1%}, at most "
        f"{max(of_led, default=0)}; of any other at most {max(of_others, default=0)}",
    ]


def _spread(times: Sequence[float | None]) -> str:
    known = [time * 1000 for time in times if time is not None]
    never = f", {len(times) - len(known)} never" if len(known) < len(times) else ""
    if not known:
        return "never"
    return f"median {median(known):,.0f}, worst {max(known):,.0f}{never}"


def rolling_lines(rolling: Rolling) -> list[str]:
    return [
        f"rolling restart of three nodes under {rolling.load_per_second:,.0f} writes/s, half of "
        f"{rolling.peak_per_second:,.0f}:",
        f"  {rolling.acknowledged:,} acknowledged, {rolling.retried} asked twice, "
        f"{rolling.lost} lost",
        f"  longest time without an acknowledged write {rolling.longest_gap * 1000:,.0f} ms "
        f"({rolling.gap_at}); slowest request {rolling.slowest * 1000:,.0f} ms",
        *(f"  {why}: {count}" for why, count in rolling.reasons.items()),
    ]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(main)
    app()
