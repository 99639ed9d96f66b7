"""The state of this node and its cluster: for people, load balancers and Prometheus."""

from __future__ import annotations

import logging
from typing import Final

import msgspec
from fastapi import APIRouter, Depends, Response
from prometheus_client import CONTENT_TYPE_LATEST

from app.dependencies import ServedDatabase, ServedMetrics, no_parameters
from app.problems import Answer
from app.rendering import NO_STORE, as_response, json_answer
from app.schemas import status as schemas
from app.schemas.problems import problems
from cluster_core.errors import KotobaError
from cluster_core.status import ClusterStatus

__all__ = ["router"]

_log: Final = logging.getLogger("kotoba.gateway")

RETRY_AFTER: Final = (b"retry-after", b"1")

router: Final = APIRouter(tags=["cluster"], dependencies=[Depends(no_parameters)])


@router.get(
    "/v1/status",
    summary="The cluster as this node sees it",
    response_model=schemas.ClusterStatus,
    responses=problems("invalid_request", "unavailable", "internal"),
)
async def get_status(database: ServedDatabase) -> Response:
    status = await database.get_status()
    return as_response(json_answer(msgspec.to_builtins(status)))


@router.get(
    "/v1/health",
    summary="The health of the cluster",
    response_model=schemas.Health,
    responses={503: {"model": schemas.Health, "description": "This node cannot serve."}},
)
async def get_health(database: ServedDatabase) -> Response:
    """What is wrong with the cluster. The status code is 503 only when this node cannot serve."""
    health = await database.check_health()
    document = {
        "is_healthy": health.is_healthy,
        "failed_nodes_count": health.failed_nodes_count,
        "reasons": health.reasons,
    }
    return _unless_unavailable(document, available=health.can_serve)


@router.get("/livez", summary="This process lives", response_model=schemas.Live)
async def get_live() -> Response:
    return as_response(json_answer({"is_live": True}))


@router.get(
    "/readyz",
    summary="This node can serve",
    response_model=schemas.Ready,
    responses={503: {"model": schemas.Ready, "description": "Not (yet); `missing` says why."}},
)
async def get_ready(database: ServedDatabase) -> Response:
    """It has joined, its disk works, and it can reach a leader for most partitions."""
    ready = await database.readiness()
    return _unless_unavailable(msgspec.to_builtins(ready), available=ready.is_ready)


def _unless_unavailable(document: object, *, available: bool) -> Response:
    if available:
        return as_response(json_answer(document))
    return as_response(json_answer(document, RETRY_AFTER, status=503))


@router.get(
    "/metrics",
    summary="Counts for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def get_metrics(database: ServedDatabase, metrics: ServedMetrics) -> Response:
    text = metrics.text(await _status_or_none(database))
    headers = [
        (b"content-type", CONTENT_TYPE_LATEST.encode()),
        (b"content-length", b"%d" % len(text)),
        NO_STORE,
    ]
    return as_response(Answer(200, headers, text))


async def _status_or_none(database: ServedDatabase) -> ClusterStatus | None:
    """A node that cannot say its status still has counts of its own."""
    try:
        return await database.get_status()
    except KotobaError as error:
        _log.warning("metrics without status: %s", error.detail)
        return None
