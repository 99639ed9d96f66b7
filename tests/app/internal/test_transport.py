"""Two or three transports on loopback, with real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx
import msgspec
import pytest

from app.internal.framing import FRAME_BYTES_MAX, frame_header
from app.internal.handshake import (
    EPOCH_HEADER,
    NODE_HEADER,
    PROTOCOL,
    SECRET_HEADER,
    Hello,
    secret_digest,
)
from app.internal.links import QUEUE_BYTES_MAX, RESERVE_BYTES, SMALL_BYTES, Outbox
from app.internal.server import ASGIApp, Receive, Scope, Send
from app.internal.transport import HttpTransport
from cluster_core.config import RaftConfig
from cluster_core.errors import (
    CannotListen,
    InternalError,
    NotFound,
    PreconditionFailed,
    Refused,
    Unreachable,
)

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])
on_both_loops = pytest.mark.asyncio(loop_factories=["uvloop", "asyncio"])

QUICK = RaftConfig(tick_ms=20, election_ticks=10)
"""Silence is noticed after 200 ms."""

PATIENT = RaftConfig(election_ticks=50)
"""Silence is noticed after 5 s: what is noticed sooner was noticed by other means."""

AT_ONCE_S = 0.2


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


async def until(condition: Callable[[], bool], *, within: float = 5.0) -> float:
    """Wait for ``condition``; how long it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < within, "it did not happen in time"
        await asyncio.sleep(0.002)
    return time.monotonic() - began


class Node:
    """A transport and the receiver that notes what it is told."""

    def __init__(
        self,
        node_id: str,
        address: str | None = None,
        *,
        secret: str = "s3cret",
        config: RaftConfig = QUICK,
    ) -> None:
        self.node_id = node_id
        self.address = address or free_address()
        self.transport = HttpTransport(
            secret=secret, config=config, random=random.Random(f"seed of {node_id}")
        )
        self.frames: list[tuple[str, bytes]] = []
        self.batches: list[int] = []
        self.events: list[str] = []
        self.answer: Callable[[str, bytes], Awaitable[bytes]] | None = None

    def on_frames(self, peer: str, frames: list[bytes]) -> None:
        self.frames += [(peer, frame) for frame in frames]
        self.batches.append(len(frames))

    def on_peer_up(self, peer: str) -> None:
        self.events.append(f"{peer} up")

    def on_peer_down(self, peer: str) -> None:
        self.events.append(f"{peer} down")

    async def on_call(self, method: str, body: bytes) -> bytes:
        assert self.answer is not None
        return await self.answer(method, body)

    async def start(self, *peers: Node, cluster: str = "c1", store: str | None = None) -> None:
        await self.transport.listen(self.address, self)
        self.transport.identify(
            cluster_id=cluster, node_id=self.node_id, store_id=store or f"store of {self.node_id}"
        )
        self.transport.set_peers({peer.node_id: peer.address for peer in (self, *peers)})

    def is_up(self, peer: Node) -> bool:
        seen = [event for event in self.events if event.startswith(f"{peer.node_id} ")]
        return bool(seen) and seen[-1].endswith(" up")


@asynccontextmanager
async def closing(*nodes: Node) -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    try:
        yield
    finally:
        for node in nodes:
            began = time.monotonic()
            await node.transport.close()
            assert time.monotonic() - began < 2
        await asyncio.sleep(0)
        assert asyncio.all_tasks() <= before, "tasks are left"


async def exchange(a: Node, b: Node) -> None:
    """A frame each way, so both streams are known to stand at both ends."""
    a.frames.clear()
    b.frames.clear()
    a.transport.send(b.node_id, b"x")
    b.transport.send(a.node_id, b"y")
    await until(lambda: bool(a.frames and b.frames))


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[Node, Node]]:
    a, b = Node("a"), Node("b")
    async with closing(a, b):
        await a.start(b)
        await b.start(a)
        await until(lambda: a.is_up(b) and b.is_up(a))
        await exchange(a, b)
        for node in (a, b):
            node.frames.clear()
            node.batches.clear()
        yield a, b


@on_both_loops
async def test_frames_arrive_in_order_in_both_directions() -> None:
    async with pair() as (a, b):
        for number in range(1000):
            a.transport.send("b", b"to b %d" % number)
            b.transport.send("a", b"to a %d" % number)
        await until(lambda: len(a.frames) == len(b.frames) == 1000)
        assert b.frames == [("a", b"to b %d" % number) for number in range(1000)]
        assert a.frames == [("b", b"to a %d" % number) for number in range(1000)]
        assert a.events == ["b up"]
        assert b.events == ["a up"]


async def test_what_is_sent_in_one_turn_of_the_loop_arrives_as_one_batch() -> None:
    async with pair() as (a, b):
        for number in range(100):
            a.transport.send("b", b"%d" % number)
        await until(lambda: len(b.frames) == 100)
        assert b.batches == [100]


@on_both_loops
async def test_large_frames_arrive_whole_among_small_ones() -> None:
    async with pair() as (a, b):
        large = random.Random(1).randbytes(5 << 20)
        for frame in (b"before", large, b"after"):
            a.transport.send("b", frame)
        await until(lambda: len(b.frames) == 3)
        assert [frame for _, frame in b.frames] == [b"before", large, b"after"]


async def test_three_nodes_form_a_mesh() -> None:
    nodes = [Node("a"), Node("b"), Node("c")]
    async with closing(*nodes):
        for node in nodes:
            await node.start(*[other for other in nodes if other is not node])
        await until(lambda: all(x.is_up(y) for x in nodes for y in nodes if x is not y))
        nodes[0].transport.send("c", b"hello c")
        await until(lambda: nodes[2].frames == [("a", b"hello c")])
        assert nodes[1].frames == []


async def test_idle_streams_stay_up() -> None:
    async with pair() as (a, b):
        await asyncio.sleep(3 * QUICK.tick_ms * QUICK.election_ticks / 1000)
        assert a.events == ["b up"]
        assert b.events == ["a up"]


async def test_a_busy_process_does_not_take_its_peers_for_silent() -> None:
    async with pair() as (a, b):
        time.sleep(0.5)  # noqa: ASYNC251 (the loop stands still: that is the point)
        await asyncio.sleep(0.1)
        assert a.events == ["b up"]
        assert b.events == ["a up"]


@on_both_loops
async def test_the_end_of_a_peer_is_noticed_at_once_and_once_and_its_return_too() -> None:
    a, b = Node("a", config=PATIENT), Node("b", config=PATIENT)
    again = Node("b", b.address, config=PATIENT)
    async with closing(a, again):
        await a.start(b)
        await b.start(a)
        await until(lambda: a.is_up(b) and b.is_up(a))
        await exchange(a, b)
        stopping = asyncio.ensure_future(b.transport.close())
        assert await until(lambda: not a.is_up(b)) < AT_ONCE_S
        await stopping
        assert a.events == ["b up", "b down"]
        await again.start(a)
        await until(lambda: a.is_up(again) and again.is_up(a))
        a.transport.send("b", b"welcome back")
        await until(lambda: again.frames == [("a", b"welcome back")])
        assert a.events == ["b up", "b down", "b up"]


class Cuttable:
    """A TCP relay whose connections can be cut, or made to swallow everything."""

    def __init__(self, target: str) -> None:
        self.address = free_address()
        self._target = target
        self._writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None
        self.swallows = False

    async def __aenter__(self) -> Cuttable:
        host, port = self.address.split(":")
        self._server = await asyncio.start_server(self._serve, host, int(port))
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await asyncio.sleep(0.01)

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self._target.split(":")
        try:
            there, back = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.transport.abort()
            return
        self._writers += [writer, back]
        await asyncio.gather(self._copy(reader, back), self._copy(there, writer))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                if not self.swallows:
                    writer.write(data)
        writer.transport.abort()


@on_both_loops
async def test_a_cut_connection_is_noticed_by_both_ends_and_mended() -> None:
    a, b = Node("a", config=PATIENT), Node("b", config=PATIENT)
    async with closing(a, b), Cuttable(b.address) as relay:
        await a.start()
        await b.start(a)
        a.transport.set_peers({"b": relay.address})
        await until(lambda: a.is_up(b) and b.is_up(a))
        await exchange(a, b)
        relay.cut()
        assert await until(lambda: "b down" in a.events and "a down" in b.events) < AT_ONCE_S
        await until(lambda: a.is_up(b) and b.is_up(a))
        await exchange(a, b)
        assert a.events == ["b up", "b down", "b up"]
        assert b.events == ["a up", "a down", "a up"]


@on_both_loops
async def test_a_peer_that_is_silent_is_down_and_what_it_said_before_is_dropped() -> None:
    a, b = Node("a"), Node("b")
    async with closing(a, b), Cuttable(a.address) as to_a, Cuttable(b.address) as to_b:
        await a.start()
        await b.start()
        a.transport.set_peers({"b": to_b.address})
        b.transport.set_peers({"a": to_a.address})
        await until(lambda: a.is_up(b) and b.is_up(a))
        await exchange(a, b)
        to_a.swallows = to_b.swallows = True
        assert 0.1 < await until(lambda: "b down" in a.events and "a down" in b.events) < 1.0
        to_a.swallows = to_b.swallows = False
        await until(lambda: a.is_up(b) and b.is_up(a))
        await asyncio.sleep(0.5)
        assert a.is_up(b)
        assert b.is_up(a)


async def test_frames_for_a_peer_that_is_not_connected_are_dropped() -> None:
    a, b = Node("a"), Node("b")
    async with closing(a, b):
        await a.start(b)
        a.transport.send("b", b"lost")
        a.transport.send("nobody", b"lost")
        assert a.transport.dropped() == {"b": 1}
        await b.start(a)
        await until(lambda: a.is_up(b))
        a.transport.send("b", b"sent")
        await until(lambda: b.frames == [("a", b"sent")])


async def test_a_peer_that_cannot_answer_is_not_up_although_frames_reach_it() -> None:
    a, b = Node("a"), Node("b")
    async with closing(a, b), Cuttable(a.address) as to_a:
        await b.start()
        b.transport.set_peers({"a": free_address()})
        await a.start(b)
        while not b.frames:
            a.transport.send("b", b"heard")
            await asyncio.sleep(0.01)
        assert a.events == []
        b.transport.set_peers({"a": to_a.address})
        await until(lambda: a.is_up(b) and b.is_up(a))


async def test_a_full_queue_drops_the_newest_frames() -> None:
    outbox = Outbox(lambda: None)
    half = bytes(QUEUE_BYTES_MAX // 2)
    assert outbox.put(half)
    assert outbox.put(b"small")
    assert not outbox.put(half)
    assert outbox.dropped == 1
    chunk = await anext(outbox)
    assert chunk == frame_header(half) + half + frame_header(b"small") + b"small"
    assert outbox.put(half)


async def test_a_full_queue_has_some_room_for_what_is_small() -> None:
    outbox = Outbox(lambda: None)
    assert outbox.put(bytes(QUEUE_BYTES_MAX))
    assert not outbox.put(bytes(SMALL_BYTES + 1))
    heartbeats = 0
    while outbox.put(bytes(SMALL_BYTES)):
        heartbeats += 1
    assert heartbeats == RESERVE_BYTES // (SMALL_BYTES + 4)


async def test_a_removed_peer_is_down_and_its_streams_end() -> None:
    async with pair() as (a, b):
        a.transport.set_peers({})
        assert a.events == ["b up", "b down"]
        await until(lambda: not b.is_up(a))
        await asyncio.sleep(0.2)
        assert b.events == ["a up", "a down"]
        b.transport.send("a", b"from a node that was removed")
        assert a.frames == []


async def test_another_secret_is_refused_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    a, b = Node("a", secret="one"), Node("b", secret="other")
    async with closing(a, b):
        with caplog.at_level(logging.INFO, "kotoba.transport"):
            await a.start(b)
            await b.start(a)
            await asyncio.sleep(0.5)
        assert not a.events
        assert not b.events
        refusals = [m for m in caplog.messages if "has another cluster secret" in m]
        assert len(refusals) == 2, caplog.messages
        with pytest.raises(Refused, match="another cluster secret"):
            await a.transport.call(b.address, "forming", b"", timeout=1)


async def test_a_secret_may_be_any_text() -> None:
    a, b = Node("a", secret="пароль\n🔑"), Node("b", secret="пароль\n🔑")
    async with closing(a, b):
        await a.start(b)
        await b.start(a)
        await until(lambda: a.is_up(b) and b.is_up(a))


async def test_a_request_without_the_secret_gets_a_problem() -> None:
    a = Node("a")
    async with closing(a), httpx.AsyncClient(trust_env=False) as client:
        await a.start()
        response = await client.post(f"http://{a.address}/internal/v1/hello")
        assert response.status_code == 401
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["code"] == "unauthorized"


async def test_another_cluster_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    a, b = Node("a"), Node("b")
    async with closing(a, b):
        await a.start(b, cluster="c1")
        await b.start(a, cluster="c2")
        await asyncio.sleep(0.3)
        assert not a.events
        assert not b.events
        assert "a belongs to cluster c1, b to c2" in caplog.text


async def test_another_store_under_a_known_name_is_refused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    a, b = Node("a"), Node("b")
    wiped = Node("b", b.address)
    async with closing(a, wiped):
        await a.start(b)
        await b.start(a)
        await until(lambda: a.is_up(b) and b.is_up(a))
        await b.transport.close()
        await wiped.start(a, store="another store")
        await asyncio.sleep(0.3)
        assert "b had the store store of b before, not another store" in caplog.text


async def test_a_stranger_is_refused_until_it_is_a_peer() -> None:
    a, b = Node("a"), Node("b")
    async with closing(a, b):
        await a.start()
        await b.start(a)
        await asyncio.sleep(0.2)
        assert not b.events
        a.transport.set_peers({"b": b.address})
        await until(lambda: a.is_up(b) and b.is_up(a))


class Impostor:
    """Speaks the protocol by hand, as `b`."""

    def __init__(self, target: Node) -> None:
        self.target = target
        self.client = httpx.AsyncClient(
            headers={SECRET_HEADER: secret_digest("s3cret")}, trust_env=False
        )
        self.queues: list[asyncio.Queue[bytes]] = []
        self.tasks: list[asyncio.Task[httpx.Response]] = []

    async def hello(self, epoch: int) -> httpx.Response:
        hello = Hello(PROTOCOL, "c1", "b", "store of b", epoch, "127.0.0.1:1")
        return await self.client.post(
            f"http://{self.target.address}/internal/v1/hello", content=msgspec.msgpack.encode(hello)
        )

    def stream(self, epoch: int) -> asyncio.Queue[bytes]:
        queue: asyncio.Queue[bytes] = asyncio.Queue()

        async def body() -> AsyncIterator[bytes]:
            while chunk := await queue.get():
                yield chunk

        self.tasks.append(
            asyncio.ensure_future(
                self.client.post(
                    f"http://{self.target.address}/internal/v1/stream",
                    content=body(),
                    headers={NODE_HEADER: "b", EPOCH_HEADER: str(epoch)},
                )
            )
        )
        self.queues.append(queue)
        return queue

    async def close(self) -> None:
        for queue in self.queues:
            queue.put_nowait(b"")
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.client.aclose()


async def test_frames_of_an_older_epoch_are_dropped() -> None:
    a, b = Node("a"), Node("b")
    async with closing(a):
        await a.start(b)
        impostor = Impostor(a)
        assert (await impostor.hello(5)).status_code == 200
        old = impostor.stream(5)
        old.put_nowait(frame_header(b"one") + b"one")
        await until(lambda: a.frames == [("b", b"one")])
        assert (await impostor.hello(6)).status_code == 200
        old.put_nowait(frame_header(b"stale") + b"stale")
        new = impostor.stream(6)
        new.put_nowait(frame_header(b"two") + b"two")
        await until(lambda: len(a.frames) > 1)
        await asyncio.sleep(0.05)
        assert a.frames == [("b", b"one"), ("b", b"two")]
        refused = await impostor.hello(6)
        assert refused.status_code == 409
        assert refused.json()["epoch"] == 6
        await impostor.close()


async def test_an_epoch_ahead_of_our_clock_is_overtaken() -> None:
    a, b = Node("a"), Node("b")
    async with closing(a, b):
        await a.start(b)
        impostor = Impostor(a)
        assert (await impostor.hello(1 << 62)).status_code == 200
        await impostor.close()
        await b.start(a)
        await until(lambda: a.is_up(b) and b.is_up(a))


async def test_a_frame_beyond_the_bound_ends_the_stream() -> None:
    a, b = Node("a"), Node("b")
    async with closing(a):
        await a.start(b)
        impostor = Impostor(a)
        await impostor.hello(1)
        impostor.stream(1).put_nowait((FRAME_BYTES_MAX + 1).to_bytes(4, "big"))
        await asyncio.sleep(0.1)
        await impostor.close()
        response = impostor.tasks[0]
        assert response.exception() is not None or response.result().status_code == 413
        assert a.frames == []


@on_both_loops
async def test_a_call_answers_or_raises_what_the_other_side_raised() -> None:
    a, b = Node("a"), Node("b")

    async def answer(method: str, body: bytes) -> bytes:
        if method == "fails":
            raise PreconditionFailed("it has another version", version="bafy")
        if method == "breaks":
            raise ZeroDivisionError
        return method.encode() + b":" + body

    b.answer = answer
    async with closing(a, b):
        await b.transport.listen(b.address, b)
        large = bytes(5 << 20)
        assert await a.transport.call(b.address, "echo", large, timeout=5) == b"echo:" + large
        with pytest.raises(PreconditionFailed, match="it has another version") as failed:
            await a.transport.call(b.address, "fails", b"", timeout=5)
        assert failed.value.extra == {"version": "bafy"}
        with pytest.raises(InternalError) as broken:
            await a.transport.call(b.address, "breaks", b"", timeout=5)
        assert "id" in broken.value.extra


async def test_a_call_to_nobody_and_to_somebody_slow_is_unreachable() -> None:
    a, b = Node("a"), Node("b")

    async def answer(method: str, body: bytes) -> bytes:
        await asyncio.sleep(5)
        raise NotFound("too late")

    b.answer = answer
    async with closing(a, b):
        await b.transport.listen(b.address, b)
        with pytest.raises(Unreachable, match="no answer from"):
            await a.transport.call(free_address(), "x", b"", timeout=1)
        began = time.monotonic()
        with pytest.raises(Unreachable):
            await a.transport.call(b.address, "x", b"", timeout=0.1)
        assert time.monotonic() - began < 1


async def test_something_else_at_an_address_is_unreachable() -> None:
    a, b = Node("a"), Node("b")
    b.transport.asgi = _website  # type: ignore[method-assign]
    async with closing(a, b):
        await b.transport.listen(b.address, b)
        with pytest.raises(Unreachable, match="not as a node"):
            await a.transport.call(b.address, "x", b"", timeout=1)


async def _website(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 404, "headers": []})
    await send({"type": "http.response.body", "body": b"<html>not here</html>"})


async def test_who_answers_a_hello_with_something_else_is_asked_again() -> None:
    a, b = Node("a"), Node("b")
    asgi, asked = b.transport.asgi, asyncio.Event()

    async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
        """It says that all is well, and nothing else."""
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})
        asked.set()

    async def first_the_proxy(scope: Scope, receive: Receive, send: Send) -> None:
        await (asgi if asked.is_set() else proxy)(scope, receive, send)

    b.transport.asgi = first_the_proxy  # type: ignore[method-assign]
    async with closing(a, b):
        await b.transport.listen(b.address, b)
        await a.start(b)
        await asyncio.wait_for(asked.wait(), 5)
        b.transport.identify(cluster_id="c1", node_id="b", store_id="store of b")
        b.transport.set_peers({"a": a.address, "b": b.address})
        await until(lambda: a.is_up(b) and b.is_up(a))


async def test_the_application_gets_all_other_paths() -> None:
    a = Node("a")
    app: ASGIApp = _website
    a.transport.app = app
    async with closing(a), httpx.AsyncClient(trust_env=False) as client:
        await a.start()
        response = await client.get(f"http://{a.address}/v1/status")
        assert (response.status_code, response.text) == (404, "<html>not here</html>")
        assert "server" not in response.headers
        assert "date" not in response.headers


async def test_an_address_in_use_is_a_clear_error() -> None:
    a = Node("a")
    b = Node("b", a.address)
    async with closing(a, b):
        await a.start()
        with pytest.raises(CannotListen, match=f"^address {a.address} is in use$"):
            await b.start()
    with pytest.raises(CannotListen, match="is no address of this machine"):
        await Node("c", "203.0.113.7:8080").start()
    with pytest.raises(CannotListen, match="must be host:port"):
        await Node("c", "8080").start()


async def test_a_stopped_node_can_listen_again_at_its_address() -> None:
    a = Node("a")
    await a.start()
    await a.transport.close()
    again = Node("a", a.address)
    async with closing(again):
        await again.start()


async def test_a_node_stops_although_a_client_holds_a_request_open() -> None:
    a = Node("a")

    asked = asyncio.Event()

    async def answer(method: str, body: bytes) -> bytes:
        asked.set()
        await asyncio.sleep(30)
        return b""

    a.answer = answer
    caller = Node("caller")
    async with closing(caller):
        await a.start()
        call = asyncio.ensure_future(caller.transport.call(a.address, "x", b"", timeout=20))
        await asked.wait()
        began = time.monotonic()
        await a.transport.close()
        assert time.monotonic() - began < 2
        with pytest.raises((Unreachable, InternalError)):
            await call


async def test_throughput_is_printed() -> None:
    async with pair() as (a, b):
        frame, total, turn = bytes(300), 50_000, 64
        began = time.perf_counter()
        for sent in range(0, total, turn):
            for _ in range(min(turn, total - sent)):
                a.transport.send("b", frame)
            await asyncio.sleep(0)
        await until(lambda: len(b.frames) == total, within=30)
        elapsed = time.perf_counter() - began
        print(f"{total / elapsed:,.0f} frames/s of 300 bytes, both ends in one process")
