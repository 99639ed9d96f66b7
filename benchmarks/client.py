"""A load generator in Python, for machines without wrk; it sends and prints what load.lua does.

``python -m benchmarks.client URL CONNECTIONS SECONDS MODE SEED [NAMES]``
"""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from benchmarks.load import BATCH

_FILLER: Final = "kotobadb" * 16

Request = Callable[[], bytes]


def make_requests(mode: str, seed: str, names: list[str], host: str) -> Request:
    """The function that makes the next request of a mode."""
    unique = _unique(seed)
    choice = random.Random(int(seed, 16)).choice

    def create() -> str:
        name = f'"name":"{next(unique)}","data":"{_FILLER}"'
        return '{"op":"create_node","labels":["Bench"],"properties":{' + name + "}}"

    def put() -> str:
        return f'{{"key":"{next(unique)}","value":"{_FILLER}{_FILLER[:40]}"}}'

    def puts() -> str:
        return ",".join(f'{{"requestPut":{put()}}}' for _ in range(BATCH))

    def creates() -> str:
        return ",".join(create() for _ in range(BATCH))

    def post(path: str, body: Callable[[], str]) -> Request:
        return lambda: _http("POST", path, host, body().encode())

    modes: dict[str, Request] = {
        "kotoba-write": post("/v1/operations?forward=true", create),
        "kotoba-batch": post("/v1/operations/batch", lambda: f'{{"operations":[{creates()}]}}'),
        "kotoba-read": lambda: _http("GET", f"/v1/nodes/{choice(names)}", host, b""),
        "etcd-write": post("/v3/kv/put", put),
        "etcd-batch": post("/v3/kv/txn", lambda: f'{{"success":[{puts()}]}}'),
        "etcd-read": post("/v3/kv/range", lambda: f'{{"key":"{choice(names)}"}}'),
    }
    return modes[mode]


def _unique(seed: str) -> Iterator[str]:
    return (f"{seed}{number:08x}" for number in itertools.count(1))


def _http(method: str, path: str, host: str, body: bytes) -> bytes:
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class _Load:
    """Connections that each send the next request when the last one is answered."""

    def __init__(self, host: str, port: int, make: Request) -> None:
        self.host, self.port, self.make = host, port, make
        self.latencies: Counter[int] = Counter()
        self.refused = 0
        self.broken = 0
        self.ends = 0.0

    async def run(self, connections: int, seconds: float) -> float:
        """How long it took in fact."""
        began = time.perf_counter()
        self.ends = began + seconds
        await asyncio.gather(*(self._connection() for _ in range(connections)))
        return time.perf_counter() - began

    async def _connection(self) -> None:
        while time.perf_counter() < self.ends:
            try:
                reader, writer = await asyncio.open_connection(self.host, self.port)
            except OSError:
                self.broken += 1
                await asyncio.sleep(0.01)
                continue
            try:
                await self._requests(reader, writer)
            except (OSError, asyncio.IncompleteReadError, ValueError):
                self.broken += 1
            finally:
                writer.close()

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (sent := time.perf_counter()) < self.ends:
            writer.write(self.make())
            status = await _read_answer(reader)
            self.latencies[round((time.perf_counter() - sent) * 1e6)] += 1
            self.refused += status >= 400


async def _read_answer(reader: asyncio.StreamReader) -> int:
    """Read one answer to its end; its status."""
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    length = next((line[15:] for line in lines if line.startswith(b"content-length:")), None)
    if length is None:
        raise ValueError("an answer without a length")
    await reader.readexactly(int(length))
    return int(lines[0].split(b" ", 2)[1])


def main(arguments: list[str]) -> None:
    url, connections, seconds, mode, seed, *files = arguments
    place = urlsplit(url)
    names = Path(files[0]).read_text().split() if files else []
    load = _Load(
        place.hostname or "127.0.0.1",
        place.port or 80,
        make_requests(mode, seed, names, place.netloc),
    )
    took = asyncio.run(load.run(int(connections), float(seconds)))
    total = load.latencies.total()
    print(f"@total {total} {round(took * 1e6)} {load.refused} {load.broken}")
    for latency, times in sorted(load.latencies.items()):
        print(f"@latency {latency} {times}")


if __name__ == "__main__":
    main(sys.argv[1:])
