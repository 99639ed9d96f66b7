"""``kotoba indexes`` against a node that is played by the test."""

from __future__ import annotations

import json
from typing import Any

import pytest
import respx

from app.cli import client_app, run

URL = "http://127.0.0.1:8080"


def index(state: str, done: int = 0) -> dict[str, Any]:
    return {
        "label": "Person",
        "property": "name",
        "state": state,
        "partitions_done": done,
        "partition_count": 64,
        "since": None,
    }


def kotoba(*arguments: str) -> int:
    return run(client_app, "kotoba", ["indexes", *arguments])


@respx.mock
def test_the_list_says_how_far_each_is(capsys: pytest.CaptureFixture[str]) -> None:
    respx.get(f"{URL}/v1/indexes").respond(json={"indexes": [index("building", 17)]})
    assert kotoba("list") == 0
    printed = capsys.readouterr().out
    for part in ("Person", "name", "building", "17 of 64"):
        assert part in printed
    assert kotoba("list", "--json") == 0
    assert json.loads(capsys.readouterr().out)["indexes"][0]["partitions_done"] == 17


@respx.mock
def test_no_index_is_said_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    respx.get(f"{URL}/v1/indexes").respond(json={"indexes": []})
    assert kotoba("list") == 0
    assert "no property index" in capsys.readouterr().out


@respx.mock
def test_one_is_declared_and_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("app.commands.indexes._POLL_S", 0)
    declared = respx.post(f"{URL}/v1/indexes").respond(201, json=index("building"))
    respx.get(f"{URL}/v1/indexes").side_effect = [
        respx.MockResponse(json={"indexes": [index("building", 3)]}),
        respx.MockResponse(json={"indexes": [index("ready", 64)]}),
    ]
    assert kotoba("add", "Person", "name", "--wait-s=60") == 0
    assert json.loads(declared.calls[0].request.content) == {"label": "Person", "property": "name"}
    assert capsys.readouterr().out == "Person.name: ready\n"


@respx.mock
def test_one_is_dropped_by_its_names_whatever_is_in_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    route = respx.delete(url__regex=rf"{URL}/v1/indexes/.*").respond(json=index("dropping"))
    assert kotoba("drop", "a/b", "c d") == 0
    assert route.calls[0].request.url.raw_path == b"/v1/indexes/a%2Fb/c%20d"
    assert "dropping" in capsys.readouterr().out


@respx.mock
def test_what_does_not_exist_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    problem = {"code": "not_found", "detail": "there is no index on Person.age"}
    respx.delete(f"{URL}/v1/indexes/Person/age").respond(404, json=problem)
    assert kotoba("drop", "Person", "age") == 1
    assert capsys.readouterr().err == "kotoba: not_found: there is no index on Person.age\n"
