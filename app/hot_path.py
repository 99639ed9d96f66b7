"""The routes that carry the load: bare ASGI, found in a dictionary ahead of the router.

Measured on this interpreter, uvicorn's protocol and the application without the socket: a POST of
an operation takes 155 µs through a FastAPI endpoint and 20 µs here. What a framework would do is
done by hand: media type, body limit, validation, problems. FastAPI keeps the documentation: the
endpoints in ``routes/`` are :class:`HotRoute`, whose handler is the one of this table, so that a
request that reaches the router after all (behind a path prefix) is answered by the same code.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from functools import lru_cache
from time import perf_counter
from typing import Any, Final, TypeVar

import msgspec
from fastapi import Request, Response
from fastapi.routing import APIRoute
from msgspec.structs import replace
from pydantic import TypeAdapter, ValidationError
from starlette.types import Receive, Scope, Send

from app.batch import Batch, keys_of, read_json_batch, read_ndjson_batch, refuse_repeated_keys
from app.metrics import Metrics
from app.ports import Database
from app.problems import Answer, ClientGone, error_answer, invalid, invalid_body
from app.reading import read_blocks, read_entity, timeout_of
from app.rendering import (
    archive_answer,
    batch_answer,
    index_json,
    json_answer,
    operation_answer,
    plan_answer,
    query_answer,
    transaction_answer,
)
from app.requests import (
    JSON,
    NDJSON,
    Headers,
    headers_of,
    idempotency_key_of,
    if_match_of,
    media_type_of,
    parameters_of,
    read_body,
    session_of,
    while_connected,
)
from app.schemas.indexes import INDEX_REQUEST
from app.schemas.operations import (
    OPERATION,
    BatchParameters,
    TransactionParameters,
    WriteParameters,
)
from app.schemas.queries import QUERY_REQUEST
from app.schemas.reads import BLOCKS_REQUEST, NodeParameters, NoParameters
from app.schemas.status import LEADER_REQUEST, PARTITION_NUMBER
from app.schemas.values import RequestModel
from app.transactions import read_transaction
from cluster_core.errors import NotFound
from cluster_core.graph.cid import parse_cid
from cluster_core.graph.entities import Vertex
from cluster_core.graph.operations import CreateEdge, CreateNode, Operation
from cluster_core.hlc import parse_timestamp

__all__ = [
    "BATCH_PATH",
    "BLOCKS_PATH",
    "EXPLAIN_PATH",
    "INDEXES_PATH",
    "LEADER_PATH",
    "NODE_PREFIX",
    "OPERATIONS_PATH",
    "QUERY_PATH",
    "TRANSACTIONS_PATH",
    "HotPath",
    "HotRoute",
]

Handler = Callable[[Scope, Receive, Send], Awaitable[None]]
M = TypeVar("M", bound=RequestModel)
Answering = Callable[[Scope, Receive], Coroutine[Any, Any, Answer]]

OPERATIONS_PATH: Final = "/v1/operations"
BATCH_PATH: Final = "/v1/operations/batch"
TRANSACTIONS_PATH: Final = "/v1/transactions"
QUERY_PATH: Final = "/v1/query"
BLOCKS_PATH: Final = "/v1/blocks"
EXPLAIN_PATH: Final = "/v1/query/explain"
INDEXES_PATH: Final = "/v1/indexes"
LEADER_PATH: Final = "/v1/partitions/{partition}/leader"
NODE_PREFIX: Final = "/v1/nodes/"

_JSON_ONLY: Final = frozenset({JSON})
_JSON_OR_LINES: Final = frozenset({JSON, NDJSON})
_WRITE_DEFAULTS: Final = WriteParameters()
_BATCH_DEFAULTS: Final = BatchParameters()
_TRANSACTION_DEFAULTS: Final = TransactionParameters()
_READ_DEFAULTS: Final = NodeParameters()

QUERY_BYTES_MAX: Final = 2 << 20
"""10,000 CIDs take 0.6 MB. (An entity takes at most six times its size: JSON may escape a byte.)"""
INDEX_BYTES_MAX: Final = 16 << 10
LEADER_BYTES_MAX: Final = 1 << 10
REMEMBERED_BYTES_MAX: Final = 100

PRINCIPAL: Final = ""
"""On whose behalf: everybody is one and the same while there are no API keys."""


class HotPath:
    """The hot routes of one node: ``by_method_and_path``, and nodes by their prefix."""

    def __init__(self, database: Database, metrics: Metrics, *, forward_default: bool) -> None:
        self._database = database
        self._metrics = metrics
        self._limits = database.config.limits
        self._operation_bytes_max = 6 * self._limits.entity_bytes_max + (64 << 10)
        self._forward_default = forward_default
        operation = self._bare(OPERATIONS_PATH, "POST", self._operation)
        batch = self._bare(BATCH_PATH, "POST", self._batch)
        transaction = self._bare(TRANSACTIONS_PATH, "POST", self._transaction)
        query = self._bare(QUERY_PATH, "POST", self._query)
        explain = self._bare(EXPLAIN_PATH, "POST", self._explain)
        blocks = self._bare(BLOCKS_PATH, "POST", self._blocks)
        index = self._bare(INDEXES_PATH, "POST", self._index)
        self.node = self._bare(NODE_PREFIX + "{cid}", "GET", self._node)
        self.by_method_and_path: Final[dict[tuple[str, str], Handler]] = {
            ("POST", OPERATIONS_PATH): operation,
            ("POST", BATCH_PATH): batch,
            ("POST", TRANSACTIONS_PATH): transaction,
            ("POST", QUERY_PATH): query,
            ("POST", EXPLAIN_PATH): explain,
            ("POST", BLOCKS_PATH): blocks,
            ("POST", INDEXES_PATH): index,
        }
        self.by_route: Final[dict[str, Handler]] = {
            OPERATIONS_PATH: operation,
            BATCH_PATH: batch,
            TRANSACTIONS_PATH: transaction,
            QUERY_PATH: query,
            EXPLAIN_PATH: explain,
            BLOCKS_PATH: blocks,
            INDEXES_PATH: index,
            LEADER_PATH: self._bare(LEADER_PATH, "POST", self._leader),
            NODE_PREFIX + "{cid}": self.node,
        }

    def _bare(self, route: str, method: str, answering: Answering) -> Handler:
        """The ASGI application of one route: answer, whatever happens, and count."""
        observe = self._metrics.observe

        async def handle(scope: Scope, receive: Receive, send: Send) -> None:
            started = perf_counter()
            try:
                status, headers, body = await answering(scope, receive)
            except ClientGone:
                return
            except Exception as exception:
                status, headers, body = error_answer(exception, scope)
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            observe(route, method, status, perf_counter() - started)

        return handle

    async def _read(
        self, receive: Receive, headers: Headers, bytes_max: int | None = None
    ) -> bytes:
        """The body: ``bytes_max`` at most, and no more than is set for all of them."""
        setting = self._limits.body_bytes_max
        if bytes_max is None or bytes_max >= setting:
            return await read_body(receive, headers, setting, "body_bytes_max")
        return await read_body(receive, headers, bytes_max)

    async def _operation(self, scope: Scope, receive: Receive) -> Answer:
        headers = headers_of(scope)
        media_type_of(headers, _JSON_ONLY)
        parameters = _write_parameters(scope["query_string"])
        body = await self._read(receive, headers, self._operation_bytes_max)
        operation = _read_operation(body, self._limits.entity_bytes_max)
        if b"if-match" in headers:
            operation = _with_version(operation, headers)
        forward = parameters.forward
        result = await self._database.execute_operation(
            operation,
            consistency=parameters.consistency,
            idempotency_key=idempotency_key_of(headers),
            principal=PRINCIPAL,
            nonce=_nonce_of(parameters, operation),
            forward=self._forward_default if forward is None else forward,
            timeout_ms=timeout_of(parameters.timeout_ms, self._limits),
        )
        return operation_answer(result, eventual=parameters.consistency == "eventual")

    async def _batch(self, scope: Scope, receive: Receive) -> Answer:
        headers = headers_of(scope)
        media_type = media_type_of(headers, _JSON_OR_LINES)
        query_string = scope["query_string"]
        parameters = (
            parameters_of(query_string, BatchParameters) if query_string else _BATCH_DEFAULTS
        )
        if b"if-match" in headers:
            raise invalid("header.if-match", "a batch has if_version in its operations instead")
        idempotency_key = idempotency_key_of(headers)
        timeout_ms = timeout_of(parameters.timeout_ms, self._limits)
        body = await self._read(receive, headers)
        operations_max = self._limits.batch_operations_max
        if media_type == NDJSON:
            lines = await read_ndjson_batch(body, operations_max)
        else:
            lines = read_json_batch(body, operations_max)
        batch = Batch(self._limits.entity_bytes_max)
        await batch.add_all(lines)
        if not batch.operations:
            return await batch_answer(batch.results([]))
        tried = await self._database.execute_batch(
            batch.operations,
            consistency=parameters.consistency,
            idempotency_key=idempotency_key,
            principal=PRINCIPAL,
            timeout_ms=timeout_ms,
        )
        await asyncio.sleep(0)
        return await batch_answer(batch.results(tried))

    async def _transaction(self, scope: Scope, receive: Receive) -> Answer:
        headers = headers_of(scope)
        media_type_of(headers, _JSON_ONLY)
        query_string = scope["query_string"]
        parameters = (
            parameters_of(query_string, TransactionParameters)
            if query_string
            else _TRANSACTION_DEFAULTS
        )
        if b"if-match" in headers:
            raise invalid("header.if-match", "a transaction has if_version in its operations")
        idempotency_key = idempotency_key_of(headers)
        timeout_ms = timeout_of(parameters.timeout_ms, self._limits)
        body = await self._read(receive, headers)
        result = await self._database.execute_transaction(
            read_transaction(body, self._limits),
            idempotency_key=idempotency_key,
            principal=PRINCIPAL,
            timeout_ms=timeout_ms,
        )
        return await transaction_answer(result)

    async def _query(self, scope: Scope, receive: Receive) -> Answer:
        headers = headers_of(scope)
        request = await self._request(scope, receive, headers, QUERY_REQUEST, QUERY_BYTES_MAX)
        session = request.session
        asking = self._database.execute_query(
            request.to_plan(),
            consistency=request.consistency,
            as_of=None if request.as_of is None else parse_timestamp(request.as_of, where="as_of"),
            session=session_of(headers)
            if session is None
            else parse_timestamp(session, where="session"),
            max_staleness_ms=request.max_staleness_ms,
            timeout_ms=timeout_of(request.timeout_ms, self._limits),
        )
        return await query_answer(await while_connected(receive, asking))

    async def _explain(self, scope: Scope, receive: Receive) -> Answer:
        headers = headers_of(scope)
        request = await self._request(scope, receive, headers, QUERY_REQUEST, QUERY_BYTES_MAX)
        as_of = None if request.as_of is None else parse_timestamp(request.as_of, where="as_of")
        return plan_answer(await self._database.explain_query(request.to_plan(), as_of=as_of))

    async def _request(
        self,
        scope: Scope,
        receive: Receive,
        headers: Headers,
        adapter: TypeAdapter[M],
        bytes_max: int,
    ) -> M:
        """The JSON of a request that has no parameters beside it."""
        media_type_of(headers, _JSON_ONLY)
        if scope["query_string"]:
            parameters_of(scope["query_string"], NoParameters)
        return _read_request(adapter, await self._read(receive, headers, bytes_max))

    async def _blocks(self, scope: Scope, receive: Receive) -> Answer:
        headers = headers_of(scope)
        request = await self._request(scope, receive, headers, BLOCKS_REQUEST, QUERY_BYTES_MAX)
        asking = read_blocks(
            self._database, request.to_plan(), session_of(headers), request.timeout_ms
        )
        found = await while_connected(receive, asking)
        if not found.blocks:
            raise NotFound("There is none of these blocks")
        return archive_answer(found.blocks, truncated=found.truncated)

    async def _index(self, scope: Scope, receive: Receive) -> Answer:
        headers = headers_of(scope)
        request = await self._request(scope, receive, headers, INDEX_REQUEST, INDEX_BYTES_MAX)
        index, is_new = await self._database.declare_index(request.label, request.property)
        return json_answer(index_json(index), status=201 if is_new else 200)

    async def _leader(self, scope: Scope, receive: Receive) -> Answer:
        headers = headers_of(scope)
        partition: str = scope["path_params"]["partition"]
        if not PARTITION_NUMBER.fullmatch(partition):
            raise invalid("path.partition", "is not the number of a partition")
        request = await self._request(scope, receive, headers, LEADER_REQUEST, LEADER_BYTES_MAX)
        status = await self._database.transfer_leadership(int(partition), request.node_id)
        return json_answer(msgspec.to_builtins(status))

    async def _node(self, scope: Scope, receive: Receive) -> Answer:
        query_string = scope["query_string"]
        return await read_entity(
            self._database,
            Vertex,
            scope["path"].rpartition("/")[2],
            parameters_of(query_string, NodeParameters) if query_string else _READ_DEFAULTS,
            session_of(headers_of(scope)),
        )


def _write_parameters(query_string: bytes) -> WriteParameters:
    """Clients say the same thing again and again; remembering it saves 7 µs."""
    if not query_string:
        return _WRITE_DEFAULTS
    if len(query_string) <= REMEMBERED_BYTES_MAX:
        return _remembered_parameters(query_string)
    return parameters_of(query_string, WriteParameters)


@lru_cache(maxsize=256)
def _remembered_parameters(query_string: bytes) -> WriteParameters:
    return parameters_of(query_string, WriteParameters)


def _read_operation(body: bytes, entity_bytes_max: int) -> Operation:
    try:
        model = OPERATION.validate_json(body)
    except ValidationError as error:
        raise invalid_body(error, body) from None
    model.refuse_unknown()
    if keys_of(model) != body.count(b":"):
        refuse_repeated_keys(body)
    return model.to_core(entity_bytes_max)


def _read_request(adapter: TypeAdapter[M], body: bytes) -> M:
    """The request that ``body`` spells, each of its fields known and given once."""
    try:
        request = adapter.validate_json(body)
    except ValidationError as error:
        raise invalid_body(error, body) from None
    request.refuse_unknown()
    refuse_repeated_keys(body)
    return request


def _with_version(operation: Operation, headers: Headers) -> Operation:
    """``operation`` with the version of If-Match, which must not contradict its own."""
    text = if_match_of(headers)
    assert text is not None
    if isinstance(operation, CreateNode | CreateEdge):
        raise invalid("header.if-match", "a creation has no earlier version")
    version = parse_cid(text, "header.if-match")
    if operation.if_version not in (None, version):
        raise invalid("header.if-match", "contradicts if_version")
    return replace(operation, if_version=version)


def _nonce_of(parameters: WriteParameters, operation: Operation) -> bytes | None:
    if parameters.nonce is None:
        return None
    if not isinstance(operation, CreateNode | CreateEdge):
        raise invalid("query.nonce", "only a creation has a nonce")
    return bytes.fromhex(parameters.nonce)


class HotRoute(APIRoute):
    """A route whose endpoint is documentation only: the handler of the same path answers."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        path = self.path

        async def handle(request: Request) -> Response:
            hot_path: HotPath = request.app.state.hot_path
            return _Handed(hot_path.by_route[path])

        return handle


class _Handed(Response):
    """A response that leaves everything, the reading of the body too, to a bare handler."""

    def __init__(self, handler: Handler) -> None:
        super().__init__()
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._handler(scope, receive, send)
