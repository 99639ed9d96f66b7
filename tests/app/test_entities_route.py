from __future__ import annotations

import httpx
import pytest

from cluster_core.graph.cid import cid_text
from cluster_core.query.plan import Blocks, Get, History, Neighbours
from cluster_core.query.results import VersionRow
from tests.app.fake_database import (
    TIMESTAMP,
    TIMESTAMP_TEXT,
    FakeDatabase,
    digest_of,
    edge,
    vertex,
)

ALICE = vertex("alice", age=30)
KNOWS = edge("knows", "alice", "bob")
A, K = cid_text(ALICE.digest), cid_text(KNOWS.digest)
A_VERSION, K_VERSION = cid_text(ALICE.version), cid_text(KNOWS.version)


@pytest.fixture(autouse=True)
def _graph(database: FakeDatabase) -> None:
    for entity in (ALICE, KNOWS):
        database.entities[entity.digest] = entity
        database.entities[entity.version] = entity


@pytest.mark.parametrize(
    ("path", "version"), [(f"/v1/nodes/{A}", A_VERSION), (f"/v1/edges/{K}", K_VERSION)]
)
async def test_an_entity_comes_with_its_version_as_its_tag(
    client: httpx.AsyncClient, path: str, version: str
) -> None:
    answer = await client.get(path)
    assert answer.status_code == 200
    assert answer.json()["version"] == version
    assert answer.headers["etag"] == f'"{version}"'
    assert answer.headers["kotoba-session"] == TIMESTAMP_TEXT
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("path", [f"/v1/nodes/{A}", f"/v1/edges/{K}"])
async def test_options_of_a_read_reach_the_database(
    client: httpx.AsyncClient, database: FakeDatabase, path: str
) -> None:
    query = f"consistency=eventual&as_of={TIMESTAMP_TEXT}&max_staleness_ms=50&timeout_ms=9"
    await client.get(f"{path}?{query}", headers={"Kotoba-Session": TIMESTAMP_TEXT})
    assert database.call[1] == {
        "consistency": "eventual",
        "as_of": TIMESTAMP,
        "session": TIMESTAMP,
        "max_staleness_ms": 50,
        "timeout_ms": 9,
    }


@pytest.mark.parametrize("path", [f"/v1/nodes/{A}", f"/v1/edges/{K}", "/v1/status", "/livez"])
async def test_head_has_the_headers_of_get_and_no_body(
    client: httpx.AsyncClient, path: str
) -> None:
    got, head = await client.get(path), await client.head(path)
    assert head.status_code == 200
    assert head.content == b""
    assert head.headers == got.headers


async def test_one_version_of_a_node_can_be_asked_for(
    client: httpx.AsyncClient, database: FakeDatabase
) -> None:
    answer = await client.get(f"/v1/nodes/{A}?version={A_VERSION}")
    assert answer.status_code == 200
    assert database.call[0] == Get(cids=(ALICE.version,), exact=True)


async def test_a_version_of_something_else_is_not_found(client: httpx.AsyncClient) -> None:
    answer = await client.get(f"/v1/nodes/{A}?version={cid_text(digest_of('other'))}")
    assert answer.status_code == 404
    assert "has no version" in answer.json()["detail"]


async def test_an_edge_is_no_node_and_says_where_it_is(client: httpx.AsyncClient) -> None:
    answer = await client.get(f"/v1/nodes/{K}")
    assert answer.status_code == 404
    assert "/v1/edges" in answer.json()["detail"]
    answer = await client.get(f"/v1/edges/{A}")
    assert "/v1/nodes" in answer.json()["detail"]


async def test_an_edge_takes_the_hint_of_its_source(
    client: httpx.AsyncClient, database: FakeDatabase
) -> None:
    await client.get(f"/v1/edges/{K}?source_cid={A}")
    assert database.call[0] == Get(cids=(KNOWS.digest,), source=ALICE.digest)


async def test_the_edges_of_a_node_come_in_pages(
    client: httpx.AsyncClient, database: FakeDatabase
) -> None:
    database.rows, database.cursor = [KNOWS], "next"
    answer = await client.get(f"/v1/nodes/{A}/edges?direction=both&label=KNOWS&limit=1&cursor=c")
    assert database.call[0] == Neighbours(
        vertex=ALICE.digest, direction="both", label="KNOWS", limit=1, cursor="c"
    )
    assert answer.json()["rows"][0]["cid"] == K
    assert answer.json()["cursor"] == "next"


async def test_the_history_of_a_node_includes_its_deletion(
    client: httpx.AsyncClient, database: FakeDatabase
) -> None:
    database.rows = [
        VersionRow(timestamp=TIMESTAMP + 1, entity=None),
        VersionRow(timestamp=TIMESTAMP, entity=ALICE),
    ]
    answer = await client.get(f"/v1/nodes/{A}/history?limit=2")
    assert database.call[0] == History(digest=ALICE.digest, limit=2)
    rows = answer.json()["rows"]
    assert rows[0] == {"timestamp": "1795447000123.00008", "deleted": True, "entity": None}
    assert (rows[1]["deleted"], rows[1]["entity"]["cid"]) == (False, A)


async def test_the_history_of_an_edge_is_none_of_a_node(
    client: httpx.AsyncClient, database: FakeDatabase
) -> None:
    database.rows = [VersionRow(timestamp=TIMESTAMP, entity=KNOWS)]
    assert (await client.get(f"/v1/nodes/{K}/history")).status_code == 404


async def test_a_block_is_bytes_that_may_be_kept_for_ever(
    client: httpx.AsyncClient, database: FakeDatabase
) -> None:
    database.blocks_here = {ALICE.version: b"\xa0"}
    answer = await client.get(f"/v1/blocks/{A_VERSION}")
    assert database.call[0] == Blocks(cids=(ALICE.version,), sources=(None,))
    assert answer.content == b"\xa0"
    assert answer.headers["content-type"] == "application/vnd.ipld.dag-cbor"
    assert "immutable" in answer.headers["cache-control"]


async def test_a_block_is_read_where_it_is_said_to_be_and_from_any_replica(
    client: httpx.AsyncClient, database: FakeDatabase
) -> None:
    database.blocks_here = {ALICE.version: b"\xa0"}
    answer = await client.get(f"/v1/blocks/{A_VERSION}?source_cid={A}")
    assert answer.status_code == 200
    asked, how = database.call
    assert asked == Blocks(cids=(ALICE.version,), sources=(ALICE.digest,))
    assert how["consistency"] == "eventual"


async def test_only_a_strong_read_says_that_a_block_is_nowhere(
    client: httpx.AsyncClient, database: FakeDatabase
) -> None:
    answer = await client.get(f"/v1/blocks/{A_VERSION}")
    assert answer.status_code == 404
    assert [how["consistency"] for _, how in database.calls] == ["eventual", "strong"]


async def test_a_block_that_is_not_where_it_is_said_to_be_is_looked_for_everywhere(
    client: httpx.AsyncClient, database: FakeDatabase
) -> None:
    assert (await client.get(f"/v1/blocks/{A_VERSION}?source_cid={K}")).status_code == 404
    looked_for = [(asked.sources, how["consistency"]) for asked, how in database.calls]
    assert looked_for == [
        ((KNOWS.digest,), "eventual"),
        ((KNOWS.digest,), "strong"),
        ((None,), "eventual"),
        ((None,), "strong"),
    ]
