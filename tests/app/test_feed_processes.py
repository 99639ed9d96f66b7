"""The change feed of real nodes: a reader whose node is killed goes on at another one."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import websockets

from app.dev_cluster import LocalCluster

pytestmark = pytest.mark.process


class Reader:
    """Reads from one node after the other, always behind its last Resolved."""

    def __init__(self, urls: list[str]) -> None:
        self.urls = urls
        self.node = 0
        self.resolved: str | None = None
        self.changes: list[dict[str, Any]] = []
        self.connections = 0

    async def run(self) -> None:
        while True:
            unsure: list[dict[str, Any]] = []
            since = "" if self.resolved is None else f"&since={self.resolved}"
            url = self.urls[self.node % len(self.urls)].replace("http", "ws", 1)
            try:
                async with websockets.connect(f"{url}/v1/events?types=Change{since}") as socket:
                    self.connections += 1
                    async for text in socket:
                        message = json.loads(text)
                        if message["type"] == "Resolved":
                            self.changes += unsure
                            unsure, self.resolved = [], message["timestamp"]
                        else:
                            unsure.append(message)
            except (OSError, websockets.WebSocketException):
                pass
            self.node += 1
            await asyncio.sleep(0.05)


async def _until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def test_a_reader_goes_on_at_another_node_and_misses_nothing() -> None:
    with LocalCluster(3, options={"history_retention_ms": 5_000}) as cluster:
        cluster.wait_ready()
        reader = Reader(cluster.urls)
        reading = asyncio.create_task(reader.run())
        async with httpx.AsyncClient(timeout=10) as http:
            await _until(lambda: reader.resolved is not None)
            begin = reader.resolved
            written: list[str] = []

            async def write(url: str, number: int) -> None:
                operation = {"op": "create_node", "labels": ["N"], "properties": {"n": number}}
                answer = await http.post(f"{url}/v1/operations?forward=true", json=operation)
                if answer.status_code == httpx.codes.CREATED:
                    written.append(answer.json()["cid"])

            for number in range(200):
                await write(cluster.urls[1], number)
            await _until(lambda: len(reader.changes) >= 100)
            await asyncio.to_thread(cluster.kill, "node1")
            for number in range(200, 400):
                await write(cluster.urls[1 + number % 2], number)
            await _until(lambda: {one["cid"] for one in reader.changes} >= set(written))
            assert reader.connections >= 2
            seen = [one["cid"] for one in reader.changes]
            assert len(set(seen)) == len(seen)
            stamps = [one["timestamp"] for one in reader.changes]
            assert stamps == sorted(stamps)
            reading.cancel()

            await asyncio.sleep(7)
            url = cluster.urls[1].replace("http", "ws", 1)
            async with websockets.connect(f"{url}/v1/events?types=Change&since={begin}") as late:
                with pytest.raises(websockets.ConnectionClosed) as closed:
                    await late.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 4410
            gone = await http.get(f"{cluster.urls[1]}/v1/nodes/{written[0]}?as_of={begin}")
            assert gone.status_code == httpx.codes.GONE
            assert gone.json()["code"] == "history_collected"
            kept = await http.get(f"{cluster.urls[2]}/v1/nodes/{written[0]}")
            assert kept.status_code == httpx.codes.OK
            assert kept.headers["kotoba-consistency"] == "strong"
