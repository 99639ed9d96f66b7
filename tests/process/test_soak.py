"""Real processes, killed and stopped at random, and the histories that their clients recorded.

``KOTOBA_SOAK_SECONDS`` says for how long; ``make soak`` gives a minute.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from app.dev_cluster import LocalCluster
from tests.process.recorded import Recorder

pytestmark = pytest.mark.process

SECONDS: Final = float(os.environ.get("KOTOBA_SOAK_SECONDS", "12"))
START_S: Final = 40.0


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    with LocalCluster(3, folder=tmp_path) as three:
        three.wait_ready(START_S)
        yield three


class Trouble:
    """Kills, stops and restarts random nodes, sometimes two at once."""

    def __init__(self, cluster: LocalCluster, seed: int) -> None:
        self.cluster = cluster
        self.random = random.Random(seed)
        self.done: list[str] = []

    async def run(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        busy: set[str] = set()
        under_way: set[asyncio.Task[None]] = set()
        while loop.time() < until:
            await asyncio.sleep(self.random.expovariate(1 / 1.5))
            free = [name for name in self.cluster.nodes if name not in busy]
            if not free:
                continue
            name = self.random.choice(free)
            fault = self.random.choice([self._kill, self._kill, self._pause, self._pause])
            busy.add(name)
            task = asyncio.create_task(self._through(fault, name, busy))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        await asyncio.gather(*under_way)

    async def _through(
        self, fault: Callable[[str], Awaitable[None]], name: str, busy: set[str]
    ) -> None:
        try:
            await fault(name)
        finally:
            busy.discard(name)

    async def _kill(self, name: str) -> None:
        self.done.append(f"kill -9 {name}")
        await asyncio.to_thread(self.cluster.kill, name)
        await asyncio.sleep(self.random.uniform(0, 3))
        self.cluster.start(name)
        await asyncio.sleep(1)

    async def _pause(self, name: str) -> None:
        self.done.append(f"SIGSTOP {name}")
        self.cluster.pause(name)
        await asyncio.sleep(self.random.choice([0.2, 1.0, 2.0, 4.0]))
        self.cluster.resume(name)


@pytest.mark.timeout(SECONDS + 180)
async def test_histories_are_linearizable_while_nodes_are_killed_and_stopped(
    cluster: LocalCluster,
) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    recorder, trouble = Recorder(cluster.urls, seed), Trouble(cluster, seed)
    clients = asyncio.create_task(recorder.run(8))
    await trouble.run(SECONDS)
    recorder.stopping = True
    await clients
    await asyncio.to_thread(cluster.wait_ready, START_S)
    for url in cluster.urls:
        await recorder.read_all(url)
    recorder.verdict()
    assert recorder.acknowledged > 2 * SECONDS, f"seed {seed}: hardly a write went through"
    print(f"seed {seed}: {len(recorder.events)} operations through {', '.join(trouble.done)}")
