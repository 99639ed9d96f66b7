from __future__ import annotations

import io
import json
from typing import Any

import httpx
import pytest
import respx
from rich.console import Console

from app.cli import client_app, run
from app.commands.tables import print_events_line, print_result, print_status

URL = "http://127.0.0.1:8080"
CID = "bafyreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"

STATUS: dict[str, Any] = {
    "cluster_id": "c0ffee" * 10,
    "node_id": "node1",
    "version": "0.1.0",
    "leader": "node2",
    "term": 3,
    "membership": {
        "nodes": [
            {
                "node_id": f"node{number}",
                "address": f"127.0.0.1:808{number - 1}",
                "state": state,
                "role": "voter",
                "zone": None,
                "leads": 21,
                "replicas": 64,
            }
            for number, state in ((1, "active"), (2, "active"), (3, "failed"))
        ]
    },
    "partitions": {
        "partition_count": 64,
        "replication_factor": 3,
        "without_leader": 2,
        "under_replicated": 64,
        "moving": 0,
        "variance": 0.2,
    },
    "replication": {
        "is_healthy": False,
        "replication_lag_ms": {"node2": 3.14},
        "total_queued_operations": 0,
        "operations_processed": 10452,
        "operations_failed": 1,
    },
    "storage": {"state": "ok", "disk_bytes": 1234, "disk_free_bytes": 5 << 30},
}
HEALTH = {"is_healthy": False, "failed_nodes_count": 1, "reasons": ["node3 has failed"]}
NODE = {
    "cid": CID,
    "version": CID,
    "labels": ["Person"],
    "properties": {"name": "Alice", "age": 30},
    "created_at": "1.00000",
    "updated_at": "1.00000",
}
STATISTICS = {"partitions": 64, "cluster_nodes": 3, "scanned": 1, "elapsed_ms": 4.2, "index": None}


def kotoba(*arguments: str) -> int:
    return run(client_app, "kotoba", list(arguments))


def printed(function: Any, *arguments: Any, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    function(console, *arguments)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_status_shows_members_leader_partitions_and_reasons() -> None:
    text = printed(print_status, STATUS, HEALTH)
    for part in ("not healthy", "leader node2 (term 3)", "node3 has failed", "failed", "3.1"):
        assert part in text
    assert "64 partitions of 3 replicas: 2 without leader, 64 under-replicated" in text
    assert "node1: 10,452 operations, 1 failed" in text
    assert "5.0 GiB free" in text


@respx.mock
def test_status_as_json_has_the_health_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    respx.get(f"{URL}/v1/status").respond(json=STATUS)
    respx.get(f"{URL}/v1/health").respond(503, json=HEALTH)
    assert kotoba("status", "--json") == 0
    assert json.loads(capsys.readouterr().out)["health"] == HEALTH


def test_rows_are_a_table_of_properties_with_whole_cids() -> None:
    answer = {"rows": [NODE], "cursor": None, "truncated": False, "statistics": STATISTICS}
    text = printed(print_result, answer)
    assert CID in text
    assert "Alice" in text
    assert "1 row, 4.2 ms, 1 scanned, 64 partitions" in text


def test_on_a_narrow_terminal_each_value_has_a_line() -> None:
    lines = printed(print_result, {"rows": [NODE, NODE]}, width=70).splitlines()
    assert lines[:5] == [f"cid     {CID}", "labels  Person", "name    Alice", "age     30", ""]


def test_a_path_is_told_by_names() -> None:
    edge = {"cid": CID, "label": "KNOWS", "properties": {}}
    row = {"nodes": [NODE, NODE], "edges": [edge], "length": 1}
    text = printed(print_result, {"rows": [row], "truncated": True})
    assert "Alice, Alice" in text
    assert "KNOWS" in text
    assert "more exist" in text


def test_an_event_is_one_line() -> None:
    event = {"type": "NodeFailed", "node_id": "node3", "at": "2026-01-01T00:00:00Z", "id": "7"}
    assert printed(print_events_line, event).split() == [
        "2026-01-01T00:00:00Z",
        "NodeFailed",
        "node_id=node3",
    ]


@respx.mock
def test_a_bare_query_is_wrapped_and_options_go_with_it() -> None:
    route = respx.post(f"{URL}/v1/query").respond(json={"rows": []})
    assert kotoba("query", '{"kind": "count"}', "--consistency=eventual", "--timeout-ms=7") == 0
    assert json.loads(route.calls[0].request.content) == {
        "query": {"kind": "count"},
        "consistency": "eventual",
        "timeout_ms": 7,
    }


@respx.mock
def test_a_whole_request_is_sent_as_it_is() -> None:
    route = respx.post(f"{URL}/v1/query").respond(json={"rows": []})
    assert kotoba("query", '{"query": {"kind": "count"}, "as_of": "1.00000"}') == 0
    assert json.loads(route.calls[0].request.content)["as_of"] == "1.00000"


@respx.mock
def test_a_redirect_to_the_leader_is_followed_with_the_body() -> None:
    leader = "http://127.0.0.1:8081/v1/operations?nonce=00"
    respx.post(f"{URL}/v1/operations").respond(307, headers={"Location": leader})
    route = respx.post(leader).respond(201, json={"cid": CID})
    assert kotoba("op", '{"op": "create_node"}', "--idempotency-key=k") == 0
    assert json.loads(route.calls[0].request.content) == {"op": "create_node"}
    assert route.calls[0].request.headers["Idempotency-Key"] == "k"


@respx.mock
def test_a_list_is_a_batch_and_failures_in_it_are_a_failure(
    capsys: pytest.CaptureFixture[str],
) -> None:
    results = [{"cid": CID}, {"error": {"code": "not_found", "detail": "?"}}]
    respx.post(f"{URL}/v1/operations/batch").respond(
        json={"results": results, "succeeded": 1, "failed": 1}
    )
    assert kotoba("op", "[{}, {}]") == 1
    assert "1 of 2 operations failed" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["op", "query"])
@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"a": 100000000000000000000}', "100000000000000000000 is an int outside of 64 bits"),
        ('{"a": 1, "a": 2}', "the key 'a' stands twice in one object"),
        ("{", "no JSON: "),
        ('{"a": ' + "[" * 300 + "]" * 300 + "}", "Recursion limit reached"),
    ],
)
def test_what_would_not_be_sent_as_it_is_is_refused(
    command: str, text: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kotoba(command, text) == 2
    assert capsys.readouterr().err.startswith(f"kotoba: this cannot be sent: {why}")


@respx.mock
def test_a_problem_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    problem = {
        "code": "no_leader",
        "detail": "partition 3 has no leader",
        "errors": [{"where": "query.kind", "why": "unknown"}],
    }
    respx.post(f"{URL}/v1/query").mock(
        return_value=httpx.Response(503, json=problem, headers={"Retry-After": "1"})
    )
    assert kotoba("query", "{}") == 1
    assert capsys.readouterr().err == (
        "kotoba: no_leader: partition 3 has no leader (query.kind: unknown) (retry in 1 s)\n"
    )


@respx.mock
def test_an_answer_that_is_no_problem_document_is_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    respx.get(f"{URL}/v1/status").respond(502, text="<html>")
    assert kotoba("status") == 1
    assert "502 Bad Gateway" in capsys.readouterr().err
