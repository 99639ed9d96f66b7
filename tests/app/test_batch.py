from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from app.batch import BYTES_PER_TURN, read_ndjson_batch, refuse_repeated_keys
from app.rendering import batch_answer
from app.schemas.operations import BatchCreateNode
from cluster_core.errors import InvalidRequest, KotobaError, NotFound
from cluster_core.graph.cid import cid_text
from cluster_core.graph.operations import BatchOperation, CreateEdge, CreateNode, OperationResult
from tests.app.asgi import while_others_run
from tests.app.fake_database import TIMESTAMP, TIMESTAMP_TEXT, FakeDatabase, digest_of

BATCH = "/v1/operations/batch"
NDJSON = {"content-type": "application/x-ndjson"}
NODE: dict[str, Any] = {"op": "create_node"}
A = cid_text(digest_of("alice"))


def edge(source: str, target: str) -> dict[str, Any]:
    return {"op": "create_edge", "label": "KNOWS", "source_cid": source, "target_cid": target}


async def send(client: httpx.AsyncClient, *operations: Any) -> dict[str, Any]:
    answer = await client.post(BATCH, json={"operations": operations})
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    assert document["succeeded"] + document["failed"] == len(document["results"])
    return document


def codes(document: dict[str, Any]) -> list[str]:
    return [r["error"]["code"] if "error" in r else "ok" for r in document["results"]]


async def test_all_operations_go_in_one_call_and_come_back_in_order(
    client: httpx.AsyncClient, database: FakeDatabase
) -> None:
    database.failing[1] = NotFound("gone")
    document = await send(client, NODE, {"op": "delete_node", "cid": A}, NODE)
    assert codes(document) == ["ok", "not_found", "ok"]
    assert document["results"][0] == {
        "cid": cid_text(digest_of("new")),
        "version": cid_text(digest_of("version")),
        "partition": 17,
        "timestamp": TIMESTAMP_TEXT,
    }
    assert document["results"][1]["error"]["detail"] == "gone"
    assert (document["succeeded"], document["failed"]) == (2, 1)
    assert len(database.call[0]) == 3


async def test_the_session_is_that_of_the_last_write(client: httpx.AsyncClient) -> None:
    answer = await client.post(BATCH, json={"operations": [NODE]})
    assert answer.headers["kotoba-session"] == TIMESTAMP_TEXT


async def test_options_reach_the_database(
    client: httpx.AsyncClient, database: FakeDatabase
) -> None:
    headers = {"Idempotency-Key": "k"}
    await client.post(
        f"{BATCH}?consistency=eventual&timeout_ms=9", json={"operations": [NODE]}, headers=headers
    )
    assert database.call[1] == {
        "consistency": "eventual",
        "idempotency_key": "k",
        "principal": "",
        "timeout_ms": 9,
    }


async def test_an_empty_batch_does_nothing(
    client: httpx.AsyncClient, database: FakeDatabase
) -> None:
    assert await send(client) == {"results": [], "succeeded": 0, "failed": 0}
    assert not database.calls


async def test_references_are_left_for_the_database_to_fill_in(
    client: httpx.AsyncClient, database: FakeDatabase
) -> None:
    document = await send(client, {**NODE, "ref": "a"}, {**NODE, "ref": "b"}, edge("$a", "$b"))
    assert codes(document) == ["ok", "ok", "ok"]
    assert database.call[0] == [
        BatchOperation(CreateNode((), {}), "a", {}),
        BatchOperation(CreateNode((), {}), "b", {}),
        BatchOperation(
            CreateEdge("KNOWS", b"", b"", {}), None, {"source_cid": "a", "target_cid": "b"}
        ),
    ]


async def test_a_malformed_operation_fails_alone(
    client: httpx.AsyncClient, database: FakeDatabase
) -> None:
    document = await send(client, NODE, {"op": "drop"}, {**NODE, "properties": {"a": {}}}, 5, NODE)
    assert codes(document) == ["ok", "invalid_request", "invalid_request", "invalid_request", "ok"]
    assert document["results"][1]["error"]["errors"][0]["where"] == "op"
    assert document["results"][2]["error"]["errors"][0]["where"] == "properties.a"
    assert len(database.call[0]) == 2


async def test_who_names_a_malformed_operation_fails_for_it(
    client: httpx.AsyncClient, database: FakeDatabase
) -> None:
    bad = {**NODE, "ref": "a", "labels": 5}
    document = await send(
        client, bad, {**edge("$a", A), "ref": "e"}, {"op": "delete_edge", "cid": "$e"}
    )
    assert codes(document) == ["invalid_request", "dependency_failed", "dependency_failed"]
    assert document["results"][2]["error"]["ref"] == "e"
    assert not database.calls


async def test_who_names_an_operation_that_fails_at_the_database_fails_for_it(
    client: httpx.AsyncClient, database: FakeDatabase
) -> None:
    database.failing[0] = NotFound("gone")
    document = await send(client, {**NODE, "ref": "a"}, edge("$a", A))
    assert codes(document) == ["not_found", "dependency_failed"]


async def test_a_reference_must_name_an_earlier_operation(client: httpx.AsyncClient) -> None:
    document = await send(client, edge("$a", A), {**NODE, "ref": "a"})
    assert codes(document) == ["invalid_request", "ok"]
    assert "$a names no earlier operation" in document["results"][0]["error"]["detail"]


async def test_a_reference_is_given_once_and_stays_with_the_first(
    client: httpx.AsyncClient, database: FakeDatabase
) -> None:
    document = await send(client, {**NODE, "ref": "a"}, {**NODE, "ref": "a"}, edge("$a", "$a"))
    assert codes(document) == ["ok", "invalid_request", "ok"]


async def test_lines_are_operations_too(client: httpx.AsyncClient, database: FakeDatabase) -> None:
    lines = [json.dumps({**NODE, "ref": "a"}), "", json.dumps(edge("$a", A)) + "\r", "  "]
    answer = await client.post(BATCH, content="\n".join(lines), headers=NDJSON)
    assert codes(answer.json()) == ["ok", "ok"]
    assert len(database.call[0]) == 2


async def test_what_lies_between_lines_is_nothing_however_long() -> None:
    blank = b" \r\n" * BYTES_PER_TURN
    line = json.dumps(NODE).encode()
    lines = await read_ndjson_batch(blank + line + blank + line + b"\n" + line + blank, 3)
    assert [isinstance(each, BatchCreateNode) for each in lines] == [True] * 3
    assert await read_ndjson_batch(blank, 3) == []


async def test_lines_are_counted_before_one_is_read(client: httpx.AsyncClient) -> None:
    answer = await client.post(BATCH, content=b"{\n" * 6, headers=NDJSON)
    assert answer.status_code == 413
    assert (answer.json()["name"], answer.json()["limit"]) == ("batch_operations_max", 5)


async def test_large_batches_leave_others_their_turn() -> None:
    """So does the search for their lines, and the writing of their answer."""
    done = OperationResult(digest_of("a"), digest_of("a'"), 1, TIMESTAMP, True)
    results: list[OperationResult | KotobaError] = [done] * 5_000
    answer = await while_others_run(batch_answer([*results, NotFound("gone")]))
    document = json.loads(answer.body)
    assert (document["succeeded"], document["failed"]) == (5_000, 1)
    assert document["results"][4_999]["cid"] == cid_text(digest_of("a"))
    assert document["results"][5_000]["error"]["code"] == "not_found"
    await while_others_run(read_ndjson_batch(b"\n" * (20 * BYTES_PER_TURN), 5))


async def test_a_malformed_line_fails_alone(
    client: httpx.AsyncClient, database: FakeDatabase
) -> None:
    good = json.dumps(NODE).encode()
    lines = [good, b'{"op": ', b"\xff", b'{"op": "create_node", "op": "create_node"}', good]
    answer = await client.post(BATCH, content=b"\n".join(lines), headers=NDJSON)
    assert codes(answer.json()) == ["ok", *["invalid_request"] * 3, "ok"]
    assert len(database.call[0]) == 2


async def test_a_repeated_key_spoils_the_whole_document(client: httpx.AsyncClient) -> None:
    body = b'{"operations": [{"op": "create_node", "properties": {"a": 1, "a": 2}}]}'
    answer = await client.post(BATCH, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert "'a' stands twice" in answer.json()["detail"]


def test_a_repeated_key_is_found_among_very_many() -> None:
    """Of so many, comparing each with each other would not end."""
    keys = ", ".join(f'"{n}": 1' for n in range(200_000))
    with pytest.raises(InvalidRequest, match="'199999' stands twice"):
        refuse_repeated_keys(f'{{{keys}, "199999": 1}}'.encode())
