"""An httpx transport for requests whose body never ends.

The stock transport reads nothing before the body is sent: a refusal stays unseen until then, and
the death of the other side until the third write into a dead socket. This one keeps an eye on the
connection while it writes: the response may come early, and a lost connection ends the request
within milliseconds. One connection a request; HTTP/1.1 with a chunked body.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterable
from typing import Final, cast

import httptools
import httpx

__all__ = ["CONNECT_TIMEOUT_S", "DuplexTransport", "socket_options"]

CONNECT_TIMEOUT_S: Final = 1.0

SocketOption = tuple[int, int, int]


def socket_options(user_timeout_ms: int) -> list[SocketOption]:
    """No delay; and unacknowledged bytes end a connection after ``user_timeout_ms``.

    Without the second one a network that swallows everything is noticed after 15 minutes.
    """
    options: list[SocketOption] = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        options.append((socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, user_timeout_ms))
    return options


class DuplexTransport(httpx.AsyncBaseTransport):
    """Sends a request's body until a response, or the end of the connection, comes."""

    def __init__(self, *, socket_options: Iterable[SocketOption] = ()) -> None:
        self._socket_options = tuple(socket_options)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        exchange = await self._connect(request)
        pump = asyncio.get_running_loop().create_task(exchange.pump(request))
        try:
            return await exchange.response(request)
        finally:
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)
            exchange.close()

    async def _connect(self, request: httpx.Request) -> _Exchange:
        host, port = request.url.host, request.url.port or 80
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                connection, exchange = await asyncio.get_running_loop().create_connection(
                    _Exchange, host, port
                )
        except TimeoutError:
            raise httpx.ConnectTimeout("no connection in time", request=request) from None
        except OSError as error:
            raise httpx.ConnectError(str(error), request=request) from error
        for option in self._socket_options:
            connection.get_extra_info("socket").setsockopt(*option)
        return exchange


class _Exchange(asyncio.Protocol):
    """One connection: a request going out, and whatever comes back meanwhile."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._answer: asyncio.Future[httpx.Response] = loop.create_future()
        self._answer.add_done_callback(_retrieve)
        self._writable = asyncio.Event()
        self._writable.set()

    async def response(self, request: httpx.Request) -> httpx.Response:
        response = await self._answer
        response.request = request
        return response

    async def pump(self, request: httpx.Request) -> None:
        """Write the request; what goes wrong in its body ends the exchange."""
        assert self._transport is not None
        try:
            self._transport.write(_head_of(request))
            assert isinstance(request.stream, httpx.AsyncByteStream)
            body: AsyncIterator[bytes] = aiter(request.stream)
            async for chunk in body:
                self._transport.writelines((b"%x\r\n" % len(chunk), chunk, b"\r\n"))
                if not self._writable.is_set():
                    await self._writable.wait()
            self._transport.write(b"0\r\n\r\n")
        except Exception as error:
            self._fail(error)

    def close(self) -> None:
        self._answer.cancel()
        if self._transport is not None:
            # Not close(): that would wait until everything queued for a stopped peer is sent.
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast, no assert: uvloop's transports do not derive from asyncio's.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(httpx.RemoteProtocolError(f"no HTTP response: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._writable.set()
        self._fail(httpx.ReadError(str(exc) if exc else "the connection was closed"))

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        if not self._answer.done():
            self._answer.set_result(
                httpx.Response(
                    self._parser.get_status_code(),
                    headers=self._headers,
                    content=b"".join(self._body),
                )
            )

    def _fail(self, error: Exception) -> None:
        if not self._answer.done():
            self._answer.set_exception(error)


def _head_of(request: httpx.Request) -> bytes:
    lines = [b"%s %s HTTP/1.1" % (request.method.encode(), request.url.raw_path)]
    lines += [name + b": " + value for name, value in request.headers.raw]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _retrieve(answer: asyncio.Future[httpx.Response]) -> None:
    """An error that nobody waits for any more is no news."""
    if not answer.cancelled():
        answer.exception()
