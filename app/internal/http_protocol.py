"""uvicorn's HTTP protocol, with head and body of an answer in one system call.

ASGI sends them as two messages and uvicorn writes each at once. On a loopback or a fast network the
second call costs as much as all of our own work on a small answer (measured: 10 of 60 µs), and the
client is woken twice.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["OneWriteProtocol"]


class OneWriteProtocol(HttpToolsProtocol):
    """See the module."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_Holding(transport))  # type: ignore[arg-type]


class _Holding:
    """A transport that holds a write back until the next one, or the end of the loop's turn."""

    __slots__ = ("_held", "_transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._held = b""

    def write(self, data: bytes) -> None:
        if self._held:
            data, self._held = self._held + data, b""
            self._transport.write(data)
        else:
            self._held = data
            asyncio.get_running_loop().call_soon(self._let_go)

    def writelines(self, parts: list[bytes]) -> None:
        self.write(b"".join(parts))

    def _let_go(self) -> None:
        if self._held:
            data, self._held = self._held, b""
            self._transport.write(data)

    def close(self) -> None:
        self._let_go()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
