from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from app.rendering import query_answer
from cluster_core.graph.cid import cid_text
from cluster_core.graph.entities import Vertex
from cluster_core.graph.values import Link
from cluster_core.query.plan import (
    AllOf,
    AnyOf,
    Comparison,
    Count,
    FindEdges,
    FindNodes,
    Get,
    Negation,
    OrderBy,
    Query,
    ShortestPath,
    Traverse,
)
from cluster_core.query.results import (
    CountRow,
    PathRow,
    Row,
    TraversedEdge,
    TraversedVertex,
)
from tests.app.asgi import while_others_run
from tests.app.fake_database import (
    TIMESTAMP,
    TIMESTAMP_TEXT,
    FakeDatabase,
    digest_of,
    edge,
    vertex,
)

ALICE, BOB = digest_of("alice"), digest_of("bob")
A, B = cid_text(ALICE), cid_text(BOB)
QUERY = "/v1/query"

ACCEPTED: list[tuple[dict[str, Any], Query]] = [
    ({"kind": "get", "cids": [A, B]}, Get(cids=(ALICE, BOB))),
    (
        {
            "kind": "find_nodes",
            "labels": ["Person"],
            "where": {"property": "age", "op": "ge", "value": 30},
            "order_by": [{"property": "age", "descending": True}],
            "limit": 10,
            "cursor": None,
        },
        FindNodes(
            labels=("Person",),
            where=Comparison("age", "ge", 30),
            order_by=(OrderBy("age", True),),
            limit=10,
        ),
    ),
    (
        {"kind": "find_edges", "label": "KNOWS", "where": None, "limit": 100},
        FindEdges(label="KNOWS", limit=100),
    ),
    (
        {
            "kind": "find_nodes",
            "where": {
                "and": [
                    {"or": [{"property": "a", "op": "exists"}]},
                    {"not": {"property": "b", "op": "in", "value": [1, {"/": {"bytes": "AA"}}]}},
                ]
            },
        },
        FindNodes(
            where=AllOf(
                (
                    AnyOf((Comparison("a", "exists"),)),
                    Negation(Comparison("b", "in", [1, b"\x00"])),
                )
            )
        ),
    ),
    (
        {"kind": "count", "of": "nodes", "labels": ["Person"], "where": None, "group_by": "@label"},
        Count(of="nodes", labels=("Person",), group_by="@label"),
    ),
    (
        {
            "kind": "traverse",
            "start": [A],
            "direction": "both",
            "edge_labels": ["KNOWS"],
            "min_depth": 1,
            "max_depth": 3,
            "where_node": {"property": "a", "op": "eq", "value": 1},
            "where_edge": {"property": "b", "op": "ne", "value": None},
            "limit": 1000,
            "return": "edges",
        },
        Traverse(
            start=(ALICE,),
            direction="both",
            edge_labels=("KNOWS",),
            min_depth=1,
            max_depth=3,
            where_node=Comparison("a", "eq", 1),
            where_edge=Comparison("b", "ne", None),
            limit=1000,
            return_="edges",
        ),
    ),
    (
        {
            "kind": "shortest_path",
            "source": A,
            "target": B,
            "direction": "both",
            "edge_labels": None,
            "max_depth": 15,
            "weight": "km",
        },
        ShortestPath(source=ALICE, target=BOB, direction="both", weight="km"),
    ),
]


@pytest.mark.parametrize(("body", "query"), ACCEPTED, ids=[body["kind"] for body, _ in ACCEPTED])
async def test_a_query_reaches_the_database_as_it_was_meant(
    client: httpx.AsyncClient, database: FakeDatabase, body: dict[str, Any], query: Query
) -> None:
    answer = await client.post(QUERY, json={"query": body})
    assert answer.status_code == 200, answer.text
    assert database.call[0] == query


async def test_without_options_it_is_strong(
    client: httpx.AsyncClient, database: FakeDatabase
) -> None:
    await client.post(QUERY, json={"query": {"kind": "find_nodes"}})
    assert database.call[1] == {
        "consistency": "strong",
        "as_of": None,
        "session": None,
        "max_staleness_ms": None,
        "timeout_ms": None,
    }


async def test_options_reach_the_database(
    client: httpx.AsyncClient, database: FakeDatabase
) -> None:
    body = {
        "query": {"kind": "find_nodes"},
        "consistency": "read_your_writes",
        "as_of": "1970-01-01T00:00:01Z",
        "session": TIMESTAMP_TEXT,
        "max_staleness_ms": 0,
        "timeout_ms": 5000,
    }
    await client.post(QUERY, json=body)
    how = database.call[1]
    assert how["as_of"] >> 16 == 1000
    assert how | {"as_of": 0} == {
        "consistency": "read_your_writes",
        "as_of": 0,
        "session": TIMESTAMP,
        "max_staleness_ms": 0,
        "timeout_ms": 5000,
    }


async def test_the_session_may_come_in_the_header(
    client: httpx.AsyncClient, database: FakeDatabase
) -> None:
    headers = {"Kotoba-Session": TIMESTAMP_TEXT}
    await client.post(QUERY, json={"query": {"kind": "find_nodes"}}, headers=headers)
    assert database.call[1]["session"] == TIMESTAMP


async def test_the_answer_is_the_contract_s(
    client: httpx.AsyncClient, database: FakeDatabase
) -> None:
    link = Link(b"\x01\x71\x12\x20" + ALICE)
    database.rows = [vertex("alice", age=30, key=b"\x00", friend=link, many=[1, link])]
    database.cursor = "next"
    answer = await client.post(QUERY, json={"query": {"kind": "find_nodes"}})
    assert answer.headers["kotoba-session"] == TIMESTAMP_TEXT
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json() == {
        "rows": [
            {
                "cid": A,
                "version": cid_text(digest_of("alice'")),
                "labels": ["Person"],
                "properties": {
                    "age": 30,
                    "key": {"/": {"bytes": "AA"}},
                    "friend": {"/": A},
                    "many": [1, {"/": A}],
                },
                "created_at": TIMESTAMP_TEXT,
                "updated_at": TIMESTAMP_TEXT,
            }
        ],
        "cursor": "next",
        "truncated": False,
        "bound": None,
        "timestamp": TIMESTAMP_TEXT,
        "statistics": {
            "partitions": 64,
            "cluster_nodes": 3,
            "scanned": 9,
            "elapsed_ms": 1.235,
            "consistency": "strong",
            "staleness_ms": None,
            "index": None,
        },
    }


KNOWS = edge("knows", "alice", "bob", since=2020)

ROWS: list[tuple[Row, dict[str, Any]]] = [
    (CountRow(count=3, group=b"\x00"), {"count": 3, "group": {"/": {"bytes": "AA"}}}),
    (
        KNOWS,
        {
            "cid": cid_text(KNOWS.digest),
            "version": cid_text(KNOWS.version),
            "label": "KNOWS",
            "source_cid": A,
            "target_cid": B,
            "properties": {"since": 2020},
            "created_at": TIMESTAMP_TEXT,
            "updated_at": TIMESTAMP_TEXT,
        },
    ),
]


@pytest.mark.parametrize(("row", "document"), ROWS)
async def test_rows_of_other_kinds(
    client: httpx.AsyncClient, database: FakeDatabase, row: Row, document: dict[str, Any]
) -> None:
    database.rows = [row]
    answer = await client.post(QUERY, json={"query": {"kind": "find_edges"}})
    assert answer.json()["rows"] == [document]


async def test_rows_of_walks(client: httpx.AsyncClient, database: FakeDatabase) -> None:
    alice, bob = vertex("alice"), vertex("bob")
    database.rows = [
        TraversedVertex(node=alice, depth=0, via=None),
        TraversedVertex(node=bob, depth=1, via=KNOWS.digest),
        TraversedEdge(edge=KNOWS, depth=1),
        PathRow(nodes=[alice, bob], edges=[KNOWS], length=1.5),
    ]
    rows = (await client.post(QUERY, json={"query": {"kind": "find_nodes"}})).json()["rows"]
    assert [row.get("via") for row in rows[:2]] == [None, cid_text(KNOWS.digest)]
    assert rows[1]["node"]["cid"] == B
    assert rows[2]["edge"]["source_cid"] == A
    assert [node["cid"] for node in rows[3]["nodes"]] == [A, B]
    assert rows[3]["length"] == 1.5


@pytest.mark.parametrize("rows", [[vertex("alice")] * 5_000, [vertex("a", a="x" * 300_000)] * 20])
async def test_rows_that_are_many_or_large_leave_others_their_turn(rows: list[Vertex]) -> None:
    database = FakeDatabase()
    database.rows = list(rows)
    result = await database.execute_query(FindNodes())
    answer = await while_others_run(query_answer(result))
    document = json.loads(answer.body)
    assert len(document["rows"]) == len(rows)
    assert document["rows"][-1]["cid"] == cid_text(rows[-1].digest)
    assert document["timestamp"] == TIMESTAMP_TEXT
