"""``POST /v1/operations`` and ``/batch``: their documentation; :mod:`app.hot_path` answers."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Body, Header, Query

from app.hot_path import BATCH_PATH, OPERATIONS_PATH, HotRoute
from app.schemas import operations as schemas
from app.schemas.operations import (
    BatchAnswer,
    BatchParameters,
    BatchRequest,
    Operation,
    OperationAnswer,
    WriteParameters,
)
from app.schemas.problems import problems
from app.schemas.values import CID_PATTERN

__all__ = ["router"]

router: Final = APIRouter(route_class=HotRoute, tags=["writing"])

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=256,
        json_schema_extra={"pattern": "^[ -~]+$"},
        description="Makes a retry safe: the same key gives the first answer and writes nothing.",
    ),
]
IfMatch = Annotated[
    str | None,
    Header(
        alias="If-Match",
        description='`"<version>"`: means the same as `if_version`.',
        json_schema_extra={"pattern": f'^"{CID_PATTERN}"$'},
    ),
]

_HEADERS: Final[dict[str, Any]] = {
    "ETag": {"schema": {"type": "string"}, "description": '`"<version>"`'},
    "Kotoba-Session": {
        "schema": {"type": "string"},
        "description": "The timestamp of this write: a reader that sends it sees the write.",
    },
}
_DONE: Final[dict[str, Any]] = {
    "headers": _HEADERS,
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/OperationAnswer"}}},
}
_REDIRECT: Final[dict[str, Any]] = {
    "description": "`not_leader`: another node leads the partition. Not executed.",
    "headers": {"Location": {"schema": {"type": "string"}, "description": "At the leader."}},
    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
}
_NDJSON: Final[dict[str, Any]] = {
    "requestBody": {
        "content": {
            "application/x-ndjson": {
                "schema": {"type": "string", "description": "One operation a line."},
                "example": '{"op": "create_node", "ref": "a"}\n'
                '{"op": "create_edge", "label": "KNOWS", "source_cid": "$a", "target_cid": "$a"}\n',
            }
        }
    }
}


@router.post(
    OPERATIONS_PATH,
    summary="Execute one operation",
    response_model=OperationAnswer,
    response_description="Done.",
    responses={
        201: {"description": "Created.", **_DONE},
        202: {"description": "With `consistency=eventual`: on the leader's disk.", **_DONE},
        **problems(
            "invalid_request",
            "idempotency_key_reused",
            "not_found",
            "already_exists",
            "precondition_failed",
            "has_edges",
            "conflict",
            "too_large",
            "unsupported_media_type",
            "no_leader",
            "unavailable",
            "overloaded",
            "timeout",
            "storage_full",
            "internal",
        ),
        200: {"headers": _HEADERS},
        307: _REDIRECT,
    },
)
async def execute_operation(
    operation: Annotated[Operation, Body(openapi_examples=schemas.EXAMPLES)],
    parameters: Annotated[WriteParameters, Query()],
    idempotency_key: IdempotencyKey = None,
    if_match: IfMatch = None,
) -> None:
    """Create, change or delete one node or edge.

    Any node takes it. Where another one leads the entity's partition, the answer is a redirect to
    it, or with `forward=true` the operation is passed on. 307 and 503 mean: certainly not executed.
    504 means that nobody knows: ask again with the same `Idempotency-Key`.
    """


@router.post(
    BATCH_PATH,
    summary="Execute many operations, each for itself",
    response_model=BatchAnswer,
    response_description="One result for each operation, in order.",
    openapi_extra=_NDJSON,
    responses=problems(
        "invalid_request",
        "too_large",
        "unsupported_media_type",
        "no_leader",
        "unavailable",
        "overloaded",
        "timeout",
        "internal",
    ),
)
async def execute_batch(
    batch: BatchRequest,
    parameters: Annotated[BatchParameters, Query()],
    idempotency_key: IdempotencyKey = None,
) -> None:
    """Each operation succeeds or fails alone, a malformed one too.

    An operation may carry a `ref`, and later ones may say `"$ref"` where a CID is meant; who names
    a failed one fails with `dependency_failed`. As NDJSON, one operation a line.
    """
