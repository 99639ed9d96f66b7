"""uvicorn inside a running event loop: no signal handlers, no logging set-up, ports of our own."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any, Final

import uvicorn

from app.internal.http_protocol import OneWriteProtocol
from app.settings import parse_address
from cluster_core.errors import CannotListen

__all__ = ["ASGIApp", "EmbeddedServer", "Receive", "Scope", "Send"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

KEEP_ALIVE_S: Final = 75
"""Longer than any client keeps an idle connection, so that none is closed under a request."""

DRAIN_LOOK_S: Final = 0.01

GRACE_S: Final = 1
"""How long requests in flight may take when the server stops."""


class EmbeddedServer:
    """Serves ``app`` at one address in the running loop until :meth:`close`."""

    def __init__(self, app: ASGIApp) -> None:
        config = uvicorn.Config(
            app,
            http=OneWriteProtocol,
            ws="websockets-sansio",
            lifespan="off",
            interface="asgi3",
            proxy_headers=False,
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=GRACE_S,
        )
        self._server = _Server(config)
        self._serving: asyncio.Task[None] | None = None

    async def listen(self, address: str) -> None:
        """Returns when connections are accepted. Raises CannotListen."""
        assert self._serving is None
        sockets = await _bind(address)
        self._serving = asyncio.get_running_loop().create_task(
            self._server.serve(sockets=sockets), name=f"server {address}"
        )
        self._serving.add_done_callback(lambda _: self._server.accepting.set())
        await self._server.accepting.wait()
        if self._serving.done():
            self._serving.result()

    async def drain(self, streams: Callable[[], int]) -> None:
        """Take no new requests; returns when none is under way but ``streams()``, which end in
        other ways, or after :data:`GRACE_S`."""
        if self._serving is None:
            return
        for listener in self._server.servers:
            listener.close()
        state = self._server.server_state
        for connection in list(state.connections):
            connection.shutdown()  # an idle one closes, a busy one after its answer
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE_S):
                while len(state.tasks) > streams():  # noqa: ASYNC110 (uvicorn has no event for it)
                    await asyncio.sleep(DRAIN_LOOK_S)

    async def close(self) -> None:
        """Stop accepting, give requests in flight a second, and end. Idempotent."""
        if self._serving is None:
            return
        serving, self._serving = self._serving, None
        self._server.should_exit = True
        await serving
        # uvicorn cancels what is left after the grace, but does not wait for it.
        if left := list(self._server.server_state.tasks):
            await asyncio.wait(left, timeout=0.1)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.accepting = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.accepting.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals belong to the program that we run in."""
        yield


async def _bind(address: str) -> list[socket.socket]:
    """A listening socket for every IP address of the host that ``address`` names."""
    try:
        host, port = parse_address(address)
    except ValueError as error:
        raise CannotListen(f"address {address} {error}", address=address) from None
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise CannotListen(f"address {address}: {error.strerror}", address=address) from None
    sockets: list[socket.socket] = []
    problem: OSError | None = None
    for family, kind, protocol, _, where in dict.fromkeys(found):
        try:
            sockets.append(_listening(family, kind, protocol, where))
        except OSError as error:
            problem = error
            if error.errno == errno.EADDRINUSE:
                break
    # `localhost` may have an IPv6 address that the machine lacks: one that works is enough.
    if sockets and (problem is None or problem.errno != errno.EADDRINUSE):
        return sockets
    for opened in sockets:
        opened.close()
    assert problem is not None
    raise CannotListen(f"address {address} {_reason(problem)}", address=address)


def _listening(
    family: socket.AddressFamily, kind: socket.SocketKind, protocol: int, where: Any
) -> socket.socket:
    opened = socket.socket(family, kind, protocol)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        opened.bind(where)
        # Two sockets with SO_REUSEADDR may bind the same port; only one of them may listen.
        opened.listen(2048)
        opened.setblocking(False)
    except OSError:
        opened.close()
        raise
    return opened


def _reason(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "is in use"
    if error.errno == errno.EADDRNOTAVAIL:
        return "is no address of this machine"
    return f"cannot be used: {os.strerror(error.errno) if error.errno else error}"
