"""Load from processes of their own: wrk where it is installed, else a client in Python."""

from __future__ import annotations

import itertools
import secrets
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

__all__ = ["BATCH", "Measured", "generator_name", "parse_generator", "run_load", "split"]

BATCH: Final = 32
"""Operations in one request of the batch modes; load.lua and client.py say the same."""
_SCRIPT: Final = Path(__file__).with_name("load.lua")
_GRACE_S: Final = 30.0


@dataclass(slots=True)
class Measured:
    """What one or several generators saw. Latencies in microseconds, as a histogram."""

    requests: int = 0
    per_second: float = 0.0
    refused: int = 0
    """Answers with a status of 400 or more."""
    broken: int = 0
    """Requests without an answer."""
    latencies: Counter[int] = field(default_factory=Counter)

    def __iadd__(self, other: Measured) -> Measured:
        self.requests += other.requests
        self.per_second += other.per_second
        self.refused += other.refused
        self.broken += other.broken
        self.latencies.update(other.latencies)
        return self

    def percentile_ms(self, percent: float) -> float:
        """The latency that this share of all requests did not exceed, in milliseconds."""
        wanted = percent / 100 * self.latencies.total()
        for latency, seen in zip(
            sorted(self.latencies),
            itertools.accumulate(self.latencies[key] for key in sorted(self.latencies)),
            strict=True,
        ):
            if seen >= wanted:
                return latency / 1000
        return 0.0


def generator_name() -> str:
    """What makes the load on this machine."""
    return "wrk" if shutil.which("wrk") else "a Python client"


def run_load(
    mode: str,
    urls: Sequence[str],
    *,
    connections: int,
    seconds: float,
    names: Path | None = None,
) -> Measured:
    """Drive ``mode`` with ``connections`` connections spread over ``urls``; what was measured."""
    running = [
        subprocess.Popen(
            _command(mode, url, share, seconds, names), stdout=subprocess.PIPE, text=True
        )
        for url, share in zip(urls, split(connections, len(urls)), strict=True)
        if share
    ]
    total = Measured()
    try:
        for process in running:
            output, _ = process.communicate(timeout=seconds + _GRACE_S)
            if process.returncode != 0:
                raise RuntimeError(f"the load generator failed: {output[-500:]}")
            total += parse_generator(output)
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
                process.wait()
    return total


def split(connections: int, places: int) -> list[int]:
    """``connections`` spread as evenly as whole numbers allow, the larger shares first."""
    return [connections // places + (place < connections % places) for place in range(places)]


def _command(
    mode: str, url: str, connections: int, seconds: float, names: Path | None
) -> list[str]:
    arguments = [mode, secrets.token_hex(4), *([str(names)] if names else [])]
    if shutil.which("wrk"):
        numbers = ["-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "10s"]
        return ["wrk", *numbers, "-s", str(_SCRIPT), url, "--", *arguments]
    numbers = [url, str(connections), f"{seconds:g}"]
    return [sys.executable, "-m", "benchmarks.client", *numbers, *arguments]


def parse_generator(output: str) -> Measured:
    """What a generator wrote: one ``@total`` line, and one ``@latency`` line a value.

    ``@total requests microseconds refused broken``; ``@latency microseconds times``. Whatever else
    wrk prints is for people.
    """
    measured = Measured()
    found = False
    for line in output.splitlines():
        match line.split():
            case ["@total", requests, duration, refused, broken]:
                found = True
                measured.requests = int(requests)
                measured.per_second = int(requests) / max(int(duration) / 1e6, 1e-9)
                measured.refused = int(refused)
                measured.broken = int(broken)
            case ["@latency", latency, times]:
                measured.latencies[int(latency)] += int(times)
    if not found:
        raise ValueError(f"this is no output of a load generator: {output[:200]!r}")
    return measured
