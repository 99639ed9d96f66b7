"""``POST /v1/query``: its documentation; :mod:`app.hot_path` answers."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Body, Header

from app.hot_path import QUERY_PATH, HotRoute
from app.schemas import queries as schemas
from app.schemas.problems import problems
from app.schemas.queries import QueryAnswer, QueryRequest

__all__ = ["router"]

router: Final = APIRouter(route_class=HotRoute, tags=["reading"])


@router.post(
    QUERY_PATH,
    summary="Ask the graph",
    response_model=QueryAnswer,
    response_description="The rows, and what they cost.",
    responses=problems(
        "invalid_request",
        "not_found",
        "history_collected",
        "too_large",
        "unsupported_media_type",
        "no_leader",
        "unavailable",
        "overloaded",
        "timeout",
        "internal",
    ),
)
async def execute_query(
    query: Annotated[QueryRequest, Body(openapi_examples=schemas.EXAMPLES)],
    kotoba_session: Annotated[
        str | None,
        Header(alias="Kotoba-Session", description="A timestamp that the answer must include."),
    ] = None,
) -> None:
    """All partitions are read in one snapshot; `timestamp` says which.

    Every query is bounded. An answer that a bound has cut says `truncated`, and `bound` names it.
    """
