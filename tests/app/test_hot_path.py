from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from app.hot_path import HotPath
from app.main import Gateway, create_app
from app.metrics import Metrics
from cluster_core.graph.cid import cid_text
from cluster_core.query.plan import Query
from cluster_core.query.results import QueryResult
from tests.app.asgi import http_scope, send_http
from tests.app.conftest import SMALL
from tests.app.fake_database import FakeDatabase, digest_of

CREATE = b'{"op": "create_node"}'
NODE = f"/v1/nodes/{cid_text(digest_of('alice'))}"

Sent = list[dict[str, Any]]


def body(content: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": content, "more_body": more}


@pytest.mark.parametrize(
    ("method", "path", "content"),
    [
        ("POST", "/v1/operations", CREATE),
        ("POST", "/v1/operations", b"{"),
        ("POST", "/v1/operations/batch", b'{"operations": [{"op": "create_node"}]}'),
        ("POST", "/v1/transactions", b'{"operations": [{"op": "create_node"}]}'),
        ("POST", "/v1/query", b'{"query": {"kind": "find_nodes"}}'),
        ("POST", "/v1/query", b'{"query": {"kind": "nothing"}}'),
        ("GET", NODE, b""),
    ],
)
async def test_the_router_gives_the_same_answer_behind_a_path_prefix(
    gateway: Gateway, method: str, path: str, content: bytes
) -> None:
    hot = await send_http(gateway, http_scope(method, path), body(content))
    prefixed = http_scope(method, "/kotoba" + path, root_path="/kotoba")
    assert await send_http(gateway, prefixed, body(content)) == hot
    assert hot[0]["status"] in (200, 201, 404, 422)


async def test_a_body_may_come_in_pieces(gateway: Gateway) -> None:
    pieces = [body(bytes([byte]), more=True) for byte in CREATE]
    sent = await send_http(gateway, http_scope("POST", "/v1/operations"), *pieces, body(b""))
    assert sent[0]["status"] == 201


async def test_a_body_that_says_it_is_too_long_is_not_read(
    gateway: Gateway, database: FakeDatabase
) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"5000")]
    sent = await send_http(gateway, http_scope("POST", "/v1/operations", headers=headers))
    assert sent[0]["status"] == 413


async def test_an_endless_body_is_cut_while_it_is_read(gateway: Gateway) -> None:
    pieces = [body(b"x" * 1_000, more=True)] * 5
    sent = await send_http(gateway, http_scope("POST", "/v1/operations"), *pieces)
    assert sent[0]["status"] == 413


@pytest.mark.parametrize("messages", [[], [body(b'{"op"', more=True)]])
async def test_a_client_that_leaves_early_is_not_answered(
    gateway: Gateway,
    database: FakeDatabase,
    messages: list[dict[str, Any]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert await send_http(gateway, http_scope("POST", "/v1/operations"), *messages) == []
    assert not database.calls
    assert not caplog.records


async def test_the_query_of_a_client_that_leaves_is_cancelled() -> None:
    ended: list[BaseException] = []

    class Slow(FakeDatabase):
        async def execute_query(self, query: Query, **how: Any) -> QueryResult:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError as error:
                ended.append(error)
                raise
            raise AssertionError

    question = body(b'{"query": {"kind": "find_nodes"}}')
    scope = http_scope("POST", "/v1/query")
    assert await send_http(create_app(Slow(SMALL)), scope, question) == []
    await asyncio.sleep(0)
    assert len(ended) == 1


async def test_internal_requests_are_handed_over(database: FakeDatabase) -> None:
    async def internal(scope: Any, _receive: Any, send: Any) -> None:
        headers = [(b"x-path", scope["path"].encode())]
        await send({"type": "http.response.start", "status": 204, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    transport = httpx.ASGITransport(create_app(database, internal=internal))
    async with httpx.AsyncClient(transport=transport, base_url="http://n") as client:
        answer = await client.post("/internal/v1/stream")
    assert (answer.status_code, answer.headers["x-path"]) == (204, "/internal/v1/stream")


async def test_every_hot_route_is_documented(gateway: Gateway, database: FakeDatabase) -> None:
    hot_path = HotPath(database, Metrics(), forward_default=False)
    paths = gateway.api.openapi()["paths"]
    for method, path in hot_path.by_method_and_path:
        assert method.lower() in paths[path]
    for route in hot_path.by_route:
        assert route in paths


async def test_no_answer_allows_another_origin(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v1/status", headers={"origin": "http://evil.example"})
    assert not [name for name in answer.headers if name.startswith("access-control")]
