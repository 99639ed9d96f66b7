"""kill -9 of one node after the other: when writes go on, and how many elections it takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import httpx

from benchmarks.failover import Failover, measure_failover
from benchmarks.systems import Kotoba

__all__ = ["Kill", "measure_kills"]

_TIMEOUT_S: Final = 30.0
_HOME_S: Final = 30.0
"""In which leaderships have to be back at the first choice of their partitions."""


@dataclass(slots=True)
class Kill:
    """One kill. An election is a term that a partition went up."""

    failover: Failover
    elections_of_led: list[int]
    """Of each partition that the dead node led."""
    elections_of_others: list[int]


def measure_kills(count: int, say: Callable[[str], None]) -> list[Kill]:
    """Kill the leader of the meta group ``count`` times, each time with everybody at home."""
    system = Kotoba()
    kills: list[Kill] = []
    try:
        system.start()
        for number in range(1, count + 1):
            say(f"kill {number} of {count}")
            _wait_for_home(system.all_urls())
            kills.append(_measure(system))
    finally:
        system.close()
    return kills


def _measure(system: Kotoba) -> Kill:
    victim = system.leader()
    witness = next(url for url in system.all_urls() if url != system.url_of(victim))
    led = set(system.orphans_of(victim, witness) or [])
    before, after = _terms(witness), dict[int, int]()
    failover = measure_failover(system, while_dead=lambda: after.update(_terms(witness)))
    grown = {partition: after[partition] - term for partition, term in before.items()}
    return Kill(
        failover,
        [count for partition, count in sorted(grown.items()) if partition in led],
        [count for partition, count in sorted(grown.items()) if partition not in led],
    )


def _terms(url: str) -> dict[int, int]:
    answer = httpx.get(f"{url}/v1/partitions", timeout=_TIMEOUT_S, trust_env=False)
    return {one["partition"]: one["term"] for one in answer.json()["partitions"]}


def _wait_for_home(urls: Sequence[str]) -> None:
    """Until every partition is led by the first of its preferred nodes."""
    deadline = time.monotonic() + _HOME_S
    while time.monotonic() < deadline:
        answer = httpx.get(f"{urls[0]}/v1/partitions", timeout=_TIMEOUT_S, trust_env=False)
        if all(one["leader"] == one["preferred"][0] for one in answer.json()["partitions"]):
            return
        time.sleep(0.1)
