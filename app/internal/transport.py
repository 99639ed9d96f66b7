"""The mesh over HTTP: httpx on the way out, bare ASGI on the way in.

::

    POST /internal/v1/hello          may I open a stream? A refusal is an answer that can be read
    POST /internal/v1/stream         a body that never ends: length-prefixed frames, one way
    POST /internal/v1/call/<method>  one request of its own: forming, joining

Two nodes have a stream in each direction; acknowledgements ride on the other one. All routes ask
for the cluster's secret. The same server serves the public application on every other path.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from typing import Final

import httpx
import msgspec
import orjson

from app.internal.duplex import CONNECT_TIMEOUT_S, DuplexTransport, socket_options
from app.internal.framing import FRAME_BYTES_MAX, FrameReader
from app.internal.handshake import (
    EPOCH_HEADER,
    NODE_HEADER,
    PROTOCOL,
    SECRET_HEADER,
    Hello,
    Welcome,
    decode_hello,
    encode,
    error_of,
    is_secret,
    problem_of,
    secret_digest,
)
from app.internal.links import Inbound, LinkContext, PeerLink
from app.internal.server import ASGIApp, EmbeddedServer, Receive, Scope, Send
from cluster_core.config import RaftConfig
from cluster_core.errors import (
    InternalError,
    InvalidRequest,
    KotobaError,
    NotFound,
    Refused,
    TooLarge,
    Unavailable,
    Unreachable,
)
from cluster_core.ports import Random, Receiver
from cluster_core.types import NodeId

__all__ = ["HttpTransport"]

log = logging.getLogger("kotoba.transport")

PREFIX: Final = "/internal/"
HELLO: Final = "/internal/v1/hello"
STREAM: Final = "/internal/v1/stream"
CALL: Final = "/internal/v1/call/"
HELLO_TIMEOUT_S: Final = 1.0

_PROBLEM: Final = b"application/problem+json"
_BYTES: Final = b"application/octet-stream"


class HttpTransport:
    """:class:`~cluster_core.ports.Transport` over HTTP/1.1.

    ``app`` answers every path but ``/internal/``; it may be set until :meth:`listen`. An empty
    ``secret`` accepts everybody: for development only. A peer that is silent for an election
    timeout is down; to be heard, something is sent at least every tick.
    """

    def __init__(
        self,
        *,
        secret: str = "",
        app: ASGIApp | None = None,
        config: RaftConfig | None = None,
        random: Random,
    ) -> None:
        config = config or RaftConfig()
        self.app = app
        self._secret = secret_digest(secret)
        self._random = random
        self._keep_alive_s = config.tick_ms / 1000
        self._silence_s = self._keep_alive_s * config.election_ticks
        self._socket_options = socket_options(int(self._silence_s * 1000))
        self._receiver: Receiver | None = None
        self._server: EmbeddedServer | None = None
        self._address = ""
        self._identity: Welcome | None = None
        self._cluster_id = ""
        self._wanted: dict[NodeId, str] = {}
        self._links: dict[NodeId, PeerLink] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._ticker: asyncio.Task[None] | None = None
        self._clients: tuple[httpx.AsyncClient, httpx.AsyncClient] | None = None
        self._last_epoch = 0
        self._closed = False

    # ports.Transport

    async def listen(self, address: str, receiver: Receiver) -> None:
        """Serve peers and the application. Raises CannotListen."""
        assert self._server is None
        self._receiver = receiver
        self._address = address
        server = EmbeddedServer(self.asgi)
        await server.listen(address)
        self._server = server

    def identify(self, *, cluster_id: str, node_id: NodeId, store_id: str) -> None:
        assert self._receiver is not None, "listen first"
        assert self._identity is None or self._identity == Welcome(node_id, store_id)
        self._identity = Welcome(node_id, store_id)
        self._cluster_id = cluster_id
        self._follow_peers()

    def set_peers(self, addresses: dict[NodeId, str]) -> None:
        self._wanted = dict(addresses)
        self._follow_peers()

    def send(self, peer: NodeId, frame: bytes) -> None:
        link = self._links.get(peer)
        if link is not None:
            link.send(frame)

    async def call(self, address: str, method: str, body: bytes, *, timeout: float) -> bytes:
        try:
            async with asyncio.timeout(timeout):
                response = await self._requests().post(
                    f"http://{address}{CALL}{method}", content=body, timeout=timeout
                )
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            reason = str(error) or type(error).__name__
            raise Unreachable(f"no answer from {address}: {reason}", address=address) from None
        if response.status_code != httpx.codes.OK:
            raise error_of(response)
        return response.content

    async def drain(self) -> None:
        if self._server is not None:
            await self._server.drain(self._count_inbound)

    def _count_inbound(self) -> int:
        return sum(link.inbound is not None for link in self._links.values())

    async def close(self) -> None:
        """End all streams, then the server; within about a second. Idempotent."""
        self._closed = True
        tasks = [link.close() for link in self._links.values()]
        self._links.clear()
        if self._ticker is not None:
            self._ticker.cancel()
            tasks.append(self._ticker)
        tasks += sorted(self._ending, key=lambda task: task.get_name())
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._clients is not None:
            for client in self._clients:
                await client.aclose()
        if self._server is not None:
            await self._server.close()

    def dropped(self) -> dict[NodeId, int]:
        """Frames to each peer that were dropped: it was not connected, or its queue was full."""
        return {
            peer: link.dropped + (link.outbox.dropped if link.outbox is not None else 0)
            for peer, link in self._links.items()
        }

    # Outgoing

    def _follow_peers(self) -> None:
        """Make the links those that are wanted, as soon as we know who we are."""
        if self._identity is None or self._closed:
            return
        wanted = {k: v for k, v in self._wanted.items() if k != self._identity.node_id}
        for peer in [peer for peer in self._links if peer not in wanted]:
            self._drop(self._links.pop(peer))
        for peer, address in wanted.items():
            if peer in self._links:
                self._links[peer].move(address)
            else:
                self._links[peer] = PeerLink(peer, address, self._context())
        if self._ticker is None:
            self._ticker = asyncio.get_running_loop().create_task(self._tick(), name="keep-alive")

    def _drop(self, link: PeerLink) -> None:
        link.lose()
        task = link.close()
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def _context(self) -> LinkContext:
        assert self._receiver is not None
        return LinkContext(
            receiver=self._receiver,
            requests=self._requests(),
            streams=self._streams(),
            hello=self._hello_of,
            random=self._random,
            silence_s=self._silence_s,
        )

    def _hello_of(self, epoch_min: int) -> Hello:
        assert self._identity is not None
        self._last_epoch = max(time.time_ns(), self._last_epoch + 1, epoch_min)
        return Hello(
            protocol=PROTOCOL,
            cluster_id=self._cluster_id,
            node_id=self._identity.node_id,
            store_id=self._identity.store_id,
            epoch=self._last_epoch,
            address=self._address,
        )

    def _requests(self) -> httpx.AsyncClient:
        return self._open_clients()[0]

    def _streams(self) -> httpx.AsyncClient:
        return self._open_clients()[1]

    def _open_clients(self) -> tuple[httpx.AsyncClient, httpx.AsyncClient]:
        if self._closed:
            raise Unreachable("this node is stopping")
        if self._clients is None:
            headers = {SECRET_HEADER: self._secret} if self._secret else {}
            # trust_env: a proxy of the environment has no business between the nodes.
            requests = httpx.AsyncClient(
                transport=httpx.AsyncHTTPTransport(socket_options=self._socket_options),
                timeout=httpx.Timeout(HELLO_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
                headers=headers,
                trust_env=False,
            )
            streams = httpx.AsyncClient(
                transport=DuplexTransport(socket_options=self._socket_options),
                headers=headers,
                trust_env=False,
            )
            self._clients = (requests, streams)
        return self._clients

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        planned = loop.time()
        while True:
            planned += self._keep_alive_s
            await asyncio.sleep(planned - loop.time())
            now = loop.time()
            late, planned = max(0.0, now - planned), now
            for link in list(self._links.values()):
                link.tick(now, late)

    # Incoming

    async def asgi(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application of this node: ours under ``/internal/``, else the public one."""
        if scope["type"] != "http" or not scope["path"].startswith(PREFIX):
            if self.app is not None:
                await self.app(scope, receive, send)
            elif scope["type"] == "http":
                await _answer_problem(send, NotFound("nothing is served here"))
            return
        if not is_secret(self._secret, _header(scope, SECRET_HEADER)):
            await _answer_unauthorized(send)
            return
        try:
            answer = await self._route(scope, receive)
        except KotobaError as error:
            await _answer_problem(send, error)
        except Exception:
            error_id = secrets.token_hex(8)
            log.exception("internal request to %s failed (%s)", scope["path"], error_id)
            await _answer_problem(send, InternalError("the request failed", id=error_id))
        else:
            await _answer(send, 200, _BYTES, answer, close=scope["path"] == STREAM)

    async def _route(self, scope: Scope, receive: Receive) -> bytes:
        path: str = scope["path"]
        if path == STREAM:
            await self._receive_stream(scope, receive)
            return b""
        if path == HELLO:
            return self._greeted(await _body(receive))
        if path.startswith(CALL):
            if self._receiver is None or self._closed:
                raise Unavailable("this node is stopping")
            return await self._receiver.on_call(path.removeprefix(CALL), await _body(receive))
        raise NotFound(f"there is no {path}")

    def _greeted(self, body: bytes) -> bytes:
        """Accept a hello, or raise why not."""
        try:
            hello = decode_hello(body)
        except msgspec.DecodeError:
            raise InvalidRequest("this is no hello") from None
        if self._identity is None or self._closed:
            raise Unavailable("this node is not (yet) a member of a cluster")
        self._check_cluster(hello, self._identity)
        link = self._links.get(hello.node_id)
        if link is None:
            raise Refused(f"{hello.node_id} is no member of this cluster")
        if link.store_id not in (None, hello.store_id):
            raise Refused(
                f"{hello.node_id} had the store {link.store_id} before, not {hello.store_id}"
            )
        if hello.epoch <= link.epoch:
            raise Refused("a newer stream than this one was opened", epoch=link.epoch)
        link.store_id = hello.store_id
        link.greeted(hello.epoch)
        return encode(self._identity)

    def _check_cluster(self, hello: Hello, identity: Welcome) -> None:
        if hello.protocol != PROTOCOL:
            raise Refused(
                f"{identity.node_id} speaks protocol {PROTOCOL}, {hello.node_id} {hello.protocol}"
            )
        if hello.cluster_id != self._cluster_id:
            raise Refused(
                f"{identity.node_id} belongs to cluster {self._cluster_id}, "
                f"{hello.node_id} to {hello.cluster_id}"
            )
        if hello.node_id == identity.node_id:
            raise Refused(f"this node is called {identity.node_id} itself")

    async def _receive_stream(self, scope: Scope, receive: Receive) -> None:
        """Hand on what comes until the stream ends: by its sender, a newer one, or us."""
        link = self._links.get(_header(scope, NODE_HEADER).decode("latin-1"))
        epoch = _header(scope, EPOCH_HEADER)
        if link is None or not epoch.isdigit() or int(epoch) != link.epoch:
            raise Refused(
                "this stream was not announced, or a newer one was",
                epoch=link.epoch if link is not None else 0,
            )
        task = asyncio.current_task()
        assert task is not None
        inbound = link.open_inbound(task)
        try:
            await self._receive_frames(link, inbound, receive)
        except asyncio.CancelledError:
            if not inbound.ended:
                raise
            task.uncancel()
        except TooLarge as error:
            log.warning("the stream of %s is closed: %s", link.peer, error.detail)
            raise
        finally:
            link.inbound_ended(inbound)

    async def _receive_frames(self, link: PeerLink, inbound: Inbound, receive: Receive) -> None:
        assert self._receiver is not None
        on_frames = self._receiver.on_frames
        feed = FrameReader().feed
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            frames = feed(message["body"])
            if inbound is not link.inbound:
                return
            link.heard()
            if frames:
                try:
                    on_frames(link.peer, frames)
                except Exception:
                    # Frames may be lost, streams may not: the others of this chunk's sender count.
                    log.exception("%d frames of %s were lost", len(frames), link.peer)
            if not message["more_body"]:
                return


async def _body(receive: Receive) -> bytes:
    """The whole body of a request that is no stream."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Unavailable("the request was not sent to its end")
        parts.append(message["body"])
        size += len(message["body"])
        if size > FRAME_BYTES_MAX:
            raise TooLarge(f"more than {FRAME_BYTES_MAX} bytes", limit=FRAME_BYTES_MAX)
        if not message["more_body"]:
            return b"".join(parts)


def _header(scope: Scope, name: str) -> bytes:
    wanted = name.encode()
    return next((value for key, value in scope["headers"] if key == wanted), b"")


async def _answer_problem(send: Send, error: KotobaError) -> None:
    # Closed, for a refused stream would go on sending.
    await _answer(send, error.status, _PROBLEM, orjson.dumps(problem_of(error)), close=True)


async def _answer_unauthorized(send: Send) -> None:
    problem = {
        "type": "about:blank",
        "title": "Unauthorized",
        "status": 401,
        "code": "unauthorized",
        "detail": "the cluster secret is missing or wrong",
    }
    await _answer(send, 401, _PROBLEM, orjson.dumps(problem), close=True)


async def _answer(
    send: Send, status: int, kind: bytes, body: bytes, *, close: bool = False
) -> None:
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    if close:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
