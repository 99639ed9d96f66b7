"""Reads of single entities: from parameters to a query, from its result to an answer."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any, Final, NamedTuple

from app.ports import Database
from app.problems import Answer, invalid
from app.rendering import entity_answer
from app.schemas.reads import EdgeParameters, NodeParameters, ReadParameters
from cluster_core.config import LimitConfig
from cluster_core.errors import NotFound
from cluster_core.graph.cid import parse_cid
from cluster_core.graph.entities import Edge, Vertex
from cluster_core.hlc import parse_timestamp
from cluster_core.query.plan import Blocks, Get, Query
from cluster_core.query.results import BlockRow, QueryResult
from cluster_core.types import Digest, Timestamp

__all__ = ["FoundBlocks", "read", "read_blocks", "read_entity", "timeout_of"]

_NAMES: Final[dict[type, str]] = {Vertex: "node", Edge: "edge"}


def timeout_of(timeout_ms: int | None, limits: LimitConfig) -> int | None:
    """The time-out that a client asks for, within this node's bound."""
    if timeout_ms is not None and timeout_ms > limits.timeout_ms_max:
        raise invalid("timeout_ms", f"must be at most {limits.timeout_ms_max}")
    return timeout_ms


async def read(
    database: Database, query: Query, parameters: ReadParameters, session: Timestamp | None
) -> QueryResult:
    """Execute ``query`` as new, or as old, as ``parameters`` and the session ask."""
    as_of = parameters.as_of
    return await database.execute_query(
        query,
        consistency=parameters.consistency,
        as_of=None if as_of is None else parse_timestamp(as_of, where="query.as_of"),
        session=session,
        max_staleness_ms=parameters.max_staleness_ms,
        timeout_ms=timeout_of(parameters.timeout_ms, database.config.limits),
    )


async def read_entity(
    database: Database,
    kind: type[Vertex | Edge],
    cid: str,
    parameters: NodeParameters,
    session: Timestamp | None,
) -> Answer:
    """The vertex or edge that ``cid`` names, or the version of it that is asked for."""
    digest = parse_cid(cid, "path.cid")
    version, source = parameters.version, _source_of(parameters)
    if version is None:
        query = Get(cids=(digest,), source=source)
    else:
        query = Get(cids=(parse_cid(version, "query.version"),), source=source, exact=True)
    result = await read(database, query, parameters, session)
    entity: Any = result.rows[0] if result.rows else None
    if not isinstance(entity, kind) or (version is not None and entity.digest != digest):
        raise _not_found(kind, cid, entity, version)
    return entity_answer(entity, result)


def _source_of(parameters: NodeParameters) -> bytes | None:
    if not isinstance(parameters, EdgeParameters) or parameters.source_cid is None:
        return None
    return parse_cid(parameters.source_cid, "query.source_cid")


def _not_found(kind: type[Vertex | Edge], cid: str, entity: Any, version: str | None) -> NotFound:
    name = _NAMES[kind]
    if version is not None:
        return NotFound(f"The {name} {cid} has no version {version}", cid=cid)
    if entity is not None:
        return NotFound(f"{cid} is no {name}; ask /v1/{_NAMES[type(entity)]}s", cid=cid)
    return NotFound(f"There is no {name} {cid}", cid=cid)


class FoundBlocks(NamedTuple):
    """Blocks in the order in which they were asked for, without those that are nowhere."""

    blocks: list[tuple[Digest, bytes]]
    truncated: bool
    """There was no room for what comes after the last of them."""


async def read_blocks(
    database: Database, query: Blocks, session: Timestamp | None, timeout_ms: int | None
) -> FoundBlocks:
    """Whichever replica has a block has the right one. Only that it is nowhere takes a strong
    read."""
    places = dict(zip_longest(query.cids, query.sources))
    told, blocks = list(places), dict[Digest, bytes]()
    for consistency in ("eventual", "strong"):
        missing = [digest for digest in told if digest not in blocks]
        if not missing:
            break
        result = await database.execute_query(
            Blocks(cids=tuple(missing), sources=tuple(places[digest] for digest in missing)),
            consistency=consistency,
            session=session if consistency == "strong" else None,
            timeout_ms=timeout_of(timeout_ms, database.config.limits),
        )
        rows = [row for row in result.rows if isinstance(row, BlockRow)]
        blocks.update((row.digest, row.block) for row in rows)
        if result.truncated:
            told = told[: told.index(rows[-1].digest) + 1]
    found = [(digest, blocks[digest]) for digest in told if digest in blocks]
    return FoundBlocks(found, len(told) < len(places))
