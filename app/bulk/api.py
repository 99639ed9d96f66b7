"""All nodes of a cluster behind one object: requests go around, and are repeated while they may be.

Only what is certainly or harmlessly repeatable goes through here: reads, and writes under an
Idempotency-Key.

It is made for a hundred thousand small requests as well, so each connection is one of http.client
in a thread: 0.2 ms of our own time a request, against 1.5 to 2.7 with httpx.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import itertools
import random
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Final, NamedTuple, TypeVar, cast
from urllib.parse import urlsplit

import httpx
import orjson

from app.commands import CommandFailed
from app.commands.client import problem_line

__all__ = ["TRANSIENT", "Answer", "Api", "GaveUp", "one_ahead", "together"]

TRANSIENT: Final = frozenset(
    {
        "conflict",
        "no_leader",
        "not_leader",
        "overloaded",
        "rate_limited",
        "storage_full",
        "timeout",
        "unavailable",
    }
)
"""Codes after which the same request may succeed."""

_TIMEOUT_S: Final = 70.0
"""Longer than a node may take, so that its own answer is seen."""
_PROBE_S: Final = 2.0
_BACKOFF_S: Final = 0.1
_BACKOFF_S_MAX: Final = 5.0
_RETRIED_STATUS: Final = frozenset({307, 429, 502, 503, 504, 507})
_TOLD_AFTER_S: Final = 5.0
"""Without any success, before somebody is told: an election takes less."""


T = TypeVar("T")


class GaveUp(CommandFailed):
    """The cluster did not take it for longer than we were willing to wait."""


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    """By their lower-case names."""
    content: bytes

    def json(self) -> Any:
        return orjson.loads(self.content)


Unsettled = Callable[[Answer], str | None]


def _settled(answer: Answer) -> str | None:
    return None


def _nobody(why: str) -> None:
    pass


class Api:
    """See the module; an async context manager. It asks ``url`` for the other nodes, and uses those
    that answer. ``patience_s``: for how long a request is repeated while none at all succeeds,
    before GaveUp; meanwhile ``waiting`` is told why, again and again."""

    def __init__(
        self,
        url: str,
        *,
        connections: int,
        patience_s: float,
        waiting: Callable[[str], None] = _nobody,
    ) -> None:
        self.cluster_id = ""
        self.urls = [url]
        self.retried = 0
        self._patience_s = patience_s
        self._waiting = waiting
        self._threads = ThreadPoolExecutor(connections, thread_name_prefix="kotoba-http")
        self._idle: dict[str, list[http.client.HTTPConnection]] = {}
        self._turn = itertools.count()
        self._last_success = time.monotonic()

    async def __aenter__(self) -> Api:
        try:
            status = (await self.request("GET", "/v1/status")).json()
            self.cluster_id = status["cluster_id"] or ""
            await self._find_nodes(status)
        except BaseException:
            self._close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def _close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        for connections in self._idle.values():
            for connection in connections:
                connection.close()

    async def _find_nodes(self, status: Mapping[str, Any]) -> None:
        """The nodes that can be reached from here: an address may be of an inner network."""
        scheme = self.urls[0].partition("://")[0]
        members = status["membership"]["nodes"]
        known = [f"{scheme}://{one['address']}" for one in members if one["state"] == "active"]
        found = await asyncio.gather(*(self._is_of(url) for url in known))
        self.urls = [url for url, ours in zip(known, found, strict=True) if ours] or self.urls

    async def _is_of(self, url: str) -> bool:
        try:
            answer = await self._send(url, "GET", "/v1/status", None, {})
            return bool(answer.json()["cluster_id"] == self.cluster_id)
        except (OSError, http.client.HTTPException, ValueError, KeyError):
            return False

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        accept: tuple[int, ...] = (200,),
        unsettled: Unsettled = _settled,
        patience_s: float | None = None,
    ) -> Answer:
        """The answer, from whichever node gives one. A ``body`` of bytes is JSON already.
        ``unsettled`` says of an accepted answer why it has to be asked for again. Raises
        CommandFailed for an answer that will not change."""
        content = body if body is None or isinstance(body, bytes) else orjson.dumps(body)
        sent = {"Content-Type": "application/json", **(headers or {})} if body is not None else {}
        patience_s = self._patience_s if patience_s is None else patience_s
        began = time.monotonic()
        for attempt in itertools.count():
            url = self.urls[next(self._turn) % len(self.urls)]
            wait_s = min(_BACKOFF_S * 2**attempt, _BACKOFF_S_MAX)
            try:
                answer = await self._send(url, method, path, content, sent)
            except (OSError, http.client.HTTPException) as error:
                why = f"cannot reach {url}: {_reason(error)}"
            else:
                if answer.status in accept:
                    undone = unsettled(answer)
                    if undone is None:
                        self._last_success = time.monotonic()
                        return answer
                    why = undone
                elif answer.status in _RETRIED_STATUS:
                    why = _problem(answer, url + path)
                    wait_s = max(wait_s, _retry_after(answer))
                else:
                    raise CommandFailed(_problem(answer, url + path))
            now = time.monotonic()
            without_s = now - max(began, self._last_success)
            if without_s + wait_s > patience_s:
                raise GaveUp(f"gave up after {now - began:.0f} s: {why}")
            if without_s >= _TOLD_AFTER_S:
                self._waiting(why)
            self.retried += 1
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))
        raise AssertionError("endless")

    # Connections

    async def _send(
        self, url: str, method: str, path: str, content: bytes | None, headers: Mapping[str, str]
    ) -> Answer:
        """One request, once. Raises OSError or HTTPException without an answer."""
        idle = self._idle.setdefault(url, [])
        connection = idle.pop() if idle else _connect(url)
        working = self._threads.submit(_exchange, connection, method, path, content, headers)
        try:
            answer = await asyncio.wrap_future(working)
        except BaseException:
            # Cancelled, it may be at work still: cut off, it ends soon, and only then is it closed.
            if connection.sock is not None:
                with contextlib.suppress(OSError):
                    connection.sock.shutdown(socket.SHUT_RDWR)
            working.add_done_callback(lambda _: connection.close())
            raise
        idle.append(connection)
        return answer


def _connect(url: str) -> http.client.HTTPConnection:
    place = urlsplit(url)
    kind = http.client.HTTPSConnection if place.scheme == "https" else http.client.HTTPConnection
    return kind(place.netloc, timeout=_PROBE_S)


def _exchange(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    content: bytes | None,
    sent: Mapping[str, str],
) -> Answer:
    """In a thread: send, and read the whole answer."""
    if connection.sock is None:
        _open(connection)
    connection.request(method, path, content, dict(sent))
    response = connection.getresponse()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, headers, response.read())


def _open(connection: http.client.HTTPConnection) -> None:
    """Connect soon, or not at all; answers may take their time."""
    connection.connect()
    assert connection.sock is not None
    connection.sock.settimeout(_TIMEOUT_S)


async def together(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run all; the first that fails ends the others, and its error is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(work)
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None


async def one_ahead(items: AsyncIterator[T]) -> AsyncIterator[T]:
    """``items``; while each is worked on, the next one is on its way."""
    ended = object()
    coming = asyncio.ensure_future(anext(items, ended))
    try:
        while (item := await coming) is not ended:
            coming = asyncio.ensure_future(anext(items, ended))
            yield cast("T", item)
    finally:
        coming.cancel()


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).lower()


def _problem(answer: Answer, url: str) -> str:
    request = httpx.Request("GET", url)
    return problem_line(
        httpx.Response(
            answer.status, headers=answer.headers, content=answer.content, request=request
        )
    )


def _retry_after(answer: Answer) -> float:
    try:
        return min(float(answer.headers.get("retry-after", "0")), _BACKOFF_S_MAX)
    except ValueError:
        return 0.0
