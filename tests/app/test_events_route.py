from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from app.main import Gateway
from cluster_core.errors import HistoryCollected, InvalidRequest, Unavailable
from cluster_core.events import Change, ClusterEvent, Event, Resolved, SlowReader
from cluster_core.hlc import wall_of
from tests.app.asgi import Socket
from tests.app.fake_database import TIMESTAMP, TIMESTAMP_TEXT, FakeDatabase

FAILED = ClusterEvent(type="NodeFailed", node_id="node3", at="2026-11-24T06:00:00.000Z", id="e1")
CHANGE = Change(op="create_node", cid="bafy1", version="bafy2", partition=3, timestamp=TIMESTAMP)


async def read_all(
    gateway: Gateway, database: FakeDatabase, query: str, *events: Event | Exception
) -> list[dict[str, Any]]:
    """All messages of a subscription to ``events``, the closing one last."""
    for event in (*events, None):
        database.subscription.queue.put_nowait(event)
    socket = Socket(gateway, query)
    messages = [await socket.next()]
    assert messages.pop()["type"] == "websocket.accept"
    while not messages or messages[-1]["type"] != "websocket.close":
        messages.append(await socket.next())
    await socket.task
    return messages


async def test_events_are_json_texts(gateway: Gateway, database: FakeDatabase) -> None:
    resolved = Resolved(timestamp=TIMESTAMP)
    *messages, _ = await read_all(gateway, database, "", FAILED, CHANGE, resolved)
    assert [json.loads(m["text"]) for m in messages] == [
        {"type": "NodeFailed", "node_id": "node3", "at": "2026-11-24T06:00:00.000Z", "id": "e1"},
        {
            "type": "Change",
            "op": "create_node",
            "cid": "bafy1",
            "version": "bafy2",
            "partition": 3,
            "timestamp": TIMESTAMP_TEXT,
            "label": None,
            "labels": [],
        },
        {"type": "Resolved", "timestamp": TIMESTAMP_TEXT},
    ]
    assert database.subscription.closed


async def test_without_types_all_events_are_subscribed(
    gateway: Gateway, database: FakeDatabase
) -> None:
    await read_all(gateway, database, "")
    assert database.call == (
        None,
        {"labels": None, "partitions": None, "changes": True, "since": None},
    )


async def test_only_what_is_asked_for_is_subscribed_and_sent(
    gateway: Gateway, database: FakeDatabase
) -> None:
    joined = ClusterEvent(type="NodeJoined", node_id="node3", at="", id="e2")
    *messages, _ = await read_all(gateway, database, "types=NodeJoined,NodeLeft", FAILED, joined)
    assert [json.loads(m["text"])["id"] for m in messages] == ["e2"]
    types, how = database.call
    assert types == {"NodeJoined", "NodeLeft"}
    assert how["changes"] is False


async def test_changes_can_be_narrowed(gateway: Gateway, database: FakeDatabase) -> None:
    await read_all(gateway, database, "types=Change&labels=Person,KNOWS&partitions=1,2")
    assert database.call == (
        {"Change"},
        {"labels": {"Person", "KNOWS"}, "partitions": {1, 2}, "changes": True, "since": None},
    )


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("types=NodeExploded", "types: 'NodeExploded' is no type of event"),
        ("types=", "types: names nothing"),
        ("partitions=64", "partitions: must be less than 64"),
        ("partitions=a", "partitions: 'a' is no partition"),
        ("kind=x", "kind: is not known here"),
        (
            "since=yesterday",
            'since must be "<milliseconds>.<counter, 5 digits>" or an RFC 3339 time with an offset',
        ),
        ("types=Change&types=Resolved", "query: a parameter is given more than once"),
    ],
)
async def test_a_wrong_parameter_closes_with_4400(
    gateway: Gateway, database: FakeDatabase, query: str, reason: str
) -> None:
    [closing] = await read_all(gateway, database, query)
    assert (closing["code"], closing["reason"]) == (4400, reason)
    assert not database.calls


async def test_changes_begin_behind_since(gateway: Gateway, database: FakeDatabase) -> None:
    await read_all(gateway, database, f"since={TIMESTAMP_TEXT}")
    assert database.call[1]["since"] == TIMESTAMP


async def test_since_may_be_a_time_of_day(gateway: Gateway, database: FakeDatabase) -> None:
    await read_all(gateway, database, "since=2026-11-23T14:36:40.123Z")
    assert wall_of(database.call[1]["since"]) == 1_795_444_600_123


async def test_changes_that_are_gone_close_with_4410(
    gateway: Gateway, database: FakeDatabase
) -> None:
    gone = HistoryCollected("changes are kept since 1795447000123.00007")
    *_, closing = await read_all(gateway, database, f"since={TIMESTAMP_TEXT}", gone)
    assert (closing["code"], closing["reason"]) == (4410, gone.detail)


async def test_since_in_the_future_closes_with_4400(
    gateway: Gateway, database: FakeDatabase
) -> None:
    database.failure = InvalidRequest("since is in the future", errors=[])
    [closing] = await read_all(gateway, database, f"since={TIMESTAMP_TEXT}")
    assert (closing["code"], closing["reason"]) == (4400, "since is in the future")


async def test_a_slow_reader_is_closed_with_its_last_resolved(
    gateway: Gateway, database: FakeDatabase
) -> None:
    *_, closing = await read_all(gateway, database, "", FAILED, SlowReader(TIMESTAMP))
    assert (closing["code"], closing["reason"]) == (1013, TIMESTAMP_TEXT)
    assert database.subscription.closed


async def test_a_reader_slow_from_the_start_has_no_resolved(
    gateway: Gateway, database: FakeDatabase
) -> None:
    *_, closing = await read_all(gateway, database, "", SlowReader(None))
    assert (closing["code"], closing["reason"]) == (1013, "")


async def test_a_bug_closes_with_its_id(
    gateway: Gateway, database: FakeDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    [closing] = await read_all(gateway, database, "", KeyError("secret"))
    assert closing["code"] == 1011
    assert closing["reason"] in caplog.text


async def test_a_node_that_cannot_subscribe_says_why(
    gateway: Gateway, database: FakeDatabase
) -> None:
    database.failure = Unavailable("not a member yet")
    [closing] = await read_all(gateway, database, "")
    assert (closing["code"], closing["reason"]) == (4503, "not a member yet")


async def test_a_client_that_leaves_ends_its_subscription(
    gateway: Gateway, database: FakeDatabase
) -> None:
    socket = Socket(gateway)
    assert (await socket.next())["type"] == "websocket.accept"
    socket.say({"type": "websocket.receive", "text": "hello"})
    await asyncio.sleep(0)
    assert not database.subscription.closed
    await socket.leave()
    assert database.subscription.closed


async def test_a_socket_elsewhere_is_refused(gateway: Gateway) -> None:
    socket = Socket(gateway, path="/v1/nowhere")
    assert (await socket.next())["type"] == "websocket.close"
    await socket.task
