"""A rolling restart under load: every node is stopped by SIGTERM and started again, in turn.

A client whose request fails asks once more, at another node and under the same Idempotency-Key. A
request is lost when that fails as well. The gap is the longest time without any acknowledged write.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final
from urllib.parse import urlsplit

import orjson

from app.dev_cluster import LocalCluster

__all__ = ["Rolling", "measure_rolling"]

_READY_S: Final = 30.0
_CLIENTS: Final = 16
_PEAK_S: Final = 3.0
_ATTEMPT_S: Final = 5.0


@dataclass(slots=True)
class Rolling:
    """What the clients saw. Times in seconds."""

    peak_per_second: float = 0.0
    load_per_second: float = 0.0
    acknowledged: int = 0
    retried: int = 0
    lost: int = 0
    longest_gap: float = 0.0
    slowest: float = 0.0
    """The slowest request, its retry included."""
    gap_at: str = ""
    """What was going on at the longest gap."""
    reasons: dict[str, int] = field(default_factory=dict)
    """Why requests were retried, and why they were lost."""


class _Client:
    """Creates vertices, one after the other, over a connection that it keeps."""

    def __init__(self, clients: _Clients, number: int) -> None:
        self._clients = clients
        self._turn = number
        self._prefix = secrets.token_hex(4)
        self._stream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def run(self) -> None:
        clients = self._clients
        count = 0
        while not clients.stopping:
            await clients.turn()
            began = time.monotonic()
            key = f"{self._prefix}-{count}"
            count += 1
            failure = await self._try(key)
            if failure:
                clients.retried[failure] += 1
                self._hang_up()
                self._turn += 1
                failure = await self._try(key)
            now = time.monotonic()
            if failure:
                clients.lost[failure] += 1
                self._hang_up()
            else:
                clients.acknowledged.append(now)
            clients.slowest = max(clients.slowest, now - began)
        self._hang_up()

    async def _try(self, key: str) -> str:
        """Empty when the write was acknowledged, else why not."""
        try:
            async with asyncio.timeout(_ATTEMPT_S):
                status, body = await self._post(key)
        except TimeoutError:
            return "no answer in time"
        except (OSError, asyncio.IncompleteReadError) as error:
            return type(error).__name__
        return "" if status in (200, 201) else f"{status} {_reason(body)}"

    async def _post(self, key: str) -> tuple[int, bytes]:
        urls = self._clients.urls
        place = urlsplit(urls[self._turn % len(urls)])
        if self._stream is not None and self._stream[0].at_eof():
            self._hang_up()  # it was idle, and the server closed it
        if self._stream is None:
            self._stream = await asyncio.open_connection(place.hostname, place.port)
        reader, writer = self._stream
        properties = {"name": key, "data": "kotobadb" * 16}
        body = orjson.dumps({"op": "create_node", "labels": ["Bench"], "properties": properties})
        writer.write(
            f"POST /v1/operations?forward=true HTTP/1.1\r\nHost: {place.netloc}\r\n"
            f"Content-Type: application/json\r\nIdempotency-Key: {key}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
        answer = await reader.readexactly(length)
        if b"connection: close" in head:
            self._hang_up()
        return int(head.split(b" ", 2)[1]), answer

    def _hang_up(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream[1].close()


def _reason(body: bytes) -> str:
    """What a problem document says; a server that is not ours may say something else."""
    try:
        return str(orjson.loads(body)["detail"])
    except (orjson.JSONDecodeError, KeyError):
        return repr(body[:100])


class _Clients:
    """All clients; with a ``rate`` they share so many requests a second, else they do not wait."""

    def __init__(self, urls: list[str], rate: float = 0.0) -> None:
        self.urls = urls
        self.stopping = False
        self.acknowledged: list[float] = []
        self.retried: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.slowest = 0.0
        self._interval = 1 / rate if rate else 0.0
        self._next = time.monotonic()

    async def turn(self) -> None:
        if self._interval:
            self._next = max(self._next + self._interval, time.monotonic() - 1.0)
            await asyncio.sleep(max(0.0, self._next - time.monotonic()))

    @contextlib.asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(_Client(self, n).run()) for n in range(_CLIENTS)]
        try:
            yield
        finally:
            self.stopping = True
            await asyncio.gather(*tasks)
            await asyncio.sleep(0)  # in which the connections close


def measure_rolling(say: Callable[[str], None], *, settle_s: float = 3.0) -> Rolling:
    """Restart all nodes of a new cluster under half of the load that it takes at most, each
    ``settle_s`` after the one before is back: by then leaderships go home to it."""
    with LocalCluster(3) as cluster:
        cluster.wait_ready(_READY_S)
        return asyncio.run(_measure(cluster, say, settle_s))


async def _measure(cluster: LocalCluster, say: Callable[[str], None], settle_s: float) -> Rolling:
    await asyncio.sleep(settle_s)
    say("finding the peak")
    peak = _Clients(cluster.urls)
    async with peak.at_work():
        await asyncio.sleep(_PEAK_S)
    result = Rolling(peak_per_second=len(peak.acknowledged) / _PEAK_S)
    clients = _Clients(cluster.urls, rate=result.peak_per_second / 2)
    marks: list[tuple[float, str]] = []

    def mark(text: str) -> None:
        say(text)
        marks.append((time.monotonic(), text))

    async with clients.at_work():
        began = time.monotonic()
        mark("before")
        await asyncio.sleep(settle_s)
        for node in cluster.nodes:
            mark(f"{node} stops")
            await asyncio.to_thread(cluster.stop, node)
            mark(f"{node} starts")
            cluster.start(node)
            await asyncio.to_thread(cluster.wait_ready, _READY_S, node)
            mark(f"{node} is back")
            await asyncio.sleep(settle_s)
    took = time.monotonic() - began
    result.load_per_second = len(clients.acknowledged) / took
    result.acknowledged = len(clients.acknowledged)
    result.retried, result.lost = clients.retried.total(), clients.lost.total()
    result.reasons = {f"retried: {why}": count for why, count in clients.retried.most_common()}
    result.reasons |= {f"lost: {why}": count for why, count in clients.lost.most_common()}
    result.slowest = clients.slowest
    gaps = [(after - before, before) for before, after in pairwise(clients.acknowledged)]
    result.longest_gap, at = max(gaps)
    since = [one for one in marks if one[0] <= at][-1]
    result.gap_at = f"{at - since[0]:.2f} s after: {since[1]}"
    return result
