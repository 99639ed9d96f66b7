"""``kotoba import`` and ``kotoba export`` as commands: what they say, and how they end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.cli import client_app, run
from tests.app.bulk.fake_node import FakeNode


def kotoba(node: FakeNode, *arguments: str) -> int:
    return run(client_app, "kotoba", ["--url", node.url, *arguments])


@pytest.fixture
def people(tmp_path: Path) -> Path:
    path = tmp_path / "people.csv"
    path.write_text(":ID,name,age:int\np1,Alice,30\np2,Bob,x\np3,Carol,\n")
    return path


@pytest.fixture
def knows(tmp_path: Path) -> Path:
    path = tmp_path / "knows.csv"
    path.write_text(":START_ID,:END_ID\np1,p3\np1,p2\n")
    return path


def test_bad_rows_are_listed_and_the_exit_code_tells(
    node: FakeNode, people: Path, knows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("import", f"--nodes=Person={people}", f"--edges=KNOWS={knows}")
    assert kotoba(node, *arguments) == 3
    errors = people.with_name("people.csv.kotoba-state.errors.ndjson")
    assert [json.loads(line) for line in errors.read_text().splitlines()] == [
        {
            "file": str(people),
            "line": 3,
            "code": "unreadable",
            "detail": "age: 'x' is no 64-bit int",
        },
        {
            "file": str(knows),
            "line": 3,
            "code": "unknown_key",
            "detail": "no node is called 'p2'",
        },
    ]
    said = capsys.readouterr().out
    assert "2 rows failed, see" in said
    assert [line.split()[:4] for line in said.splitlines()[1:3]] == [
        ["people.csv", "3", "2", "1"],
        ["knows.csv", "2", "1", "1"],
    ]
    assert {tuple(one["labels"]) for one in node.entities.values() if "labels" in one} == {
        ("Person",)
    }


def test_once_more_does_nothing_and_again_does_everything(
    node: FakeNode, knows: Path, people: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    people.write_text(":ID\np1\np2\np3\n")
    arguments = ("import", f"--nodes={people}", f"--edges=KNOWS={knows}")
    assert kotoba(node, *arguments) == 0
    assert len(node.entities) == 5
    assert kotoba(node, *arguments) == 0
    assert "nothing was left to do" in capsys.readouterr().out
    assert len(node.entities) == 5
    assert kotoba(node, *arguments, "--again", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert [one["written"] for one in summary["files"]] == [3, 2]
    assert len(node.entities) == 10


def test_edges_can_follow_later_with_the_same_state(
    node: FakeNode, people: Path, knows: Path, tmp_path: Path
) -> None:
    people.write_text(":ID\np1\np2\np3\n")
    state = f"--state={tmp_path / 'state'}"
    assert kotoba(node, "import", f"--nodes={people}", state) == 0
    assert kotoba(node, "import", f"--edges=KNOWS={knows}", state) == 0
    assert len(node.entities) == 5


def test_a_header_that_makes_no_sense_is_exit_code_2(
    node: FakeNode, people: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    people.write_text("born:date\nx\n")
    assert kotoba(node, "import", f"--nodes={people}") == 2
    assert "'date' is no type" in capsys.readouterr().err
    assert node.keys == []


def test_a_file_whose_name_has_an_equals_sign_is_a_file(
    node: FakeNode, people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    people.rename(tmp_path / "A=b.csv")
    (tmp_path / "A=b.csv").write_text("name\nx\n")
    assert kotoba(node, "import", "--nodes=A=b.csv") == 0
    assert [one["labels"] for one in node.entities.values()] == [[]]


def test_a_cluster_that_takes_nothing_is_exit_code_1(
    node: FakeNode, people: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node.trouble = [(503, "no_leader")] * 1_000
    assert kotoba(node, "import", f"--nodes={people}", "--patience-s=0.2") == 1
    assert "no_leader: it is no_leader" in capsys.readouterr().err


def test_after_a_full_disk_the_same_command_goes_on(
    node: FakeNode, people: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    people.write_text(":ID\np1\np2\np3\n")
    node.failing = lambda operation: "storage_full"
    assert kotoba(node, "import", f"--nodes={people}", "--patience-s=0.2") == 1
    said = capsys.readouterr().err
    assert "storage_full: it is storage_full; the same command goes on from here" in said
    assert not people.with_name("people.csv.kotoba-state.errors.ndjson").exists()
    node.failing = lambda operation: None
    assert kotoba(node, "import", f"--nodes={people}") == 0
    assert len(node.entities) == 3


def test_members_are_a_table(node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    assert kotoba(node, "members", "--json") == 0
    found = json.loads(capsys.readouterr().out)["nodes"]
    assert [one["node_id"] for one in found] == ["node1", "node2"]
