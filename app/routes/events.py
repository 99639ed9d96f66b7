"""``WS /v1/events``: what happens in the cluster and to the graph, as it happens.

Close codes: 4400 a parameter is wrong (the reason says which), 4410 changes after ``since`` are not
kept any more, 1013 the reader was too slow (the reason is the last Resolved that it was sent), 1011
a bug of ours, with its id, 4000 + the status of any other problem (4503: not now).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec
import orjson
from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from starlette.websockets import WebSocketState

from app.ports import Database, EventSubscription
from app.problems import invalid, presentable
from app.requests import PARAMETERS_MAX
from cluster_core.errors import InvalidRequest, KotobaError
from cluster_core.events import (
    CLUSTER_EVENT_TYPES,
    Change,
    ClusterEvent,
    Event,
    Resolved,
    SlowReader,
)
from cluster_core.hlc import format_timestamp, parse_timestamp
from cluster_core.types import Timestamp

__all__ = ["event_json", "router"]

router: Final = APIRouter()

CLOSE_INVALID: Final = 4400
CLOSE_SLOW: Final = 1013
CLOSE_BUG: Final = 1011
REASON_BYTES_MAX: Final = 123
"""RFC 6455, 5.5: a control frame has 125 bytes, two of them the code."""
SEND_TIMEOUT_S: Final = 20.0
"""A reader that takes nothing for so long is gone, whatever its TCP connection says."""
MESSAGES_PER_TURN: Final = 100
"""At about 30 us each."""

_GRAPH_TYPES: Final = ("Change", "Resolved")
_KNOWN: Final = frozenset((*CLUSTER_EVENT_TYPES, *_GRAPH_TYPES))
_PARAMETERS: Final = ("types", "labels", "partitions", "since")


class _Closing(Exception):
    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Selection(NamedTuple):
    """Which events a subscriber wants; None means all, and no ``since`` from now on."""

    types: frozenset[str] | None
    labels: frozenset[str] | None
    partitions: frozenset[int] | None
    since: Timestamp | None

    @property
    def wants_changes(self) -> bool:
        return self.types is None or not self.types.isdisjoint(_GRAPH_TYPES)

    def wants(self, event: Event) -> bool:
        """Resolved goes along with Change: without it nobody knows how far he has come."""
        if self.types is None or isinstance(event, Resolved):
            return True
        name = event.type if isinstance(event, ClusterEvent) else "Change"
        return name in self.types


@router.websocket("/v1/events")
async def stream_events(websocket: WebSocket) -> None:
    await websocket.accept()
    try:
        await _serve(websocket, websocket.app.state.database)
        code, reason = 1000, ""
    except WebSocketDisconnect:
        return
    except _Closing as closing:
        code, reason = closing.code, closing.reason
    except Exception as exception:
        code, reason = _closing_for(presentable(exception, doing="sending events"))
    if websocket.application_state is WebSocketState.CONNECTED:
        await websocket.close(code, _reason(reason))


async def _serve(websocket: WebSocket, database: Database) -> None:
    try:
        selection = _selection(
            websocket.query_params.multi_items(), database.config.partition_count
        )
    except InvalidRequest as error:
        raise _Closing(CLOSE_INVALID, error.detail) from None
    try:
        subscription = database.subscribe_events(
            selection.types,
            labels=selection.labels,
            partitions=selection.partitions,
            changes=selection.wants_changes,
            since=selection.since,
        )
    except InvalidRequest as error:
        raise _Closing(CLOSE_INVALID, error.detail) from None
    try:
        await _until_either_ends(_send(websocket, subscription, selection), _receive(websocket))
    finally:
        subscription.close()


async def _send(
    websocket: WebSocket, subscription: EventSubscription, selection: Selection
) -> None:
    last: Timestamp | None = None
    sent = 0
    try:
        async for event in subscription:
            if selection.wants(event):
                sent += 1
                if sent % MESSAGES_PER_TURN == 0:  # a send waits only where the socket is full
                    await asyncio.sleep(0)
                text = orjson.dumps(event_json(event)).decode()
                async with asyncio.timeout(SEND_TIMEOUT_S):
                    await websocket.send_text(text)
                if isinstance(event, Resolved):
                    last = event.timestamp
    except SlowReader as slow:
        raise _too_slow(slow.last_resolved) from None
    except TimeoutError:
        raise _too_slow(last) from None


def _too_slow(last_resolved: Timestamp | None) -> _Closing:
    return _Closing(CLOSE_SLOW, "" if last_resolved is None else format_timestamp(last_resolved))


async def _receive(websocket: WebSocket) -> None:
    """Clients have nothing to say; this notices when they leave."""
    while (await websocket.receive())["type"] != "websocket.disconnect":
        pass
    raise WebSocketDisconnect


async def _until_either_ends(*parts: Any) -> None:
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in tasks:
        if task in done:
            task.result()


def _selection(parameters: list[tuple[str, str]], partition_count: int) -> Selection:
    given = dict(parameters[: PARAMETERS_MAX + 1])
    for name in given:
        if name not in _PARAMETERS:
            raise invalid(name[:40], "is not known here")
    if len(given) != len(parameters):
        raise invalid("query", "a parameter is given more than once")
    return Selection(
        types=_types(given),
        labels=_names(given, "labels"),
        partitions=_partitions(given, partition_count),
        since=parse_timestamp(given["since"], where="since") if "since" in given else None,
    )


def _names(given: Mapping[str, str], parameter: str) -> frozenset[str] | None:
    if parameter not in given:
        return None
    names = frozenset(name for name in given[parameter].split(",") if name)
    if not names:
        raise invalid(parameter, "names nothing")
    return names


def _types(given: Mapping[str, str]) -> frozenset[str] | None:
    types = _names(given, "types")
    for name in sorted(types or ()):
        if name not in _KNOWN:
            raise invalid("types", f"{name[:40]!r} is no type of event")
    return types


def _partitions(given: Mapping[str, str], partition_count: int) -> frozenset[int] | None:
    numbers = _names(given, "partitions")
    if numbers is None:
        return None
    for number in sorted(numbers):
        if not (number.isascii() and number.isdigit() and len(number) <= 4):
            raise invalid("partitions", f"{number[:40]!r} is no partition")
        if int(number) >= partition_count:
            raise invalid("partitions", f"must be less than {partition_count}")
    return frozenset(map(int, numbers))


def _closing_for(error: KotobaError) -> tuple[int, str]:
    if "id" in error.extra:
        return CLOSE_BUG, str(error.extra["id"])
    return 4000 + error.status, error.detail


def _reason(text: str) -> str:
    return text.encode()[:REASON_BYTES_MAX].decode(errors="ignore")


def event_json(event: Event) -> dict[str, Any]:
    """The message that tells a subscriber of ``event``."""
    if isinstance(event, Resolved):
        return {"type": "Resolved", "timestamp": format_timestamp(event.timestamp)}
    document: dict[str, Any] = msgspec.to_builtins(event)
    if isinstance(event, Change):
        document = {"type": "Change", **document, "timestamp": format_timestamp(event.timestamp)}
    return document
