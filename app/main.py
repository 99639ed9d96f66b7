"""The gateway of one node: the ASGI application that clients and peers talk to.

::

    request ──► Gateway ──► hot path (a dictionary)      operations, batch, query, nodes
                   ├──────► internal                     frames between peers
                   └──────► FastAPI                      everything else, and all of OpenAPI
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from time import perf_counter
from typing import Final

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.routing import Match, Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.docs import add_docs
from app.hot_path import NODE_PREFIX, HotPath
from app.metrics import Metrics
from app.ports import Database
from app.problems import MethodNotAllowed, error_answer, invalid_framework_request
from app.rendering import NO_STORE, as_response, json_answer
from app.routes import (
    entities,
    events,
    indexes,
    operations,
    partitions,
    queries,
    status,
    transactions,
)
from app.schemas.status import Root
from cluster_core.errors import KotobaError, NotFound

__all__ = ["Gateway", "create_api", "create_app"]

TITLE: Final = "Kotoba"
DESCRIPTION: Final = """\
A distributed property-graph database. Every node of the cluster answers every request.

Errors are problem documents (RFC 9457) with a `code`; 307 and 503 mean: certainly not executed.
Unknown fields and parameters are errors, and types are strict.

Values: null, bool, int (64 bits), float (finite), string, lists of these, bytes as
`{"/": {"bytes": "<base64, no padding>"}}` and links as `{"/": "<cid>"}`.

`WS /v1/events?types=NodeFailed,LeaderElected,Change&labels=Person&partitions=1,2` sends events as
JSON text: what happens in the cluster, and every change of the graph, with
`{"type": "Resolved", "timestamp": "…"}` when nothing older will come. Close codes: 4400 a parameter
is wrong, 4501 `since` is not supported yet, 1013 the reader was too slow.
"""
METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")


def package_version() -> str:
    """The version of this package, also where it runs from a source tree."""
    try:
        return version("kotoba-db-cluster")
    except PackageNotFoundError:
        return "0.1.0"


def create_app(
    database: Database, *, forward_default: bool = False, internal: ASGIApp | None = None
) -> Gateway:
    """The application that serves ``database``.

    ``forward_default``: pass operations on to their leader unless the client says otherwise.
    ``internal``: gets every request below ``/internal/``.
    """
    metrics = Metrics()
    hot_path = HotPath(database, metrics, forward_default=forward_default)
    api = create_api()
    api.state.database = database
    api.state.metrics = metrics
    api.state.hot_path = hot_path
    return Gateway(api, hot_path, metrics, internal)


def create_api() -> FastAPI:
    """All endpoints, without a database to serve: enough for OpenAPI."""
    api = FastAPI(
        title=TITLE,
        version=package_version(),
        description=DESCRIPTION,
        license_info={"name": "MIT", "identifier": "MIT"},
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=_operation_id,
        telemetry={"tracing": False, "metrics": False, "logs": False},
        exception_handlers={
            KotobaError: _answer_error,
            RequestValidationError: _answer_invalid,
            HTTPException: _answer_http,
            Exception: _answer_error,
        },
    )
    for router in (
        operations.router,
        transactions.router,
        queries.router,
        indexes.hot_router,
        indexes.router,
        entities.hot_router,
        entities.router,
        status.router,
        partitions.hot_router,
        partitions.router,
        events.router,
    ):
        api.include_router(router)
    api.add_api_route("/", _root, response_model=Root, tags=["cluster"], summary="Where to begin")
    add_docs(api)
    return api


async def _root(request: Request) -> Response:
    links = {"docs": "/docs", "openapi": "/openapi.json", "status": "/v1/status"}
    document = {
        "name": TITLE,
        "version": package_version(),
        "node_id": request.app.state.database.node_id,
        "links": links,
    }
    return as_response(json_answer(document))


def _operation_id(route: APIRoute) -> str:
    return route.name.lstrip("_")


class Gateway:
    """Sends each request to who answers it; the hot ones past the framework."""

    def __init__(
        self, api: FastAPI, hot_path: HotPath, metrics: Metrics, internal: ASGIApp | None
    ) -> None:
        self.api = api
        self._hot = hot_path.by_method_and_path
        self._node = hot_path.node
        self._metrics = metrics
        self._internal = internal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.api(scope, receive, send)
            return
        handler = self._hot.get((scope["method"], scope["path"]))
        if handler is not None:
            await handler(scope, receive, send)
            return
        await self._dispatch(scope, receive, send)

    async def _dispatch(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        if self._internal is not None and path.startswith("/internal/"):
            await self._internal(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            scope, send = {**scope, "method": "GET"}, _without_body(send)
        if scope["method"] == "GET" and path.startswith(NODE_PREFIX) and _is_last(path):
            await self._node(scope, receive, send)
            return
        await self._through_framework(scope, receive, send)

    async def _through_framework(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = perf_counter()
        status = 0

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = _not_to_be_kept(message)
            await send(message)

        try:
            await self.api(scope, receive, send_and_note)
        except Exception:
            # Starlette raises again what our handler has answered and logged already.
            if status != 500:
                raise
        route = getattr(scope.get("route"), "path", "other")
        self._metrics.observe(route, scope["method"], status, perf_counter() - started)


def _not_to_be_kept(start: Message) -> Message:
    """The start of an answer, with the contract's Cache-Control where it has none of its own."""
    if any(name == b"cache-control" for name, _ in start["headers"]):
        return start
    return {**start, "headers": [*start["headers"], NO_STORE]}


def _is_last(path: str) -> bool:
    """Whether ``path`` ends in the one segment after the prefix of nodes."""
    return len(path) > len(NODE_PREFIX) and path.find("/", len(NODE_PREFIX)) < 0


def _without_body(send: Send) -> Send:
    """For HEAD: the headers of GET, nothing else (RFC 9110, 9.3.2)."""

    async def send_headers(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    return send_headers


async def _answer_error(request: Request, exception: Exception) -> Response:
    return as_response(error_answer(exception, request.scope))


async def _answer_invalid(request: Request, exception: Exception) -> Response:
    assert isinstance(exception, RequestValidationError)
    error = invalid_framework_request(exception.errors())
    return as_response(error_answer(error, request.scope))


async def _answer_http(request: Request, exception: Exception) -> Response:
    """What the router refuses: a path or a method that is not there."""
    assert isinstance(exception, HTTPException)
    scope = request.scope
    error: KotobaError
    if exception.status_code == 404:
        error = NotFound(f"There is nothing at {scope['path'][:200]}")
    elif exception.status_code == 405:
        allow = _methods_of(scope)
        error = MethodNotAllowed(f"This path has {', '.join(allow)}", allow=allow)
    else:
        return as_response(error_answer(exception, scope))
    return as_response(error_answer(error, scope))


def _methods_of(scope: Scope) -> list[str]:
    """Every method that the path has; the router knows only those of its first match.

    Mounted files match with every method, and have the two of reading.
    """
    routes = [route for route in scope["app"].routes if not isinstance(route, Mount)]
    found = [
        method
        for method in METHODS
        if any(route.matches({**scope, "method": method})[0] is Match.FULL for route in routes)
    ]
    return ["GET", "HEAD", *found[1:]] if "GET" in found else found or ["GET", "HEAD"]
