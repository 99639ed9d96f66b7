from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.bulk import api as api_module
from app.bulk import loader as loader_module
from app.bulk.api import Api, GaveUp
from app.bulk.ledger import Ledger, LedgerFailed
from app.bulk.loader import FileReport, Loader
from app.bulk.progress import Meter
from app.bulk.sources import Source
from app.commands import CommandFailed
from tests.app.bulk import fake_node
from tests.app.bulk.fake_node import FakeNode, cid_of

NODES = ":ID,name\n" + "".join(f"p{n},Person {n}\n" for n in range(10))
EDGES = ":START_ID,:END_ID,n:int\n" + "".join(f"p{n},p{(n + 1) % 10},{n}\n" for n in range(10))


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_module, "_BACKOFF_S", 0.001)


@pytest.fixture
def people(tmp_path: Path) -> Source:
    return source(tmp_path, "people.csv", NODES)


@pytest.fixture
def knows(tmp_path: Path) -> Source:
    return source(tmp_path, "knows.csv", EDGES, "edges")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    one = Ledger(tmp_path / "state")
    yield one
    one.close()


def source(tmp_path: Path, name: str, text: str, kind: str = "nodes") -> Source:
    path = tmp_path / name
    path.write_text(text)
    labels = ("KNOWS",) if kind == "edges" else ("Person",)
    return Source(path=path, kind=kind, format="csv", labels=labels)  # type: ignore[arg-type]


async def load(
    node: FakeNode,
    ledger: Ledger,
    *sources: Source,
    patience_s: float = 5.0,
    errors_max: int | None = None,
) -> list[FileReport]:
    async with Api(node.url, connections=2, patience_s=patience_s) as api:
        assert api.urls == [node.url], "nobody answers at the other address"
        loader = Loader(
            api, ledger, Meter(None), connections=2, chunk_rows=3, errors_max=errors_max
        )
        return await loader.load(sources)


def names_of(node: FakeNode) -> Counter[str]:
    return Counter(
        one["properties"]["name"] for one in node.entities.values() if one["op"] == "create_node"
    )


async def test_nodes_come_first_and_edges_find_them(
    node: FakeNode, ledger: Ledger, people: Source, knows: Source
) -> None:
    reports = await load(node, ledger, knows, people)
    assert [(report.source.kind, report.rows, report.failed) for report in reports] == [
        ("nodes", 10, 0),
        ("edges", 10, 0),
    ]
    by_name = {
        one["properties"].get("name"): cid for cid, one in node.entities.items() if "labels" in one
    }
    edges = [one for one in node.entities.values() if one["op"] == "create_edge"]
    assert {
        (edge["source_cid"], edge["target_cid"], edge["properties"]["n"]) for edge in edges
    } == {(by_name[f"Person {n}"], by_name[f"Person {(n + 1) % 10}"], n) for n in range(10)}


async def test_what_is_done_is_not_done_again(
    node: FakeNode, ledger: Ledger, people: Source
) -> None:
    await load(node, ledger, people)
    sent = len(node.keys)
    (report,) = await load(node, ledger, people)
    assert report.again
    assert (report.rows, report.written) == (10, 10)
    assert len(node.keys) == sent


@pytest.mark.parametrize(
    "trouble",
    [(503, "overloaded"), (504, "timeout"), (429, "rate_limited"), (507, "storage_full")],
)
async def test_trouble_that_passes_writes_nothing_twice(
    node: FakeNode, ledger: Ledger, people: Source, trouble: tuple[int, str]
) -> None:
    node.trouble = [trouble] * 6
    node.executed_before_trouble = True
    (report,) = await load(node, ledger, people)
    assert report.written == 10
    assert len(node.keys) == 4 + 6
    assert names_of(node) == Counter({f"Person {n}": 1 for n in range(10)})


async def test_operations_that_may_succeed_yet_are_sent_again_with_their_chunk(
    node: FakeNode, ledger: Ledger, people: Source
) -> None:
    left = {"Person 4": 3, "Person 9": 1}

    def failing(operation: dict[str, object]) -> str | None:
        name = operation["properties"]["name"]  # type: ignore[index]
        left[name] = left.get(name, 0) - 1
        return "conflict" if left[name] >= 0 else None

    node.failing = failing
    (report,) = await load(node, ledger, people)
    assert report.failed == 0
    assert len(node.entities) == 10


async def test_an_interruption_loses_nothing_and_doubles_nothing(
    node: FakeNode, tmp_path: Path, people: Source, knows: Source
) -> None:
    for trouble in ([], [(503, "no_leader")] * 3):
        # Each attempt is cut off at a request whose work is done but whose answer is lost.
        for working in range(1, 9):
            ledger = Ledger(tmp_path / "state")
            node.executed_before_trouble = True
            node.trouble = [*trouble, *[None] * working, *[(500, "internal")] * 50]
            with contextlib.suppress(CommandFailed):
                await load(node, ledger, people, knows)
            ledger.close()
    node.trouble = []
    ledger = Ledger(tmp_path / "state")
    await load(node, ledger, people, knows)
    ledger.close()
    assert names_of(node) == Counter({f"Person {n}": 1 for n in range(10)})
    edges = [one for one in node.entities.values() if one["op"] == "create_edge"]
    assert sorted(edge["properties"]["n"] for edge in edges) == list(range(10))


async def test_rows_that_fail_are_told_with_their_lines(
    node: FakeNode, ledger: Ledger, tmp_path: Path
) -> None:
    nodes = source(tmp_path, "a.csv", ":ID,age:int\np1,1\np2,x\np1,3\np3,99\n")
    edges = source(
        tmp_path, "b.csv", f":START_ID,:END_ID\np1,p2\np1,p3\np1,{cid_of('x')}\np1,p1\n", "edges"
    )
    node.failing = lambda one: "invalid_request" if one["properties"].get("age") == 99 else None
    reports = await load(node, ledger, nodes, edges)
    assert [(report.written, report.failed) for report in reports] == [(1, 3), (2, 2)]
    assert [(Path(name).name, e.line, e.code) for name, e in ledger.errors()] == [
        ("a.csv", 3, "unreadable"),
        ("a.csv", 4, "repeated_key"),
        ("a.csv", 5, "invalid_request"),
        ("b.csv", 2, "unknown_key"),
        ("b.csv", 3, "unknown_key"),
    ]


async def test_too_many_bad_rows_end_it(node: FakeNode, ledger: Ledger, tmp_path: Path) -> None:
    nodes = source(tmp_path, "a.csv", "a:int\n" + "x\n" * 9)
    with pytest.raises(CommandFailed, match="more than 2 rows failed"):
        await load(node, ledger, nodes, errors_max=2)


async def test_after_too_many_bad_rows_the_same_command_goes_on(
    node: FakeNode, ledger: Ledger, tmp_path: Path
) -> None:
    nodes = source(tmp_path, "a.csv", "name,a:int\n" + "bad,x\n" * 6 + "good,1\n" * 6)
    with pytest.raises(CommandFailed, match="the same command goes on from here"):
        await load(node, ledger, nodes, errors_max=5)
    assert ledger.error_count() == 6, "two chunks"
    (report,) = await load(node, ledger, nodes, errors_max=5)
    assert (report.written, report.failed) == (6, 6)


async def test_a_full_disk_is_waited_for_and_fails_no_row(
    node: FakeNode, ledger: Ledger, people: Source
) -> None:
    full = {f"Person {n}" for n in range(10) if n % 2}

    def failing(operation: dict[str, Any]) -> str | None:
        return "storage_full" if operation["properties"]["name"] in full else None

    node.failing = failing
    with pytest.raises(GaveUp, match="storage_full: it is storage_full"):
        await load(node, ledger, people, patience_s=0.05)
    assert ledger.error_count() == 0
    full.clear()
    (report,) = await load(node, ledger, people)
    assert (report.written, report.failed) == (10, 0)
    assert names_of(node) == Counter({f"Person {n}": 1 for n in range(10)})


async def test_who_waits_for_the_cluster_is_told_why(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_module, "_TOLD_AFTER_S", 0.0)
    told: list[str] = []
    async with Api(node.url, connections=1, patience_s=5.0, waiting=told.append) as api:
        node.trouble = [(507, "storage_full")] * 2
        node.answers = [{}]
        await api.request("POST", "/v1/query", body={"query": {"kind": "get"}})
    assert told == ["storage_full: it is storage_full"] * 2


# A batch of bounded length


@pytest.fixture
def wide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: FakeNode) -> Source:
    """Rows whose JSON is many times as long as they are, so that two of them fill a batch."""
    node.body_bytes_max = 4096
    monkeypatch.setattr(loader_module, "_BATCH_BYTES", 3000)
    columns = [f"{'x' * 20}{n}:int" for n in range(40)]
    text = ",".join(["name", *columns]) + "\n"
    text += "".join(",".join([f"Person {n}", *["1"] * 40]) + "\n" for n in range(10))
    return source(tmp_path, "wide.csv", text)


async def test_what_is_long_as_json_goes_in_several_batches(
    node: FakeNode, ledger: Ledger, wide: Source
) -> None:
    (report,) = await load(node, ledger, wide)
    assert (report.written, report.failed) == (10, 0)
    assert names_of(node) == Counter({f"Person {n}": 1 for n in range(10)})
    lines = sorted(int(key.rpartition(":")[2]) for key in node.keys)
    assert lines == [2, 4, 5, 7, 8, 10, 11], "chunks of three rows, batches of two"


async def test_batches_are_cut_alike_in_every_attempt(
    node: FakeNode, tmp_path: Path, wide: Source
) -> None:
    for working in range(1, 7):
        ledger = Ledger(tmp_path / "state")
        node.executed_before_trouble = True
        node.trouble = [*[None] * working, *[(500, "internal")] * 50]
        with contextlib.suppress(CommandFailed):
            await load(node, ledger, wide)
        ledger.close()
    node.trouble = []
    ledger = Ledger(tmp_path / "state")
    await load(node, ledger, wide)
    ledger.close()
    assert names_of(node) == Counter({f"Person {n}": 1 for n in range(10)})


async def test_a_row_that_no_batch_can_hold_fails_alone(
    node: FakeNode, ledger: Ledger, tmp_path: Path, wide: Source
) -> None:
    nodes = source(tmp_path, "a.csv", f"name\nshort\n{'x' * 3000}\nlast\n")
    (report,) = await load(node, ledger, nodes)
    assert (report.written, report.failed) == (2, 1)
    assert [(error.line, error.code) for _, error in ledger.errors()] == [(3, "too_large")]


async def test_json_that_is_too_deep_fails_alone(
    node: FakeNode, ledger: Ledger, tmp_path: Path
) -> None:
    path = tmp_path / "a.ndjson"
    path.write_text('{"a": ' + "[" * 300 + "]" * 300 + '}\n{"a": 1}\n')
    (report,) = await load(node, ledger, Source(path=path, kind="nodes", format="ndjson"))
    assert (report.written, report.failed) == (1, 1)
    assert [(error.line, error.code) for _, error in ledger.errors()] == [(1, "unreadable")]


async def test_patience_ends(node: FakeNode, ledger: Ledger, people: Source) -> None:
    node.trouble = [(503, "no_leader")] * 10_000
    with pytest.raises(GaveUp, match="no_leader: it is no_leader"):
        await load(node, ledger, people, patience_s=0.05)


async def test_a_state_belongs_to_one_cluster(
    node: FakeNode, ledger: Ledger, people: Source
) -> None:
    await load(node, ledger, people)
    node.cluster_id = "c2"
    with pytest.raises(LedgerFailed, match="another cluster"):
        await load(node, ledger, people)


async def test_nothing_comes_before_what_was_begun(
    node: FakeNode, ledger: Ledger, tmp_path: Path, people: Source, knows: Source
) -> None:
    node.trouble = [None] * 5 + [(500, "internal")] * 9
    with pytest.raises(CommandFailed, match="internal"):
        await load(node, ledger, people, knows)
    node.trouble = []
    more = source(tmp_path, "more.csv", ":ID\np99\n")
    with pytest.raises(LedgerFailed, match=r"knows.csv was begun and is not finished"):
        await load(node, ledger, people, more, knows)
    await load(node, ledger, people, knows)
    await load(node, ledger, people, more, knows)
    assert len(node.entities) == 21


def test_a_state_is_used_by_one_at_a_time(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "state")
    with pytest.raises(LedgerFailed, match="another import uses it"):
        Ledger(tmp_path / "state")
    ledger.close()
    Ledger(tmp_path / "state").close()
    (tmp_path / "else").write_text("something else, long enough to be no database" * 99)
    with pytest.raises(LedgerFailed, match="no state file"):
        Ledger(tmp_path / "else")


async def test_a_node_says_how_long_it_wants_to_be_left_alone(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_node, "RETRY_AFTER_S", "0.2")
    async with Api(node.url, connections=1, patience_s=5.0) as api:
        node.trouble = [(503, "overloaded")]
        node.answers = [{}]
        began = time.monotonic()
        await api.request("POST", "/v1/query", body={"query": {"kind": "get"}})
        assert time.monotonic() - began > 0.2 / 2, "half of it at least"
