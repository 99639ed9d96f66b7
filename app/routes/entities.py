"""Nodes, edges and blocks by their CIDs."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Response

from app.dependencies import ServedDatabase, Session
from app.hot_path import BLOCKS_PATH, NODE_PREFIX, HotRoute
from app.problems import Answer
from app.reading import read, read_blocks, read_entity
from app.rendering import as_response, query_answer
from app.schemas.entities import Edge, Node
from app.schemas.problems import problems
from app.schemas.queries import EdgesAnswer, HistoryAnswer
from app.schemas.reads import (
    BlockParameters,
    BlocksRequest,
    EdgeParameters,
    HistoryParameters,
    NeighbourParameters,
    NodeParameters,
)
from app.schemas.values import CidText
from cluster_core.errors import NotFound
from cluster_core.graph import entities
from cluster_core.graph.cid import parse_cid
from cluster_core.query.plan import Blocks, History, Neighbours
from cluster_core.query.results import VersionRow

__all__ = ["hot_router", "router"]

hot_router: Final = APIRouter(route_class=HotRoute, tags=["reading"])
router: Final = APIRouter(tags=["reading"])

_READ_PROBLEMS: Final = problems(
    "invalid_request",
    "not_found",
    "history_collected",
    "no_leader",
    "unavailable",
    "overloaded",
    "timeout",
    "internal",
)
_ENTITY_HEADERS: Final[dict[str, Any]] = {
    "ETag": {"schema": {"type": "string"}, "description": '`"<version>"`'},
    "Kotoba-Session": {"schema": {"type": "string"}, "description": "The time of the read."},
    "Kotoba-Consistency": {
        "schema": {"type": "string"},
        "description": "What was given: strong, read_your_writes, eventual or as_of.",
    },
}
_ENTITY: Final[dict[int | str, dict[str, Any]]] = {
    **_READ_PROBLEMS,
    200: {"headers": _ENTITY_HEADERS},
}


@hot_router.get(
    NODE_PREFIX + "{cid}", summary="Read a node", response_model=Node, responses=_ENTITY
)
async def get_node(
    cid: CidText, parameters: Annotated[NodeParameters, Query()], session: Session
) -> None:
    """The node as it is at the time of the read. The CID of a version gives that version."""


@router.get("/v1/edges/{cid}", summary="Read an edge", response_model=Edge, responses=_ENTITY)
async def get_edge(
    cid: CidText,
    parameters: Annotated[EdgeParameters, Query()],
    session: Session,
    database: ServedDatabase,
) -> Response:
    """The edge as it is at the time of the read. Without `source_cid` every partition is asked."""
    answer = await read_entity(database, entities.Edge, cid, parameters, session)
    return as_response(answer)


@router.get(
    NODE_PREFIX + "{cid}/edges",
    summary="Read the edges of a node",
    response_model=EdgesAnswer,
    responses=_READ_PROBLEMS,
)
async def get_node_edges(
    cid: CidText,
    parameters: Annotated[NeighbourParameters, Query()],
    session: Session,
    database: ServedDatabase,
) -> Response:
    """A page of the edges that begin or end at the node. A loop is one row."""
    query = Neighbours(
        vertex=parse_cid(cid, "path.cid"),
        direction=parameters.direction,
        label=parameters.label,
        limit=parameters.limit,
        cursor=parameters.cursor,
    )
    return as_response(await query_answer(await read(database, query, parameters, session)))


@router.get(
    NODE_PREFIX + "{cid}/history",
    summary="Read the history of a node",
    response_model=HistoryAnswer,
    responses=_READ_PROBLEMS,
)
async def get_node_history(
    cid: CidText,
    parameters: Annotated[HistoryParameters, Query()],
    session: Session,
    database: ServedDatabase,
) -> Response:
    """The versions that are kept, newest first, deletions included."""
    query = History(digest=parse_cid(cid, "path.cid"), limit=parameters.limit)
    result = await read(database, query, parameters, session)
    kept = (row.entity for row in result.rows if isinstance(row, VersionRow))
    if any(isinstance(entity, entities.Edge) for entity in kept):
        raise NotFound(f"{cid} is no node", cid=cid)
    return as_response(await query_answer(result))


@router.get(
    "/v1/blocks/{cid}",
    summary="Read a block",
    response_class=Response,
    responses={
        **problems("invalid_request", "not_found", "unavailable", "timeout", "internal"),
        200: {
            "description": "The bytes whose sha2-256 the CID is.",
            "content": {
                "application/vnd.ipld.dag-cbor": {"schema": {"type": "string", "format": "binary"}}
            },
        },
    },
)
async def get_block(
    cid: CidText,
    parameters: Annotated[BlockParameters, Query()],
    session: Session,
    database: ServedDatabase,
) -> Response:
    """The DAG-CBOR block of one version, as any IPLD tool can verify it."""
    cids = (parse_cid(cid, "path.cid"),)
    found = None
    if parameters.source_cid is not None:
        sources = (parse_cid(parameters.source_cid, "query.source_cid"),)
        found = await read_blocks(database, Blocks(cids=cids, sources=sources), session, None)
    if found is None or not found.blocks:
        found = await read_blocks(database, Blocks(cids=cids), session, None)
    if not found.blocks:
        raise NotFound(f"There is no block {cid}", cid=cid)
    ((_, block),) = found.blocks
    headers = [
        (b"content-type", b"application/vnd.ipld.dag-cbor"),
        (b"content-length", b"%d" % len(block)),
        (b"cache-control", b"public, max-age=31536000, immutable"),
        (b"etag", b'"%b"' % cid.encode()),
    ]
    return as_response(Answer(200, headers, block))


@hot_router.post(
    BLOCKS_PATH,
    summary="Read many blocks",
    response_class=Response,
    responses={
        **problems(
            "invalid_request",
            "not_found",
            "too_large",
            "unsupported_media_type",
            "no_leader",
            "unavailable",
            "timeout",
            "internal",
        ),
        200: {
            "description": "A CAR archive, version 1, of the blocks that there are, in the order "
            "asked for. Each is a root of it.",
            "headers": {
                "Kotoba-Truncated": {
                    "schema": {"type": "string"},
                    "description": "`bytes`: there was no room for what comes after the last "
                    "block; ask for the rest.",
                }
            },
            "content": {
                "application/vnd.ipld.car": {"schema": {"type": "string", "format": "binary"}}
            },
        },
    },
)
async def get_blocks(blocks: BlocksRequest) -> None:
    """The DAG-CBOR blocks of versions, each once, as any IPLD tool can verify them.

    What is not there is left out; 404 where that is all of them.
    """
