"""ASGI by hand, where an HTTP client would hide what a test is about."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from app.main import Gateway


def http_scope(method: str, path: str, **fields: Any) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/json")],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8080),
        **fields,
    }


async def send_http(
    gateway: Gateway, scope: dict[str, Any], *messages: dict[str, Any]
) -> list[dict[str, Any]]:
    """What the gateway sends when it receives ``messages``, and then that the client is gone."""
    waiting = iter(messages)
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return next(waiting, {"type": "http.disconnect"})

    async def send(message: Any) -> None:
        sent.append(message)

    await gateway(scope, receive, send)
    return sent


T = TypeVar("T")


async def while_others_run(work: Coroutine[Any, Any, T], *, turns_min: int = 10) -> T:
    """What ``work`` returns; it must have let others run in between."""
    task = asyncio.ensure_future(work)
    turns = 0
    while not task.done():
        turns += 1
        await asyncio.sleep(0)
    assert turns >= turns_min, f"others had {turns} turns"
    return task.result()


class Socket:
    """The client's end of a WebSocket."""

    def __init__(self, gateway: Gateway, query: str = "", path: str = "/v1/events") -> None:
        self._to_gateway: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._from_gateway: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        scope = http_scope("GET", path, type="websocket", scheme="ws", subprotocols=[])
        del scope["method"]
        scope["query_string"] = query.encode()
        self._to_gateway.put_nowait({"type": "websocket.connect"})
        self.task = asyncio.ensure_future(
            gateway(scope, self._to_gateway.get, self._from_gateway.put)  # type: ignore[arg-type]
        )

    async def next(self) -> dict[str, Any]:
        async with asyncio.timeout(5):
            return await self._from_gateway.get()

    def say(self, message: dict[str, Any]) -> None:
        self._to_gateway.put_nowait(message)

    async def leave(self) -> None:
        self.say({"type": "websocket.disconnect", "code": 1000})
        async with asyncio.timeout(5):
            await self.task
