"""The property indexes: declared, listed, dropped. The label index needs no declaration."""

from __future__ import annotations

from typing import Annotated, Final
from urllib.parse import unquote_to_bytes

from fastapi import APIRouter, Body, Depends, Path, Request, Response

from app.dependencies import ServedDatabase, no_parameters
from app.hot_path import INDEXES_PATH, HotRoute
from app.rendering import as_response, index_json, json_answer
from app.schemas import indexes as schemas
from app.schemas.indexes import Index, Indexes, IndexRequest
from app.schemas.problems import problems
from cluster_core.errors import NotFound

__all__ = ["hot_router", "router"]

hot_router: Final = APIRouter(route_class=HotRoute, tags=["indexes"])
router: Final = APIRouter(tags=["indexes"])

_UNAVAILABLE: Final = ("no_leader", "unavailable", "overloaded", "timeout", "internal")


@hot_router.post(
    INDEXES_PATH,
    summary="Declare an index",
    response_model=Index,
    status_code=201,
    response_description="It is declared, and is being built.",
    responses={
        200: {"model": Index, "description": "It was declared before."},
        **problems(
            "invalid_request",
            "too_large",
            "unsupported_media_type",
            "storage_full",
            *_UNAVAILABLE,
        ),
    },
)
async def declare_index(
    index: Annotated[IndexRequest, Body(openapi_examples=schemas.EXAMPLES)],
) -> None:
    """On one property of the nodes and edges with one label.

    It is built while writes go on; `GET /v1/indexes` says how far it is. From then on queries take
    it for `eq`, `in`, ranges and `starts_with`, and for `order_by` with a `limit`: ask
    `POST /v1/query/explain`. Where the property is missing it counts as null.
    """


@router.get(
    INDEXES_PATH,
    summary="The declared indexes",
    response_model=Indexes,
    responses=problems("invalid_request", *_UNAVAILABLE),
    dependencies=[Depends(no_parameters)],
)
async def get_indexes(database: ServedDatabase) -> Response:
    indexes = await database.indexes()
    return as_response(json_answer({"indexes": [index_json(index) for index in indexes]}))


@router.delete(
    INDEXES_PATH + "/{label:path}/{property:path}",
    summary="Drop an index",
    response_model=Index,
    responses=problems("invalid_request", "not_found", "storage_full", *_UNAVAILABLE),
    dependencies=[Depends(no_parameters)],
)
async def drop_index(
    request: Request,
    label: Annotated[str, Path(examples=["Person"])],
    property: Annotated[str, Path(examples=["name"])],
    database: ServedDatabase,
) -> Response:
    """No query uses it any more, and its entries go in the background. A slash in a name is written
    `%2F`."""
    index = await database.drop_index(*_names(request))
    return as_response(json_answer(index_json(index)))


def _names(request: Request) -> tuple[str, str]:
    """Label and property as the client wrote them: in the decoded path a slash of a name looks like
    the one between them."""
    raw: bytes = request.scope.get("raw_path") or request.scope["path"].encode()
    parts = raw.split(b"?")[0].split(b"/v1/indexes/", 1)[-1].split(b"/")
    try:
        label, name = (unquote_to_bytes(part).decode() for part in parts)
    except ValueError:
        raise NotFound("An index has a path of two names: its label and its property") from None
    return label, name
