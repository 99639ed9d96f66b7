"""Everything that a client can get wrong, and the problem that it gets for it."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from app.main import create_app
from cluster_core.graph.cid import cid_text
from tests.app.fake_database import FakeDatabase, digest_of

ALICE = cid_text(digest_of("alice"))
OPERATIONS = "/v1/operations"
BATCH = "/v1/operations/batch"
QUERY = "/v1/query"
NODE = f"/v1/nodes/{ALICE}"
JSON = {"content-type": "application/json"}


def create(**fields: Any) -> dict[str, Any]:
    return {"op": "create_node", **fields}


def ask(**fields: Any) -> dict[str, Any]:
    return {"query": {"kind": "find_nodes", **fields}}


def check_problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert (answer.status_code, answer.json().get("code")) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"
    problem: dict[str, Any] = answer.json()
    assert problem["type"] == f"/problems/{code}"
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    assert ("retry-after" in answer.headers) == (status in (429, 503))
    assert "Traceback" not in answer.text
    return problem


TEXTS: list[tuple[str, bytes, str]] = [
    ("nothing", b"", "Invalid JSON"),
    ("half an object", b'{"op": "create_node"', "Invalid JSON"),
    ("two documents", b"{} {}", "Invalid JSON"),
    ("no UTF-8", b'{"op": "\xff"}', "Invalid JSON"),
    ("a byte order mark", b"\xef\xbb\xbf{}", "Invalid JSON"),
    ("half a surrogate pair", b'{"op": "create_node", "properties": {"a": "\\ud800"}}', "JSON"),
    ("deep nesting", b'{"op": "create_node", "properties": {"a": ' + b"[" * 1000, "recursion"),
    (
        "a number of 4000 digits",
        b'{"op": "create_node", "properties": {"a": ' + b"9" * 4000 + b"}}",
        "64",
    ),
    ("a list", b"[]", "object"),
    ("null", b"null", "object"),
    ("a string", b'"create_node"', "object"),
    ("a key twice", b'{"op": "create_node", "properties": {"a": 1, "a": 2}}', "'a' stands twice"),
    ("op twice", b'{"op": "create_node", "op": "create_node"}', "'op' stands twice"),
    ("NaN", b'{"op": "create_node", "properties": {"a": NaN}}', "finite"),
    ("infinity", b'{"op": "create_node", "properties": {"a": -Infinity}}', "finite"),
    ("a float without end", b'{"op": "create_node", "properties": {"a": 1e999}}', "finite"),
]


@pytest.mark.parametrize(("body", "why"), [t[1:] for t in TEXTS], ids=[t[0] for t in TEXTS])
async def test_a_body_that_is_no_operation_at_all(
    client: httpx.AsyncClient, database: FakeDatabase, body: bytes, why: str
) -> None:
    problem = check_problem(
        await client.post(OPERATIONS, content=body, headers=JSON), 422, "invalid_request"
    )
    assert why in problem["errors"][0]["why"]
    assert not database.calls


BODIES: list[tuple[str, dict[str, Any], str]] = [
    ("no op", {}, "op"),
    ("unknown op", {"op": "drop_table"}, "op"),
    ("op is a number", {"op": 5}, "op"),
    ("unknown field", create(name="Alice"), "name"),
    ("ref outside of a batch", create(ref="a"), "ref"),
    ("if_version of a creation", create(if_version=ALICE), "if_version"),
    ("labels is a string", create(labels="Person"), "labels"),
    ("labels is null", create(labels=None), "labels"),
    ("a label is a number", create(labels=["Person", 1]), "labels.1"),
    ("properties is a list", create(properties=[]), "properties"),
    ("an int above 64 bits", create(properties={"a": 1 << 63}), "properties.a"),
    ("an int below 64 bits", create(properties={"a": -(1 << 63) - 1}), "properties.a"),
    ("a list in a list", create(properties={"a": [1, [2]]}), "properties.a.1"),
    ("an object as a value", create(properties={"a": {"b": 1}}), "properties.a"),
    ("a link and more", create(properties={"a": {"/": ALICE, "b": 1}}), "properties.a"),
    ("a link that is none", create(properties={"a": {"/": "bafyxx"}}), "properties.a"),
    ("padded bytes", create(properties={"a": {"/": {"bytes": "YQ=="}}}), "properties.a"),
    ("bytes of a number", create(properties={"a": {"/": {"bytes": 1}}}), "properties.a"),
    ("update without cid", {"op": "update_node", "properties": {}}, "cid"),
    ("cid is a number", {"op": "delete_node", "cid": 1}, "cid"),
    ("cid is no CID", {"op": "delete_node", "cid": "alice"}, "cid"),
    ("cid is empty", {"op": "delete_node", "cid": ""}, "cid"),
    ("cid in upper case", {"op": "delete_node", "cid": ALICE.upper()}, "cid"),
    ("cid is a ref outside of a batch", {"op": "delete_node", "cid": "$a"}, "cid"),
    ("detach is a number", {"op": "delete_node", "cid": ALICE, "detach": 1}, "detach"),
    ("detach is a string", {"op": "delete_node", "cid": ALICE, "detach": "true"}, "detach"),
    ("if_version is no CID", {"op": "delete_node", "cid": ALICE, "if_version": "1"}, "if_version"),
    (
        "edge without label",
        {"op": "create_edge", "source_cid": ALICE, "target_cid": ALICE},
        "label",
    ),
    (
        "edge to nowhere",
        {"op": "create_edge", "label": "KNOWS", "source_cid": ALICE, "target_cid": "x"},
        "target_cid",
    ),
    ("hint that is no CID", {"op": "delete_edge", "cid": ALICE, "source_cid": "x"}, "source_cid"),
]


@pytest.mark.parametrize(("body", "where"), [b[1:] for b in BODIES], ids=[b[0] for b in BODIES])
async def test_an_operation_with_a_mistake_says_where_it_is(
    client: httpx.AsyncClient, database: FakeDatabase, body: dict[str, Any], where: str
) -> None:
    problem = check_problem(await client.post(OPERATIONS, json=body), 422, "invalid_request")
    assert problem["errors"][0]["where"] == where
    assert problem["errors"][0]["why"]
    assert not database.calls


QUERIES: list[tuple[str, dict[str, Any], str]] = [
    ("no query", {}, "query"),
    ("no kind", {"query": {}}, "query.kind"),
    ("unknown kind", {"query": {"kind": "sparql"}}, "query.kind"),
    ("unknown field", ask(filter={}), "query.filter"),
    ("unknown field outside", {**ask(), "limit": 1}, "limit"),
    ("limit is a float", ask(limit=1.0), "query.limit"),
    ("limit is a bool", ask(limit=True), "query.limit"),
    ("limit is zero", ask(limit=0), "query.limit"),
    ("limit of 100 digits", ask(limit=10**100), "query.limit"),
    ("unknown comparison", ask(where={"property": "a", "op": "like"}), "query.where.op"),
    ("a condition without property", ask(where={"op": "eq"}), "query.where"),
    ("a condition is a list", ask(where=[]), "query.where"),
    (
        "a condition inside",
        ask(where={"and": [{"not": {"or": [1]}}]}),
        "query.where.and.0.not.or.0",
    ),
    (
        "a value inside",
        ask(where={"or": [{"property": "a", "op": "eq", "value": {"b": 1}}]}),
        "query.where.or.0.value",
    ),
    ("order by a string", ask(order_by=["a"]), "query.order_by.0"),
    ("a CID that is none", {"query": {"kind": "get", "cids": [ALICE, "x"]}}, "query.cids.1"),
    ("start is a CID", {"query": {"kind": "traverse", "start": ALICE}}, "query.start"),
    ("return what", {"query": {"kind": "traverse", "start": [], "return": "x"}}, "query.return"),
    ("no target", {"query": {"kind": "shortest_path", "source": ALICE}}, "query.target"),
    ("unknown consistency", {**ask(), "consistency": "weak"}, "consistency"),
    ("as_of is a number", {**ask(), "as_of": 5}, "as_of"),
    ("as_of is no time", {**ask(), "as_of": "yesterday"}, "as_of"),
    ("as_of without a zone", {**ask(), "as_of": "2026-11-23T14:36:40"}, "as_of"),
    ("session is no timestamp", {**ask(), "session": "5"}, "session"),
    ("timeout is a string", {**ask(), "timeout_ms": "5"}, "timeout_ms"),
    ("timeout is too long", {**ask(), "timeout_ms": 3_600_000}, "timeout_ms"),
]


@pytest.mark.parametrize(("body", "where"), [q[1:] for q in QUERIES], ids=[q[0] for q in QUERIES])
async def test_a_query_with_a_mistake_says_where_it_is(
    client: httpx.AsyncClient, database: FakeDatabase, body: dict[str, Any], where: str
) -> None:
    problem = check_problem(await client.post(QUERY, json=body), 422, "invalid_request")
    assert problem["errors"][0]["where"] == where
    assert not database.calls


async def test_an_unknown_kind_of_query_learns_the_known_ones(client: httpx.AsyncClient) -> None:
    answer = await client.post(QUERY, json={"query": {"kind": "sparql"}})
    why = answer.json()["errors"][0]["why"]
    for kind in ("get", "find_nodes", "find_edges", "count", "traverse", "shortest_path"):
        assert f"'{kind}'" in why


async def test_a_condition_deeper_than_the_parser_goes_is_refused(
    client: httpx.AsyncClient,
) -> None:
    where = b'{"not": ' * 300 + b'{"property": "a", "op": "eq"}' + b"}" * 300
    body = b'{"query": {"kind": "find_nodes", "where": ' + where + b"}}"
    check_problem(await client.post(QUERY, content=body, headers=JSON), 422, "invalid_request")


async def test_a_condition_is_measured_before_it_is_converted() -> None:
    """A mistake in it, which the conversion would find, is not what is told."""
    mistake = {"property": "a", "op": "eq", "value": {}}
    literals: list[Any] = [{}] + [1] * 10_000
    transport = httpx.ASGITransport(create_app(FakeDatabase()))
    async with httpx.AsyncClient(transport=transport, base_url="http://n") as client:
        for where, why in [
            ({"and": [mistake] * 1_001}, "too large: at most 1000 conditions, 50 deep"),
            (
                {"not": {"or": [{"property": "a", "op": "in", "value": literals}]}},
                "too large: at most 10000 literals",
            ),
        ]:
            body = {"query": {"kind": "traverse", "start": [ALICE], "where_edge": where}}
            problem = check_problem(await client.post(QUERY, json=body), 422, "invalid_request")
            assert problem["errors"] == [{"where": "query.where_edge", "why": why}]


async def test_a_query_that_repeats_a_key_is_refused(client: httpx.AsyncClient) -> None:
    body = b'{"query": {"kind": "find_nodes", "limit": 1, "limit": 2}}'
    problem = check_problem(
        await client.post(QUERY, content=body, headers=JSON), 422, "invalid_request"
    )
    assert "'limit' stands twice" in problem["detail"]


PARAMETERS: list[tuple[str, str, str]] = [
    (OPERATIONS, "consistency=weak", "query.consistency"),
    (OPERATIONS, "consistency=read_your_writes", "query.consistency"),
    (OPERATIONS, "forward=perhaps", "query.forward"),
    (OPERATIONS, "timeout_ms=0", "query.timeout_ms"),
    (OPERATIONS, "timeout_ms=soon", "query.timeout_ms"),
    (OPERATIONS, "timeout_ms=3600000", "timeout_ms"),
    (OPERATIONS, "nonce=12", "query.nonce"),
    (OPERATIONS, "pretty=1", "query.pretty"),
    (OPERATIONS, "pretty", "query.pretty"),
    (OPERATIONS, "forward=true&forward=false", "query.forward"),
    (OPERATIONS, "&".join(f"a{i}=" for i in range(40)), "query"),
    (BATCH, "forward=true", "query.forward"),
    (QUERY, "consistency=strong", "query.consistency"),
    (NODE, "consistency=weak", "query.consistency"),
    (NODE, "as_of=now", "query.as_of"),
    (NODE, "max_staleness_ms=-1", "query.max_staleness_ms"),
    (NODE, "version=1", "query.version"),
    (NODE, "source_cid=" + ALICE, "query.source_cid"),
    ("/v1/nodes/alice", "", "path.cid"),
    ("/v1/nodes/%F0%9F%92%A9", "", "path.cid"),
    ("/v1/edges/alice", "", "path.cid"),
    (f"/v1/edges/{ALICE}", "source_cid=1", "query.source_cid"),
    (f"/v1/edges/{ALICE}", "label=a", "query.label"),
    (f"{NODE}/edges", "direction=up", "query.direction"),
    (f"{NODE}/edges", "limit=many", "query.limit"),
    (f"{NODE}/edges", "limit=0", "query.limit"),
    (f"{NODE}/history", "direction=out", "query.direction"),
    ("/v1/blocks/alice", "", "path.cid"),
    (f"/v1/blocks/{ALICE}", "raw=1", "query.raw"),
    ("/v1/status", "verbose=1", "query.verbose"),
    ("/v1/partitions/first", "", "path.partition"),
    ("/v1/partitions/-1", "", "path.partition"),
    ("/v1/partitions/of", "", "query.key"),
    ("/v1/partitions/of", "key=alice", "query.key"),
]


@pytest.mark.parametrize(("path", "query", "where"), PARAMETERS)
async def test_a_parameter_with_a_mistake_says_which(
    client: httpx.AsyncClient, database: FakeDatabase, path: str, query: str, where: str
) -> None:
    bodies = {OPERATIONS: create(), BATCH: {"operations": []}, QUERY: ask()}
    method = "POST" if path in bodies else "GET"
    answer = await client.request(method, f"{path}?{query}", json=bodies.get(path))
    problem = check_problem(answer, 422, "invalid_request")
    assert problem["errors"][0]["where"] == where
    assert not database.calls


HEADERS: list[tuple[str, list[tuple[str, bytes]], str]] = [
    ("an empty key", [("idempotency-key", b"")], "idempotency-key"),
    ("a long key", [("idempotency-key", b"a" * 257)], "idempotency-key"),
    ("a key with a tab", [("idempotency-key", b"a\tb")], "idempotency-key"),
    ("a key that is not ASCII", [("idempotency-key", b"\xe9")], "idempotency-key"),
    ("two keys", [("idempotency-key", b"a"), ("idempotency-key", b"b")], "idempotency-key"),
    ("a version without quotes", [("if-match", ALICE.encode())], "if-match"),
    ("a weak version", [("if-match", b'W/"' + ALICE.encode() + b'"')], "if-match"),
    ("any version", [("if-match", b"*")], "if-match"),
    ("two versions", [("if-match", b'"a", "b"')], "if-match"),
    ("a version that is no CID", [("if-match", b'"1"')], "if-match"),
    (
        "a contradiction",
        [("if-match", b'"' + cid_text(digest_of("x")).encode() + b'"')],
        "if-match",
    ),
]


@pytest.mark.parametrize(
    ("headers", "where"), [h[1:] for h in HEADERS], ids=[h[0] for h in HEADERS]
)
async def test_a_header_with_a_mistake_says_which(
    client: httpx.AsyncClient,
    database: FakeDatabase,
    headers: list[tuple[str, bytes]],
    where: str,
) -> None:
    body = {"op": "delete_node", "cid": ALICE, "if_version": cid_text(digest_of("y"))}
    sent = [(name.encode(), value) for name, value in headers]
    problem = check_problem(
        await client.post(OPERATIONS, json=body, headers=sent), 422, "invalid_request"
    )
    assert problem["errors"][0]["where"] == f"header.{where}"
    assert not database.calls


async def test_a_session_that_is_no_timestamp_is_refused_on_both_ways(
    client: httpx.AsyncClient,
) -> None:
    for path in (NODE, f"/v1/edges/{ALICE}"):
        answer = await client.get(path, headers={"kotoba-session": "now"})
        problem = check_problem(answer, 422, "invalid_request")
        assert problem["errors"][0]["where"] == "header.kotoba-session"


async def test_creations_and_batches_have_no_if_match(client: httpx.AsyncClient) -> None:
    headers = {"if-match": f'"{ALICE}"'}
    check_problem(
        await client.post(OPERATIONS, json=create(), headers=headers), 422, "invalid_request"
    )
    body = {"operations": [create()]}
    check_problem(await client.post(BATCH, json=body, headers=headers), 422, "invalid_request")


async def test_only_a_creation_has_a_nonce(client: httpx.AsyncClient) -> None:
    body = {"op": "delete_node", "cid": ALICE}
    answer = await client.post(f"{OPERATIONS}?nonce={'0' * 32}", json=body)
    assert check_problem(answer, 422, "invalid_request")["errors"][0]["where"] == "query.nonce"


@pytest.mark.parametrize("path", [OPERATIONS, BATCH, QUERY])
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/json; charset=latin-1"},
        {"content-type": "application/jsonp"},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
    ids=["none", "text", "form", "latin-1", "jsonp", "gzip"],
)
async def test_a_body_of_another_type_is_refused(
    client: httpx.AsyncClient, path: str, headers: dict[str, str]
) -> None:
    answer = await client.post(path, content=b"{}", headers=headers)
    check_problem(answer, 415, "unsupported_media_type")


@pytest.mark.parametrize("path", [OPERATIONS, BATCH, QUERY])
async def test_a_huge_body_is_refused(client: httpx.AsyncClient, path: str) -> None:
    problem = check_problem(
        await client.post(path, content=b"x" * 5_000, headers=JSON), 413, "too_large"
    )
    assert problem["limit"] == 4_096
    assert "4096 bytes (body_bytes_max)" in problem["detail"]
    assert (problem["name"], problem["setting"]) == ("body_bytes_max", "--body-bytes-max")


async def test_a_batch_of_too_many_operations_is_refused(client: httpx.AsyncClient) -> None:
    many = {"operations": [create()] * 6}
    malformed: dict[str, Any] = {"operations": [{}] * 6}
    for body in (many, malformed):
        problem = check_problem(await client.post(BATCH, json=body), 413, "too_large")
        assert (problem["limit"], problem["name"]) == (5, "batch_operations_max")
        assert "setting" not in problem
    lines = await client.post(
        BATCH, content=b"{}\n" * 6, headers={"content-type": "application/x-ndjson"}
    )
    check_problem(lines, 413, "too_large")


@pytest.mark.parametrize(
    "body",
    [b"[]", b"{", b"{}", b'{"operations": {}}', b'{"operations": [], "atomic": true}', b"null"],
)
async def test_a_batch_that_is_no_batch_is_refused(client: httpx.AsyncClient, body: bytes) -> None:
    check_problem(await client.post(BATCH, content=body, headers=JSON), 422, "invalid_request")


@pytest.mark.parametrize(
    "path",
    [
        "/nowhere",
        "/v1",
        "/v1/operations/",
        "/v1/nodes/",
        f"{NODE}/",
        f"{NODE}/x/y",
        "/internal/v1/x",
    ],
)
async def test_an_unknown_path_is_not_found(client: httpx.AsyncClient, path: str) -> None:
    check_problem(await client.get(path), 404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", OPERATIONS, "POST"),
        ("PUT", BATCH, "POST"),
        ("GET", QUERY, "POST"),
        ("DELETE", NODE, "GET, HEAD"),
        ("POST", "/v1/status", "GET, HEAD"),
        ("OPTIONS", "/v1/health", "GET, HEAD"),
        ("POST", "/docs", "GET, HEAD"),
        ("BREW", "/livez", "GET, HEAD"),
    ],
)
async def test_another_method_learns_the_right_ones(
    client: httpx.AsyncClient, method: str, path: str, allow: str
) -> None:
    answer = await client.request(method, path)
    check_problem(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == allow


async def test_an_unknown_cid_is_not_found(client: httpx.AsyncClient) -> None:
    for path in (NODE, f"/v1/edges/{ALICE}", f"/v1/blocks/{ALICE}"):
        problem = check_problem(await client.get(path), 404, "not_found")
        assert ALICE in problem["detail"]
    check_problem(await client.get("/v1/partitions/64"), 404, "not_found")


async def test_an_answer_never_mirrors_megabytes(client: httpx.AsyncClient) -> None:
    for body in (
        create(**{"x" * 3_000: 1}),
        {"op": "x" * 3_000},
        {"op": "delete_node", "cid": "x" * 3_000},
        create(properties={"x" * 3_000: [[]]}),
        create(labels=list(range(900))),
    ):
        answer = await client.post(OPERATIONS, json=body)
        check_problem(answer, 422, "invalid_request")
        assert len(answer.content) < 3_000


async def test_of_many_mistakes_the_first_ones_are_listed(client: httpx.AsyncClient) -> None:
    unknown = create(**{f"field{i}": 1 for i in range(100)})
    problem = check_problem(await client.post(OPERATIONS, json=unknown), 422, "invalid_request")
    assert [e["where"] for e in problem["errors"]] == [f"field{i}" for i in range(20)]
    wrong = create(properties={f"p{i}": {} for i in range(100)})
    problem = check_problem(await client.post(OPERATIONS, json=wrong), 422, "invalid_request")
    assert len(problem["errors"]) == 20


async def test_after_all_of_this_the_node_lives(client: httpx.AsyncClient) -> None:
    assert (await client.post(OPERATIONS, json=create())).status_code == 201
