"""Three real nodes lose their leader by SIGKILL while clients write, and get it back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.demo.api import Api
from app.demo.failover import Writers, measure_outage, missing_cids, partitions_led
from app.dev_cluster import LocalCluster

pytestmark = pytest.mark.process

START_S = 30.0
BACK_S = 10.0
"""Far above what it takes (about a second), for machines that do much else beside this test."""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    with LocalCluster(3, folder=tmp_path) as three:
        three.wait_ready(START_S)
        yield three


async def test_no_acknowledged_write_is_lost_with_the_leader(cluster: LocalCluster) -> None:
    async with Api(cluster.urls) as api:
        status = await api.get(cluster.urls[0], "/v1/status")
        victim = status["leader"]
        survivors = [node for node in cluster.nodes.values() if node.node_id != victim]
        writers = Writers(cluster.urls)
        writers.start()
        await asyncio.sleep(1.0)
        orphaned = await partitions_led(api, survivors[0].url, victim)
        killed_at = time.monotonic()
        cluster.kill(victim)
        await _wait_until_all_are_back(writers, killed_at, orphaned)
        await writers.stop()

        written = [item.cid for item in writers.acknowledged]
        assert len(set(written)) == len(written), "two writes have one CID"
        for node in survivors:
            assert await missing_cids(api, written, url=node.url) == []

        cluster.start(victim)
        await asyncio.to_thread(cluster.wait_ready, START_S, victim)
        assert await missing_cids(api, written, url=cluster.nodes[victim].url) == []
        await _wait_until_caught_up(api, written, cluster.nodes[victim].url)


async def _wait_until_all_are_back(writers: Writers, killed_at: float, orphaned: list[int]) -> None:
    """Every partition that the dead node led acknowledges a new write."""
    while time.monotonic() < killed_at + BACK_S:
        if measure_outage(writers.acknowledged, killed_at, orphaned).all_orphaned is not None:
            return
        await asyncio.sleep(0.05)
    pytest.fail(f"not all of partitions {orphaned} take writes {BACK_S:.0f} s after the kill")


async def _wait_until_caught_up(api: Api, written: list[str], url: str) -> None:
    """The node's own replicas, without asking anybody, have everything."""
    deadline = time.monotonic() + BACK_S
    while missing := await missing_cids(api, written, url=url, consistency="eventual"):
        assert time.monotonic() < deadline, f"{len(missing)} writes never arrived"
        await asyncio.sleep(0.05)
