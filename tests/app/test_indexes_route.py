from __future__ import annotations

from typing import Any

import httpx
import pytest

from app.schemas.indexes import Index, Indexes
from app.schemas.queries import PlanAnswer
from cluster_core.errors import NoLeader
from tests.app.fake_database import FakeDatabase

BY_NAME = {"label": "Person", "property": "name"}


async def test_a_new_index_is_201_and_a_known_one_200(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/indexes", json=BY_NAME)
    assert answer.status_code == 201
    document = answer.json()
    assert document == {
        **BY_NAME,
        "state": "building",
        "partitions_done": 3,
        "partition_count": 64,
        "since": None,
    }
    assert Index.model_validate(document).model_dump(mode="json") == document
    assert (await client.post("/v1/indexes", json=BY_NAME)).status_code == 200


async def test_the_declared_indexes_are_listed(
    client: httpx.AsyncClient, database: FakeDatabase
) -> None:
    assert (await client.get("/v1/indexes")).json() == {"indexes": []}
    await client.post("/v1/indexes", json=BY_NAME)
    (index,) = database.declared.values()
    index.state, index.since = "ready", 1_795_447_000_123 << 16 | 7
    answer = await client.get("/v1/indexes")
    assert answer.headers["cache-control"] == "no-store"
    document = answer.json()
    assert document["indexes"][0]["since"] == "1795447000123.00007"
    assert Indexes.model_validate(document).model_dump(mode="json") == document


async def test_a_dropped_index_is_gone_and_dropping_it_again_not_found(
    client: httpx.AsyncClient,
) -> None:
    await client.post("/v1/indexes", json=BY_NAME)
    answer = await client.delete("/v1/indexes/Person/name")
    assert answer.status_code == 200
    assert answer.json()["label"] == "Person"
    again = await client.delete("/v1/indexes/Person/name")
    assert again.status_code == 404
    assert again.json()["code"] == "not_found"


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("a%2Fb/c%20d", ("a/b", "c d")),
        ("%C3%A9/%25", ("é", "%")),
    ],
)
async def test_names_in_the_path_are_decoded_one_by_one(
    client: httpx.AsyncClient, path: str, names: tuple[str, str]
) -> None:
    await client.post("/v1/indexes", json={"label": names[0], "property": names[1]})
    assert (await client.delete(f"/v1/indexes/{path}")).status_code == 200


@pytest.mark.parametrize("path", ["a/b/c", "%FF/a"])
async def test_a_path_that_is_not_two_names_is_not_found(
    client: httpx.AsyncClient, path: str
) -> None:
    assert (await client.delete(f"/v1/indexes/{path}")).status_code == 404


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({"label": "Person"}, "property"),
        ({"label": 1, "property": "name"}, "label"),
        ({**BY_NAME, "unique": True}, "unique"),
    ],
)
async def test_a_bad_declaration_says_where(
    client: httpx.AsyncClient, database: FakeDatabase, body: dict[str, Any], where: str
) -> None:
    answer = await client.post("/v1/indexes", json=body)
    assert answer.status_code == 422
    assert [error["where"] for error in answer.json()["errors"]] == [where]
    assert not database.calls


async def test_parameters_and_other_methods_are_refused(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/indexes?limit=3")).status_code == 422
    assert (await client.post("/v1/indexes?limit=3", json=BY_NAME)).status_code == 422
    assert (await client.delete("/v1/indexes/a/b?force=true")).status_code == 422
    answer = await client.put("/v1/indexes", json=BY_NAME)
    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET, HEAD, POST"


async def test_without_a_leader_it_is_503(
    client: httpx.AsyncClient, database: FakeDatabase
) -> None:
    database.failure = NoLeader("no leader is known")
    answer = await client.post("/v1/indexes", json=BY_NAME)
    assert answer.status_code == 503
    assert answer.headers["retry-after"]


async def test_explain_answers_with_the_plan(
    client: httpx.AsyncClient, database: FakeDatabase
) -> None:
    query = {"kind": "find_nodes", "labels": ["Person"], "order_by": [{"property": "age"}]}
    body = {"query": query, "as_of": "1795447000123.00007"}
    answer = await client.post("/v1/query/explain", json=body)
    assert answer.status_code == 200
    document = answer.json()
    assert document["plan"]["access"] == "label_index"
    assert document["plan"]["index"] == "Person"
    assert document["plan"]["order"] == "sort"
    assert PlanAnswer.model_validate(document).model_dump(mode="json") == document
    assert database.call[1] == {"as_of": 1_795_447_000_123 << 16 | 7}


async def test_explain_refuses_what_a_query_refuses(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/query/explain", json={"query": {"kind": "find_edge"}})
    assert answer.status_code == 422
    answer = await client.post(
        "/v1/query/explain", json={"query": {"kind": "count", "colour": "red"}}
    )
    assert answer.json()["errors"] == [{"where": "query.colour", "why": "is not known here"}]
