"""How long writes stand still when the leader is killed."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import httpx

from benchmarks.systems import System

__all__ = ["Failover", "measure_failover"]

_CONNECTIONS: Final = 48
"""More than the partitions that one node leads, for each may hold one client back."""
_ATTEMPT_S: Final = 0.25
"""How long a client waits before it asks again; a hanging request costs at most this."""
_BEFORE_S: Final = 1.0
_AFTER_S: Final = 20.0


@dataclass(slots=True)
class Failover:
    """Seconds from SIGKILL of the leader. ``None``: not within the time that we waited."""

    first: float | None = None
    """The first acknowledged write that was sent after the kill."""
    first_orphaned: float | None = None
    """The first such write to what the dead node led. One leader for all: the same as ``first``."""
    all_orphaned: float | None = None
    """When all that the dead node led had acknowledged such a write."""


@dataclass(slots=True)
class _Clients:
    system: System
    urls: list[str]
    acknowledged: list[tuple[float, float, int]] = field(default_factory=list)
    """(sent, acknowledged, partition) of each write."""
    stopping: bool = False

    async def run(self, number: int) -> None:
        prefix = secrets.token_hex(4)
        # A client of its own for each: httpx looks at all connections of one for each request.
        async with httpx.AsyncClient(timeout=_ATTEMPT_S, trust_env=False, verify=False) as http:
            count = 0
            while not self.stopping:
                await self._write(http, prefix, count, number + count)
                count += 1

    async def _write(self, http: httpx.AsyncClient, prefix: str, count: int, turn: int) -> None:
        """One write, tried at one node after the other until it is acknowledged."""
        path, body = self.system.write_request(f"{prefix}{count:08x}")
        headers = {"Idempotency-Key": f"{prefix}-{count}"}
        sent = time.monotonic()
        while not self.stopping:
            url = self.urls[turn % len(self.urls)]
            with contextlib.suppress(httpx.HTTPError):
                answer = await http.post(url + path, json=body, headers=headers)
                if answer.is_success:
                    partition = int(answer.json().get("partition", 0))
                    self.acknowledged.append((sent, time.monotonic(), partition))
                    return
            await asyncio.sleep(0.005)
            turn += 1


def measure_failover(system: System, while_dead: Callable[[], None] | None = None) -> Failover:
    """Kill the leader under writes to the other nodes, see when they go on, and revive it.

    ``while_dead`` is called when all is over but the revival.
    """
    victim = system.leader()
    result = asyncio.run(_measure(system, victim))
    if while_dead is not None:
        while_dead()
    system.revive(victim)
    return result


async def _measure(system: System, victim: str) -> Failover:
    survivors = [url for url in system.all_urls() if url != system.url_of(victim)]
    clients = _Clients(system, survivors)
    tasks = [asyncio.create_task(clients.run(number)) for number in range(_CONNECTIONS)]
    await asyncio.sleep(_BEFORE_S)
    orphans = set(system.orphans_of(victim, survivors[0]) or [0])
    killed_at = time.monotonic()
    system.kill(victim)
    while time.monotonic() < killed_at + _AFTER_S:
        await asyncio.sleep(0.1)
        if _evaluate(clients.acknowledged, killed_at, orphans).all_orphaned is not None:
            break
    clients.stopping = True
    await asyncio.gather(*tasks)
    return _evaluate(clients.acknowledged, killed_at, orphans)


def _evaluate(
    acknowledged: list[tuple[float, float, int]], killed_at: float, orphans: set[int]
) -> Failover:
    firsts: dict[int, float] = {}
    for sent, done, partition in acknowledged:
        if sent >= killed_at:
            firsts[partition] = min(firsts.get(partition, done), done)
    orphaned = [firsts[partition] for partition in orphans if partition in firsts]
    return Failover(
        first=min(firsts.values()) - killed_at if firsts else None,
        first_orphaned=min(orphaned) - killed_at if orphaned else None,
        all_orphaned=max(orphaned) - killed_at if len(orphaned) == len(orphans) else None,
    )
