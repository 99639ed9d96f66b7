"""The query parameters with which single entities and their surroundings are read."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from app.problems import invalid
from app.schemas.operations import TimeoutMs
from app.schemas.values import CID_EXAMPLE, COUNT_MAX, CidText, Items, RequestModel
from cluster_core.graph.cid import parse_cid
from cluster_core.query.plan import LIMIT_DEFAULT, Blocks, Direction
from cluster_core.types import Consistency

__all__ = [
    "BLOCKS_REQUEST",
    "BlockParameters",
    "BlocksRequest",
    "EdgeParameters",
    "HistoryParameters",
    "NeighbourParameters",
    "NoParameters",
    "NodeParameters",
    "ReadParameters",
]


class NoParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ReadParameters(NoParameters):
    consistency: Annotated[
        Consistency,
        Field(
            description="`strong`: linearizable. `read_your_writes`: at least as new as the "
            "Kotoba-Session header. `eventual`: what this node has. Kotoba-Consistency in the "
            "answer says which was given."
        ),
    ] = "strong"
    as_of: Annotated[
        str | None,
        Field(
            description="A past time: a timestamp of the database or RFC 3339.",
            examples=["2026-11-23T14:36:40.123Z"],
        ),
    ] = None
    max_staleness_ms: Annotated[
        int | None,
        Field(ge=0, le=COUNT_MAX, description="With `eventual`: how old the answer may be."),
    ] = None
    timeout_ms: TimeoutMs = None


class NodeParameters(ReadParameters):
    version: Annotated[CidText | None, Field(description="Exactly this version of the entity.")] = (
        None
    )


class EdgeParameters(NodeParameters):
    source_cid: Annotated[
        CidText | None,
        Field(description="The node where the edge begins: saves asking every partition."),
    ] = None


class BlockParameters(NoParameters):
    source_cid: Annotated[
        CidText | None,
        Field(
            description="The node that it is a version of, or where the edge begins: saves asking "
            "every partition."
        ),
    ] = None


class BlocksRequest(RequestModel):
    """Blocks by their CIDs."""

    cids: Annotated[Items[CidText], Field(examples=[[CID_EXAMPLE]])]
    source_cids: Annotated[
        Items[CidText | None] | None,
        Field(
            description="For each of `cids` the node that it is a version of, or where the edge "
            "begins: it is looked for there alone. Null where that is not known: then every "
            "partition is asked.",
            examples=[[CID_EXAMPLE]],
        ),
    ] = None
    timeout_ms: TimeoutMs = None

    def to_plan(self) -> Blocks:
        sources = self.source_cids or ()
        if self.source_cids is not None and len(sources) != len(self.cids):
            raise invalid("source_cids", "must be as many as there are cids")
        return Blocks(
            cids=tuple(parse_cid(cid, f"cids.{i}") for i, cid in enumerate(self.cids)),
            sources=tuple(
                None if cid is None else parse_cid(cid, f"source_cids.{i}")
                for i, cid in enumerate(sources)
            ),
        )


BLOCKS_REQUEST: Final[TypeAdapter[BlocksRequest]] = TypeAdapter(BlocksRequest)


class HistoryParameters(ReadParameters):
    limit: Annotated[int, Field(ge=1, le=COUNT_MAX, description="Versions, at most.")] = (
        LIMIT_DEFAULT
    )


class NeighbourParameters(ReadParameters):
    direction: Direction = "out"
    label: Annotated[str | None, Field(description="Only edges with this label.")] = None
    limit: Annotated[int, Field(ge=1, le=COUNT_MAX, description="Edges on a page, at most.")] = (
        LIMIT_DEFAULT
    )
    cursor: Annotated[
        str | None, Field(description="From the page before: continues in its snapshot.")
    ] = None
