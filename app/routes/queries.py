"""``POST /v1/query``: its documentation; :mod:`app.hot_path` answers."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Body, Header

from app.hot_path import EXPLAIN_PATH, QUERY_PATH, HotRoute
from app.schemas import queries as schemas
from app.schemas.problems import problems
from app.schemas.queries import PlanAnswer, QueryAnswer, QueryRequest

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


@router.post(
    EXPLAIN_PATH,
    summary="Explain a query",
    response_model=PlanAnswer,
    response_description="The plan; nothing is read.",
    responses=problems(
        "invalid_request", "too_large", "unsupported_media_type", "unavailable", "internal"
    ),
)
async def explain_query(
    query: Annotated[QueryRequest, Body(openapi_examples=schemas.EXAMPLES)],
) -> None:
    """Which index the query would use, as this node knows the indexes now, or `as_of` a past time.

    A property index is taken where the condition bounds its property: single values before closed
    ranges and `starts_with`, these before half-open ranges; else where it has the order of
    `order_by`; else the index of the first label, so name the rarest first.
    """
