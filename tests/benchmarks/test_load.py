from __future__ import annotations

import asyncio
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.client import make_requests
from benchmarks.load import BATCH, Measured, parse_generator, run_load, split

OUTPUT = """Running 5s test @ http://127.0.0.1:2379
  1 threads and 16 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
  100 requests in 5.00s, 20.36KB read
Requests/sec:     20.00
@total 100 5000000 3 1
@latency 1000 50
@latency 2000 49
@latency 9000 1
"""


def test_the_total_and_the_histogram_are_read_and_the_rest_is_not() -> None:
    measured = parse_generator(OUTPUT)
    assert measured.requests == 100
    assert measured.per_second == pytest.approx(20.0)
    assert (measured.refused, measured.broken) == (3, 1)
    assert measured.latencies == Counter({1000: 50, 2000: 49, 9000: 1})


def test_output_without_a_total_is_an_error() -> None:
    with pytest.raises(ValueError, match="no output"):
        parse_generator("wrk: unable to connect")


def test_percentiles_come_from_the_histogram() -> None:
    measured = parse_generator(OUTPUT)
    assert measured.percentile_ms(50) == 1.0
    assert measured.percentile_ms(99) == 2.0
    assert measured.percentile_ms(100) == 9.0
    assert Measured().percentile_ms(99) == 0.0


def test_several_generators_add_up() -> None:
    total = Measured()
    total += parse_generator(OUTPUT)
    total += parse_generator(OUTPUT)
    assert total.requests == 200
    assert total.per_second == pytest.approx(40.0)
    assert total.latencies[1000] == 100


@pytest.mark.parametrize(
    ("connections", "expected"), [(1, [1, 0, 0]), (16, [6, 5, 5]), (64, [22, 21, 21])]
)
def test_connections_are_spread_over_the_nodes(connections: int, expected: list[int]) -> None:
    assert split(connections, 3) == expected


def test_requests_of_the_python_client_are_unique_and_whole() -> None:
    make = make_requests("kotoba-batch", "0000abcd", [], "h:1")
    first, second = make(), make()
    head, _, body = first.partition(b"\r\n\r\n")
    assert first != second
    assert body.count(b"create_node") == BATCH
    assert f"Content-Length: {len(body)}".encode() in head
    read = make_requests("kotoba-read", "01", ["bafy1"], "h:1")()
    assert read.startswith(b"GET /v1/nodes/bafy1 HTTP/1.1\r\n")


@pytest.mark.parametrize("generator", ["wrk", "python"])
async def test_a_generator_drives_a_server(
    generator: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if generator == "wrk" and not shutil.which("wrk"):
        pytest.skip("wrk is not installed")
    if generator == "python":
        monkeypatch.setattr("benchmarks.load.shutil.which", lambda _: None)
    monkeypatch.chdir(Path(__file__).parents[2])
    names = tmp_path / "names"
    names.write_text("a\nb\n")
    asked: list[bytes] = []
    server = await asyncio.start_server(lambda r, w: _answer(r, w, asked), "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        measured = await asyncio.to_thread(
            run_load,
            "kotoba-read",
            [f"http://127.0.0.1:{port}"],
            connections=2,
            seconds=1,
            names=names,
        )
    assert measured.requests > 10
    # wrk adds what it would have sent while it waited (coordinated omission).
    assert measured.latencies.total() >= measured.requests
    assert measured.refused > 0
    assert measured.broken == 0
    assert set(asked) == {b"GET /v1/nodes/a HTTP/1.1", b"GET /v1/nodes/b HTTP/1.1"}


async def _answer(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: list[bytes]
) -> None:
    choice = random.Random(1).choice
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            asked.append(head.split(b"\r\n")[0])
            status = choice([b"200 OK", b"503 Service Unavailable"])
            writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 2\r\n\r\n{}")
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()
