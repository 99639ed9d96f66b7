from __future__ import annotations

from typing import Any

import httpx
import pytest

from app.main import create_app
from cluster_core.errors import (
    Conflict,
    HasEdges,
    InternalError,
    NoLeader,
    NotFound,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    PreconditionFailed,
    StorageFailed,
    StorageFull,
)
from cluster_core.graph.cid import cid_bytes, cid_text
from cluster_core.graph.operations import (
    CreateEdge,
    CreateNode,
    DeleteEdge,
    DeleteNode,
    Operation,
    UpdateEdge,
    UpdateNode,
)
from cluster_core.graph.values import Link
from tests.app.fake_database import TIMESTAMP_TEXT, FakeDatabase, digest_of

ALICE, BOB = digest_of("alice"), digest_of("bob")
A, B = cid_text(ALICE), cid_text(BOB)
OPERATIONS = "/v1/operations"
CREATE = {"op": "create_node", "labels": ["Person"], "properties": {"name": "Alice"}}

ACCEPTED: list[tuple[dict[str, Any], Operation]] = [
    (CREATE, CreateNode(("Person",), {"name": "Alice"})),
    ({"op": "create_node"}, CreateNode((), {})),
    (
        {"op": "update_node", "cid": A, "properties": {"age": 31, "nick": None}, "labels": ["X"]},
        UpdateNode(ALICE, {"age": 31, "nick": None}, ("X",), None),
    ),
    ({"op": "update_node", "cid": A, "labels": None}, UpdateNode(ALICE, {}, None, None)),
    (
        {"op": "delete_node", "cid": A, "detach": True, "if_version": B},
        DeleteNode(ALICE, True, BOB),
    ),
    (
        {"op": "create_edge", "label": "KNOWS", "source_cid": A, "target_cid": B},
        CreateEdge("KNOWS", ALICE, BOB, {}),
    ),
    (
        {"op": "update_edge", "cid": A, "source_cid": B, "properties": {"since": 2020}},
        UpdateEdge(ALICE, {"since": 2020}, BOB, None),
    ),
    ({"op": "delete_edge", "cid": A}, DeleteEdge(ALICE, None, None)),
]


@pytest.mark.parametrize(("body", "operation"), ACCEPTED)
async def test_an_operation_reaches_the_database_as_it_was_meant(
    client: httpx.AsyncClient, database: FakeDatabase, body: dict[str, Any], operation: Operation
) -> None:
    answer = await client.post(OPERATIONS, json=body)
    assert answer.status_code == (201 if body["op"].startswith("create") else 200)
    assert database.call[0] == operation


async def test_every_type_of_value_is_taken(
    client: httpx.AsyncClient, database: FakeDatabase
) -> None:
    properties = {
        "null": None,
        "bool": True,
        "int": (1 << 63) - 1,
        "least": -(1 << 63),
        "float": 1.0,
        "text": "言葉: {}",
        "bytes": {"/": {"bytes": "3q0"}},
        "empty": {"/": {"bytes": ""}},
        "link": {"/": A},
        "list": [1, "a", None, {"/": A}, {"/": {"bytes": "AA"}}],
    }
    answer = await client.post(OPERATIONS, json={"op": "create_node", "properties": properties})
    assert answer.status_code == 201, answer.text
    link = Link(cid_bytes(ALICE))
    assert database.call[0].properties == {
        "null": None,
        "bool": True,
        "int": (1 << 63) - 1,
        "least": -(1 << 63),
        "float": 1.0,
        "text": "言葉: {}",
        "bytes": b"\xde\xad",
        "empty": b"",
        "link": link,
        "list": [1, "a", None, link, b"\x00"],
    }
    assert type(database.call[0].properties["float"]) is float


async def test_the_answer_is_the_contract_s(client: httpx.AsyncClient) -> None:
    answer = await client.post(OPERATIONS, json=CREATE)
    version = cid_text(digest_of("version"))
    assert answer.status_code == 201
    assert answer.json() == {
        "cid": cid_text(digest_of("new")),
        "version": version,
        "partition": 17,
        "timestamp": TIMESTAMP_TEXT,
    }
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["etag"] == f'"{version}"'
    assert answer.headers["kotoba-session"] == TIMESTAMP_TEXT
    assert answer.headers["cache-control"] == "no-store"


async def test_without_options_it_is_strong_and_is_not_forwarded(
    client: httpx.AsyncClient, database: FakeDatabase
) -> None:
    await client.post(OPERATIONS, json=CREATE)
    assert database.call[1] == {
        "consistency": "strong",
        "idempotency_key": None,
        "principal": "",
        "nonce": None,
        "forward": False,
        "timeout_ms": None,
    }


async def test_options_reach_the_database(
    client: httpx.AsyncClient, database: FakeDatabase
) -> None:
    answer = await client.post(
        f"{OPERATIONS}?consistency=eventual&forward=true&timeout_ms=1500&nonce={'0aB1' * 8}",
        json=CREATE,
        headers={"Idempotency-Key": "order 66"},
    )
    assert answer.status_code == 202
    assert database.call[1] == {
        "consistency": "eventual",
        "idempotency_key": "order 66",
        "principal": "",
        "nonce": bytes.fromhex("0ab1" * 8),
        "forward": True,
        "timeout_ms": 1500,
    }


async def test_a_node_may_forward_by_default(database: FakeDatabase) -> None:
    transport = httpx.ASGITransport(create_app(database, forward_default=True))
    async with httpx.AsyncClient(transport=transport, base_url="http://n") as client:
        await client.post(OPERATIONS, json=CREATE)
        await client.post(f"{OPERATIONS}?forward=false", json=CREATE)
    assert [how["forward"] for _, how in database.calls] == [True, False]


@pytest.mark.parametrize("in_body", [True, False])
async def test_if_match_means_the_same_as_if_version(
    client: httpx.AsyncClient, database: FakeDatabase, in_body: bool
) -> None:
    body = {"op": "delete_node", "cid": A} | ({"if_version": B} if in_body else {})
    await client.post(OPERATIONS, json=body, headers={"If-Match": f'"{B}"'})
    assert database.call[0] == DeleteNode(ALICE, False, BOB)


async def test_a_media_type_may_name_its_charset(client: httpx.AsyncClient) -> None:
    headers = {"content-type": 'Application/JSON; charset="UTF-8"'}
    answer = await client.post(OPERATIONS, content=b'{"op": "create_node"}', headers=headers)
    assert answer.status_code == 201


async def test_a_colon_in_a_text_is_no_repeated_key(client: httpx.AsyncClient) -> None:
    body = {"op": "create_node", "properties": {"url": "http://a:b"}}
    assert (await client.post(OPERATIONS, json=body)).status_code == 201


LEADER = {"node_id": "node2", "address": "127.0.0.1:8081"}


async def test_a_creation_is_redirected_with_its_nonce(
    client: httpx.AsyncClient, database: FakeDatabase
) -> None:
    database.failure = NotLeader("node2 leads", leader=LEADER, nonce="ab" * 16)
    answer = await client.post(f"{OPERATIONS}?timeout_ms=900", json=CREATE)
    assert answer.status_code == 307
    assert answer.headers["location"] == (
        f"http://127.0.0.1:8081/v1/operations?timeout_ms=900&nonce={'ab' * 16}"
    )
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "not_leader"
    assert answer.json()["leader"] == LEADER


async def test_a_second_redirect_keeps_the_nonce_of_the_first(
    client: httpx.AsyncClient, database: FakeDatabase
) -> None:
    nonce = "cd" * 16
    database.failure = NotLeader("node2 leads", leader=LEADER, nonce=nonce)
    answer = await client.post(f"{OPERATIONS}?nonce={nonce}", json=CREATE)
    assert answer.headers["location"] == f"http://127.0.0.1:8081/v1/operations?nonce={nonce}"


async def test_a_change_is_redirected_as_it_is(
    client: httpx.AsyncClient, database: FakeDatabase
) -> None:
    database.failure = NotLeader("node2 leads", leader=LEADER)
    answer = await client.post(OPERATIONS, json={"op": "delete_node", "cid": A})
    assert answer.headers["location"] == "http://127.0.0.1:8081/v1/operations"


async def test_a_redirect_to_nobody_is_no_redirect(
    client: httpx.AsyncClient, database: FakeDatabase
) -> None:
    database.failure = NotLeader("somebody leads", leader=None)
    answer = await client.post(OPERATIONS, json=CREATE)
    assert (answer.status_code, answer.json()["code"]) == (503, "no_leader")
    assert answer.headers["retry-after"] == "1"


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (NotFound("gone"), 404, "not_found"),
        (PreconditionFailed("it has another version", version=A), 412, "precondition_failed"),
        (HasEdges("it has 3 edges"), 409, "has_edges"),
        (Conflict("lost"), 409, "conflict"),
        (NoLeader("nobody leads"), 503, "no_leader"),
        (Overloaded("too much"), 503, "overloaded"),
        (OutcomeUnknown("no answer in time"), 504, "timeout"),
        (StorageFull("no room"), 507, "storage_full"),
    ],
)
async def test_what_the_database_refuses_becomes_its_problem(
    client: httpx.AsyncClient,
    database: FakeDatabase,
    failure: Exception,
    status: int,
    code: str,
) -> None:
    database.failure = failure
    answer = await client.post(OPERATIONS, json=CREATE)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.json()["detail"] == str(failure)
    assert ("retry-after" in answer.headers) == (status == 503)


async def test_an_error_s_own_fields_are_in_the_problem(
    client: httpx.AsyncClient, database: FakeDatabase
) -> None:
    database.failure = PreconditionFailed("changed", version=b"\x01", seen={1})
    problem = (await client.post(OPERATIONS, json=CREATE)).json()
    assert (problem["version"], problem["seen"]) == ("01", [1])


@pytest.mark.parametrize(
    "bug", [KeyError("secret"), RecursionError(), StorageFailed("disk"), InternalError("deep")]
)
async def test_a_bug_is_logged_under_an_id_and_told_without_detail(
    client: httpx.AsyncClient,
    database: FakeDatabase,
    caplog: pytest.LogCaptureFixture,
    bug: Exception,
) -> None:
    database.failure = bug
    answer = await client.post(OPERATIONS, json=CREATE)
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (500, "internal")
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    [record] = caplog.records
    assert problem["id"] in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[1] is bug


async def test_a_bug_of_another_node_keeps_the_id_of_its_log(
    client: httpx.AsyncClient, database: FakeDatabase
) -> None:
    database.failure = InternalError("elsewhere", id="beef")
    assert (await client.post(OPERATIONS, json=CREATE)).json()["id"] == "beef"


LONG: list[Any] = [{}] + [1] * 1_000
"""More items than the bytes of an entity in these tests; the first of them is no value."""


async def test_lists_longer_than_an_entity_are_refused_without_a_look_at_them(
    client: httpx.AsyncClient, database: FakeDatabase
) -> None:
    bodies = [
        {"op": "create_node", "properties": {"a": LONG}},
        {"op": "update_edge", "cid": A, "properties": {"a": LONG[:500], "b": LONG[500:]}},
    ]
    for body in bodies:
        problem = (await client.post(OPERATIONS, json=body)).json()
        assert (problem["code"], problem["name"]) == ("too_large", "entity_bytes_max")
        assert problem["limit"] == 1_000
    assert not database.calls


async def test_in_a_batch_a_list_that_is_too_long_fails_its_operation_alone(
    client: httpx.AsyncClient, database: FakeDatabase
) -> None:
    operations = [{"op": "create_node", "properties": {"a": LONG}}, CREATE]
    answer = await client.post(f"{OPERATIONS}/batch", json={"operations": operations})
    failed, done = answer.json()["results"]
    assert failed["error"]["name"] == "entity_bytes_max"
    assert "cid" in done


async def test_a_transaction_names_the_operation_whose_list_is_too_long(
    client: httpx.AsyncClient, database: FakeDatabase
) -> None:
    operations = [CREATE, {"op": "create_node", "properties": {"a": LONG}}]
    problem = (await client.post("/v1/transactions", json={"operations": operations})).json()
    assert (problem["name"], problem["index"]) == ("entity_bytes_max", 1)
    assert not database.calls
