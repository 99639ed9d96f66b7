from __future__ import annotations

import io
import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import libipld
import pytest

from app.bulk import api as api_module
from app.bulk import exporter as exporter_module
from app.bulk.api import Api
from app.bulk.exporter import Exported, Exporter
from app.bulk.progress import Meter
from app.car import BadBlock, CarWriter
from app.cli import client_app, run
from cluster_core.graph.blocks import digest_of, first_edge_block, first_node_block, next_block
from cluster_core.graph.cid import cid_bytes, cid_text
from cluster_core.graph.values import Link
from tests.app.bulk.fake_node import FakeNode

ALICE = first_node_block(["Person"], {"name": "Alice"}, b"a" * 16)
ALICE_2 = next_block(
    {"kind": "node", "labels": ["Person"], "properties": {"name": "Alice", "age": 30}},
    digest_of(ALICE),
    digest_of(ALICE),
)
BOB = first_node_block(
    ["Person"], {"photo": b"\x00", "friend": Link(cid_bytes(digest_of(ALICE)))}, b"b" * 16
)
KNOWS = first_edge_block("KNOWS", digest_of(ALICE), digest_of(BOB), {}, b"k" * 16)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_module, "_BACKOFF_S", 0.001)


def text_of(block: bytes) -> str:
    return cid_text(digest_of(block))


def page(rows: list[dict[str, Any]], cursor: str | None = None, **more: Any) -> dict[str, Any]:
    found = {"rows": rows, "cursor": cursor, "truncated": cursor is not None, "bound": "limit"}
    return found | {"timestamp": "7.00000"} | more


def pages_of_a_graph() -> list[dict[str, Any]]:
    alice = {"cid": text_of(ALICE), "version": text_of(ALICE_2), "properties": {"name": "Alice"}}
    bob = {"cid": text_of(BOB), "version": text_of(BOB), "properties": {}}
    knows = {
        "cid": text_of(KNOWS),
        "version": text_of(KNOWS),
        "source_cid": text_of(ALICE),
        "target_cid": text_of(BOB),
    }
    return [page([alice], "next"), page([bob]), page([knows])]


@pytest.fixture
def graph(node: FakeNode) -> FakeNode:
    node.answers = pages_of_a_graph()
    node.blocks = {text_of(block): block for block in (ALICE, ALICE_2, BOB, KNOWS)}
    return node


async def export(node: FakeNode, **streams: io.BytesIO) -> Exported:
    async with Api(node.url, connections=3, patience_s=1.0) as api:
        given = {"nodes": None, "edges": None, "car": None} | streams
        return await Exporter(api, Meter(None), connections=3).export(**given)


async def test_all_pages_are_of_one_snapshot(graph: FakeNode) -> None:
    nodes, edges = io.BytesIO(), io.BytesIO()
    done = await export(graph, nodes=nodes, edges=edges)
    assert (done.nodes, done.edges, done.timestamp) == (2, 1, "7.00000")
    asked = [one for one in graph.queries if one["query"]["kind"] != "count"]
    assert [(one["query"].get("cursor"), one.get("as_of")) for one in asked] == [
        (None, None),
        ("next", None),
        (None, "7.00000"),
    ]
    lines = [json.loads(line) for line in nodes.getvalue().splitlines()]
    assert [line["cid"] for line in lines] == [text_of(ALICE), text_of(BOB)]
    assert edges.getvalue().count(b"\n") == 1


async def test_an_archive_holds_every_version_and_other_tools_read_it(graph: FakeNode) -> None:
    car = io.BytesIO()
    done = await export(graph, car=car)
    header, blocks = libipld.decode_car(car.getvalue())
    assert header["version"] == 1
    assert set(blocks) >= {cid_bytes(digest_of(b)) for b in (ALICE, ALICE_2, BOB, KNOWS)}
    (root,) = header["roots"]
    manifest = blocks[root]
    assert manifest["counts"] == {"nodes": 2, "edges": 1, "blocks": len(blocks)}
    assert done.blocks == len(blocks) == 4 + 2 + 1
    assert manifest["timestamp"] == "7.00000"
    assert manifest["cluster"] == "c1"
    (index,) = manifest["nodes"]
    pages: Any = blocks[index]
    assert pages == [cid_bytes(digest_of(ALICE_2)), cid_bytes(digest_of(BOB))]
    # All of it is reached from the root.
    seen: set[bytes] = set()
    todo = [root]
    while todo:
        cid = todo.pop()
        if cid not in seen:
            seen.add(cid)
            todo += [link for link in _links(blocks[cid]) if link in blocks]
    assert seen == set(blocks)


def _links(content: Any) -> list[bytes]:
    if isinstance(content, bytes):
        return [content]
    inner = content.values() if isinstance(content, dict) else content
    return (
        [link for item in inner for link in _links(item)]
        if not isinstance(content, str | int)
        else []
    )


async def test_an_index_of_many_links_has_pages(
    graph: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter_module, "_INDEX_LINKS", 1)
    car = io.BytesIO()
    await export(graph, car=car)
    header, blocks = libipld.decode_car(car.getvalue())
    assert len(blocks[header["roots"][0]]["nodes"]) == 2


@pytest.mark.parametrize("blocks_max", [1, 2])
async def test_an_archive_is_the_same_however_its_blocks_come(
    graph: FakeNode, monkeypatch: pytest.MonkeyPatch, blocks_max: int
) -> None:
    whole, cut, apart = io.BytesIO(), io.BytesIO(), io.BytesIO()
    await export(graph, car=whole)
    graph.answers, graph.blocks_max = pages_of_a_graph(), blocks_max
    await export(graph, car=cut)
    graph.answers = pages_of_a_graph()
    monkeypatch.setattr(exporter_module, "_BLOCKS_ASKED", 1)
    await export(graph, car=apart)
    assert whole.getvalue() == cut.getvalue() == apart.getvalue()


async def test_versions_that_were_collected_are_counted(graph: FakeNode) -> None:
    del graph.blocks[text_of(ALICE)]
    done = await export(graph, car=io.BytesIO())
    assert (done.collected, done.blocks) == (1, 6)


def test_a_block_with_another_hash_ends_it_and_leaves_no_file(
    graph: FakeNode, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph.blocks[text_of(BOB)] = ALICE
    car = tmp_path / "graph.car"
    assert run(client_app, "kotoba", ["--url", graph.url, "export", f"--car={car}"]) == 1
    assert f"the block of {text_of(BOB)} has another hash" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_missing_current_block_is_an_error(graph: FakeNode, tmp_path: Path) -> None:
    del graph.blocks[text_of(KNOWS)]
    car = tmp_path / "graph.car"
    assert run(client_app, "kotoba", ["--url", graph.url, "export", f"--car={car}"]) == 1


def test_a_cut_answer_is_an_error(node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    node.answers = [page([], truncated=True, bound="scanned")]
    assert run(client_app, "kotoba", ["--url", node.url, "export", "--nodes=-"]) == 1
    assert "cut an answer short (scanned)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "nothing to export"),
        (["--car=-"], "--car needs a file"),
        (["--nodes=a", "--edges=a"], "two exports into one file"),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(client_app, "kotoba", ["export", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_large_block_has_a_length_of_several_bytes() -> None:
    stream = io.BytesIO(b"before")
    stream.seek(0, io.SEEK_END)
    car = CarWriter(stream)
    block = first_node_block([], {"text": "x" * 100_000}, b"n" * 16)
    car.add(digest_of(block), block)
    root = car.add_content({"a": 1})
    car.finish(root)
    header, blocks = libipld.decode_car(stream.getvalue().removeprefix(b"before"))
    assert header["roots"] == [cid_bytes(root)]
    assert blocks[cid_bytes(digest_of(block))]["properties"]["text"] == "x" * 100_000
    with pytest.raises(BadBlock):
        car.add(sha256(b"other").digest(), block)
