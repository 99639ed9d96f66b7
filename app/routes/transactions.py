"""``POST /v1/transactions``: its documentation; :mod:`app.hot_path` answers."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Body, Query

from app.hot_path import TRANSACTIONS_PATH, HotRoute
from app.routes.operations import IdempotencyKey
from app.schemas import operations as schemas
from app.schemas.operations import TransactionAnswer, TransactionParameters, TransactionRequest
from app.schemas.problems import problems

__all__ = ["router"]

router: Final = APIRouter(route_class=HotRoute, tags=["writing"])


@router.post(
    TRANSACTIONS_PATH,
    summary="Execute operations, all or nothing",
    response_model=TransactionAnswer,
    response_description="All were executed, at one timestamp.",
    responses=problems(
        "invalid_request",
        "idempotency_key_reused",
        "not_found",
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
)
async def execute_transaction(
    transaction: Annotated[TransactionRequest, Body(openapi_examples=schemas.TRANSACTION_EXAMPLES)],
    parameters: Annotated[TransactionParameters, Query()],
    idempotency_key: IdempotencyKey = None,
) -> None:
    """Over any partitions, at any node, without redirects.

    Each operation sees what those before it do, and may say `"$ref"` where the CID of an earlier
    one is meant. When one fails nothing is executed, and the problem is that of the first that
    failed, with its `index`. A transaction makes at most one new version of an entity; `if_version`
    is compared with the one before it. An `update_node` that changes nothing but has `if_version`
    makes the whole depend on an entity that it only reads.
    """
