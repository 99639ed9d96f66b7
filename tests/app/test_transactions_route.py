from __future__ import annotations

from typing import Any

import httpx
import pytest

from cluster_core.errors import Conflict, NotFound, PreconditionFailed
from cluster_core.graph.cid import cid_text
from cluster_core.graph.operations import BatchOperation, CreateEdge, CreateNode, UpdateNode
from tests.app.fake_database import TIMESTAMP_TEXT, FakeDatabase, digest_of

TRANSACTIONS = "/v1/transactions"
NODE: dict[str, Any] = {"op": "create_node"}
A = cid_text(digest_of("alice"))


async def send(client: httpx.AsyncClient, *operations: Any, **options: Any) -> httpx.Response:
    return await client.post(TRANSACTIONS, json={"operations": operations}, **options)


async def test_all_results_come_with_one_timestamp(
    client: httpx.AsyncClient, database: FakeDatabase
) -> None:
    answer = await send(client, NODE, {"op": "update_node", "cid": A})
    assert answer.status_code == 200
    assert answer.headers["kotoba-session"] == TIMESTAMP_TEXT
    assert answer.headers["cache-control"] == "no-store"
    document = answer.json()
    assert document.keys() == {"results", "timestamp"}
    assert document["timestamp"] == TIMESTAMP_TEXT
    assert document["results"][0] == {
        "cid": cid_text(digest_of("new")),
        "version": cid_text(digest_of("version")),
        "partition": 17,
        "timestamp": TIMESTAMP_TEXT,
    }
    assert [one["cid"] for one in document["results"]] == [cid_text(digest_of("new")), A]


async def test_refs_and_options_reach_the_database(
    client: httpx.AsyncClient, database: FakeDatabase
) -> None:
    edge = {"op": "create_edge", "label": "KNOWS", "source_cid": "$a", "target_cid": A}
    await send(
        client,
        {**NODE, "ref": "a"},
        edge,
        headers={"Idempotency-Key": "k"},
        params={"timeout_ms": 700},
    )
    operations, how = database.call
    assert operations == [
        BatchOperation(CreateNode(), "a"),
        BatchOperation(CreateEdge("KNOWS", b"", digest_of("alice")), None, {"source_cid": "a"}),
    ]
    assert how == {"idempotency_key": "k", "principal": "", "timeout_ms": 700}


async def test_an_update_that_only_guards_a_version_is_an_operation(
    client: httpx.AsyncClient, database: FakeDatabase
) -> None:
    await send(client, {"op": "update_node", "cid": A, "if_version": A})
    digest = digest_of("alice")
    assert database.call[0] == [BatchOperation(UpdateNode(digest, if_version=digest))]


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (NotFound("gone"), 404, "not_found"),
        (PreconditionFailed("other", version="v"), 412, "precondition_failed"),
        (Conflict("lost"), 409, "conflict"),
    ],
)
async def test_the_problem_of_the_first_operation_that_failed_has_its_index(
    client: httpx.AsyncClient, database: FakeDatabase, error: Any, status: int, code: str
) -> None:
    database.failing[1] = error
    answer = await send(client, NODE, NODE)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.json()["code"], answer.json()["index"]) == (code, 1)


@pytest.mark.parametrize(
    ("bad", "where"),
    [
        ({"op": "nothing"}, "operations.1.op"),
        ({"op": "create_node", "label": "x"}, "operations.1.label"),
        ({"op": "delete_node", "cid": "bafy"}, "operations.1.cid"),
        ({"op": "create_node", "properties": {"a": {}}}, "operations.1.properties.a"),
        ({"op": "delete_node"}, "operations.1.cid"),
        ("text", "operations.1"),
    ],
)
async def test_a_malformed_operation_refuses_all_and_says_which(
    client: httpx.AsyncClient, database: FakeDatabase, bad: Any, where: str
) -> None:
    answer = await send(client, NODE, bad)
    assert answer.status_code == 422
    document = answer.json()
    assert (document["code"], document["index"]) == ("invalid_request", 1)
    assert document["errors"][0]["where"].startswith(where)
    assert not database.calls


async def test_too_many_operations_are_too_large(
    client: httpx.AsyncClient, database: FakeDatabase
) -> None:
    answer = await send(client, *[NODE] * (database.config.limits.transaction_operations_max + 1))
    assert answer.status_code == 413
    assert answer.json()["limit"] == database.config.limits.transaction_operations_max
    assert "transaction" in answer.json()["detail"]
    assert answer.json()["setting"] == "--transaction-operations-max"


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"headers": {"If-Match": f'"{A}"'}}, 422),
        ({"params": {"consistency": "eventual"}}, 422),
        ({"params": {"forward": "true"}}, 422),
        ({"headers": {"content-type": "application/x-ndjson"}}, 415),
    ],
)
async def test_what_a_transaction_does_not_have_is_refused(
    client: httpx.AsyncClient, database: FakeDatabase, options: dict[str, Any], status: int
) -> None:
    answer = await send(client, NODE, **options)
    assert answer.status_code == status
    assert not database.calls
