"""What a query answers."""

from __future__ import annotations

from typing import Literal

import msgspec

from cluster_core.graph.entities import Edge, Entity, Vertex
from cluster_core.graph.values import Value
from cluster_core.types import Consistency, Digest, Timestamp

__all__ = [
    "Answer",
    "BlockRow",
    "CountRow",
    "PathRow",
    "QueryResult",
    "Row",
    "ServedConsistency",
    "Statistics",
    "TraversedEdge",
    "TraversedVertex",
    "VersionRow",
]


class CountRow(msgspec.Struct, frozen=True, kw_only=True):
    """``group`` is the property's value or the label, None for entities that have none.

    Without ``group_by`` there is one row, and ``group`` means nothing.
    """

    count: int
    group: Value = None


class TraversedVertex(msgspec.Struct, frozen=True, kw_only=True):
    node: Vertex
    depth: int
    via: Digest | None
    """The edge that reaches it; None at depth 0."""


class TraversedEdge(msgspec.Struct, frozen=True, kw_only=True):
    edge: Edge
    depth: int
    """Of the end that the edge was followed to."""


class PathRow(msgspec.Struct, frozen=True, kw_only=True):
    nodes: list[Vertex]
    """From source to target."""
    edges: list[Edge]
    length: int | float
    """How many edges; the sum of their weights where the query names a weight, as a float where 64
    bits are too few for a whole one."""


class VersionRow(msgspec.Struct, frozen=True, kw_only=True):
    timestamp: Timestamp
    entity: Entity | None
    """None: at ``timestamp`` it was deleted."""


class BlockRow(msgspec.Struct, frozen=True, kw_only=True):
    digest: Digest
    block: bytes


Row = Vertex | Edge | CountRow | TraversedVertex | TraversedEdge | PathRow | VersionRow | BlockRow


ServedConsistency = Consistency | Literal["as_of"]


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    partitions: int
    """Partitions that were read."""
    cluster_nodes: int
    """Cluster nodes that read them."""
    scanned: int
    """Stored pairs that they looked at."""
    elapsed_ms: float
    consistency: ServedConsistency = "strong"
    """What was given; it may be more than was asked for."""
    staleness_ms: float | None = None
    """How old the snapshot is at most, by the clock of the node that answers. 0 for a strong read;
    None for one of a given time, and where it is not known."""
    index: str | None = None
    """The label whose index was used, or ``label.property``; None where all was scanned."""


class QueryResult(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of one kind, which the query decides.

    ``cursor`` asks for the next page; with it alone the answer is not ``truncated``. An answer is
    truncated when there is more that this query would have returned, and ``bound`` names what cut
    it: limit, visited, scanned or bytes.
    """

    rows: list[Row]
    timestamp: Timestamp
    statistics: Statistics
    cursor: str | None = None
    truncated: bool = False
    bound: str | None = None
    found: dict[Digest, int] = {}
    """Of :class:`~cluster_core.query.plan.Get`: the place in ``rows`` of each CID that exists."""
    asked_session: Timestamp = 0
    """The session that the client came with."""

    @property
    def session(self) -> Timestamp:
        """What the client's next read has to see: it never goes back, though a strong read of one
        partition may be of an earlier time than the client's last write in another."""
        return max(self.timestamp, self.asked_session)


class Answer(msgspec.Struct, kw_only=True):
    """A :class:`QueryResult` before the time and the statistics are known."""

    rows: list[Row]
    cursor: str | None = None
    bound: str | None = None
    found: dict[Digest, int] = {}
