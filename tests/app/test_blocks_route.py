"""``POST /v1/blocks``: many blocks as one archive."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import httpx
import libipld
import pytest

from app.car import archived_blocks
from cluster_core.graph.blocks import encode_content
from cluster_core.graph.cid import cid_bytes, cid_text
from cluster_core.query.plan import Blocks
from tests.app.fake_database import TIMESTAMP, TIMESTAMP_TEXT, FakeDatabase

BLOCKS = [encode_content({"n": n, "text": "x" * n}) for n in (1, 20, 300)]
DIGESTS = [sha256(block).digest() for block in BLOCKS]
PAIRS = dict(zip(DIGESTS, BLOCKS, strict=True))
CIDS = [cid_text(digest) for digest in DIGESTS]


async def ask(client: httpx.AsyncClient, cids: list[str], **more: Any) -> httpx.Response:
    return await client.post("/v1/blocks", json={"cids": cids, **more})


async def test_blocks_come_as_an_archive_that_other_tools_read(
    client: httpx.AsyncClient, database: FakeDatabase
) -> None:
    database.blocks_here = PAIRS
    answer = await ask(client, CIDS[::-1])
    assert answer.headers["content-type"] == "application/vnd.ipld.car; version=1"
    assert answer.headers["cache-control"] == "no-store"
    assert "kotoba-truncated" not in answer.headers
    header, blocks = libipld.decode_car(answer.content)
    assert header == {"version": 1, "roots": [cid_bytes(digest) for digest in DIGESTS[::-1]]}
    assert [blocks[cid_bytes(digest)]["n"] for digest in DIGESTS] == [1, 20, 300]
    assert list(archived_blocks(answer.content)) == list(PAIRS.items())[::-1]


async def test_each_block_comes_once_and_what_is_nowhere_is_left_out(
    client: httpx.AsyncClient, database: FakeDatabase
) -> None:
    database.blocks_here = database.blocks = {DIGESTS[1]: BLOCKS[1]}
    answer = await ask(client, [*CIDS, *CIDS])
    assert list(archived_blocks(answer.content)) == [(DIGESTS[1], BLOCKS[1])]


async def test_only_what_is_not_here_takes_a_strong_read(
    client: httpx.AsyncClient, database: FakeDatabase
) -> None:
    database.blocks_here = {DIGESTS[1]: BLOCKS[1]}
    database.blocks = PAIRS
    answer = await client.post(
        "/v1/blocks",
        json={"cids": CIDS, "source_cids": [CIDS[0], None, None], "timeout_ms": 1_234},
        headers={"Kotoba-Session": TIMESTAMP_TEXT},
    )
    assert list(archived_blocks(answer.content)) == list(PAIRS.items())
    here, strong = database.calls
    assert here[0] == Blocks(cids=tuple(DIGESTS), sources=(DIGESTS[0], None, None))
    assert strong[0] == Blocks(cids=(DIGESTS[0], DIGESTS[2]), sources=(DIGESTS[0], None))
    assert [how["timeout_ms"] for _, how in database.calls] == [1_234, 1_234]
    assert [how["session"] for _, how in database.calls] == [None, TIMESTAMP]


@pytest.mark.parametrize("here", [PAIRS, {}, {DIGESTS[2]: BLOCKS[2]}])
async def test_an_archive_that_is_cut_says_so_and_tells_all_up_to_its_last_block(
    client: httpx.AsyncClient, database: FakeDatabase, here: dict[bytes, bytes]
) -> None:
    database.blocks_here, database.blocks, database.rows_max = here, PAIRS, 1
    told: list[bytes] = []
    while len(told) < len(CIDS):
        answer = await ask(client, CIDS[len(told) :])
        told += [digest for digest, _ in archived_blocks(answer.content)]
        is_cut = answer.headers.get("kotoba-truncated") == "bytes"
        assert is_cut == (len(told) < len(CIDS))
    assert told == DIGESTS


async def test_none_at_all_is_not_found(client: httpx.AsyncClient) -> None:
    answer = await ask(client, CIDS)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({}, "cids"),
        ({"cids": "x"}, "cids"),
        ({"cids": ["x"]}, "cids.0"),
        ({"cids": [CIDS[0], None]}, "cids.1"),
        ({"cids": CIDS, "source_cids": [CIDS[0]]}, "source_cids"),
        ({"cids": CIDS, "source_cids": []}, "source_cids"),
        ({"cids": CIDS, "source_cids": [CIDS[0], None, "x"]}, "source_cids.2"),
        ({"cids": CIDS, "consistency": "strong"}, "consistency"),
        ({"cids": CIDS, "timeout_ms": 0}, "timeout_ms"),
        ({"cids": CIDS, "timeout_ms": 60_001}, "timeout_ms"),
    ],
)
async def test_what_is_wrong_is_named(
    client: httpx.AsyncClient, database: FakeDatabase, body: dict[str, Any], where: str
) -> None:
    answer = await client.post("/v1/blocks", json=body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["where"] == where
    assert not database.calls


async def test_parameters_and_other_media_types_are_refused(client: httpx.AsyncClient) -> None:
    assert (await client.post("/v1/blocks?cid=1", json={"cids": CIDS})).status_code == 422
    assert (await client.post("/v1/blocks", content=b"{}")).status_code == 415
