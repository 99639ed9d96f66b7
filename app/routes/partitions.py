"""The partitions: their replicas and leaders, and which one a CID belongs to."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Body, Depends, Path, Query, Response
from pydantic import BaseModel, ConfigDict

from app.dependencies import ServedDatabase, no_parameters
from app.hot_path import LEADER_PATH, HotRoute
from app.rendering import as_response, json_answer
from app.schemas import status as schemas
from app.schemas.problems import problems
from app.schemas.values import CidText
from cluster_core.graph.cid import parse_cid

__all__ = ["hot_router", "router"]

hot_router: Final = APIRouter(route_class=HotRoute, tags=["cluster"])
router: Final = APIRouter(tags=["cluster"])

_PROBLEMS: Final = problems("invalid_request", "not_found", "unavailable", "internal")


class KeyParameters(BaseModel):
    model_config = ConfigDict(extra="forbid")

    key: CidText


@router.get(
    "/v1/partitions",
    summary="All partitions",
    response_model=schemas.Partitions,
    responses=_PROBLEMS,
    dependencies=[Depends(no_parameters)],
)
async def get_partitions(database: ServedDatabase) -> Response:
    partitions = await database.partitions()
    return as_response(json_answer({"partitions": msgspec.to_builtins(partitions)}))


@router.get(
    "/v1/partitions/of",
    summary="The partition of a CID",
    response_model=schemas.PartitionOfKey,
    responses=_PROBLEMS,
)
async def get_partition_of(
    parameters: Annotated[KeyParameters, Query()], database: ServedDatabase
) -> Response:
    """Where the node with this CID lives; an edge lives with its source."""
    partition = await database.partition_of(parse_cid(parameters.key, "query.key"))
    document: dict[str, Any] = {
        "key": parameters.key,
        **msgspec.to_builtins(partition),
        "nodes": [replica.node_id for replica in partition.replicas],
    }
    return as_response(json_answer(document))


@router.get(
    "/v1/partitions/{partition}",
    summary="One partition",
    response_model=schemas.Partition,
    responses=_PROBLEMS,
    dependencies=[Depends(no_parameters)],
)
async def get_partition(
    partition: Annotated[str, Path(pattern="^[0-9]{1,4}$", examples=["17"])],
    database: ServedDatabase,
) -> Response:
    status = await database.partition(int(partition))
    return as_response(json_answer(msgspec.to_builtins(status)))


@hot_router.post(
    LEADER_PATH,
    summary="Choose a leader",
    response_model=schemas.Partition,
    response_description="It leads.",
    responses=problems(
        "invalid_request",
        "not_found",
        "too_large",
        "unsupported_media_type",
        "no_leader",
        "unavailable",
        "overloaded",
        "storage_full",
        "timeout",
        "internal",
    ),
)
async def transfer_leadership(
    partition: Annotated[str, Path(pattern="^[0-9]{1,4}$", examples=["17"])],
    request: Annotated[schemas.LeaderRequest, Body()],
) -> None:
    """Let a cluster node that has a vote in the partition lead it, and be the first that shall lead
    it from now on. Nothing that is being written is lost by it."""
