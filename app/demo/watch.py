"""Listens to the cluster's events over the public WebSocket."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any, Final

import orjson

__all__ = ["EventWatch"]

_TYPES: Final = (
    "NodeJoined,NodeLeft,NodeSuspected,NodeFailed,NodeRecovered,LeaderElected,PartitionMoved"
)


class EventWatch:
    """Everything that one node said about the cluster, with the time at which it arrived."""

    def __init__(self, url: str) -> None:
        self._address = f"{url.replace('http', 'ws', 1)}/v1/events?types={_TYPES}"
        self.seen: list[tuple[float, dict[str, Any]]] = []
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    async def __aenter__(self) -> EventWatch:
        from websockets.asyncio.client import connect

        stream = await connect(self._address, max_size=None, proxy=None)
        self._task = asyncio.create_task(self._listen(stream))
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _listen(self, stream: Any) -> None:
        from websockets.exceptions import ConnectionClosed

        with contextlib.suppress(ConnectionClosed):
            async with stream:
                async for message in stream:
                    event = orjson.loads(message)
                    if event["type"] != "Resolved":
                        self.seen.append((time.monotonic(), event))
                        self._changed.set()

    async def wait_for(self, type: str, node_id: str, *, after: float, timeout_s: float) -> bool:
        """Whether such an event has come since ``after`` or comes within the time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not self._has(type, node_id, after):
                    self._changed.clear()
                    await self._changed.wait()
                return True
        return False

    def _has(self, type: str, node_id: str, after: float) -> bool:
        return any(
            event["type"] == type and event["node_id"] == node_id and at >= after
            for at, event in self.seen
        )
