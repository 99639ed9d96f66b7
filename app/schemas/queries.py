"""The query language as clients write it, and how it becomes that of the query engine."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Discriminator, Field, Tag, TypeAdapter
from typing_extensions import TypeAliasType

from app.problems import invalid
from app.schemas.entities import Edge, Node
from app.schemas.operations import TimeoutMs
from app.schemas.values import (
    CID_EXAMPLE,
    COUNT_MAX,
    VERSION_EXAMPLE,
    AnswerModel,
    CidText,
    Items,
    JsonValue,
    RequestModel,
    TimestampText,
)
from cluster_core.graph.cid import parse_cid
from cluster_core.graph.values import value_from_json
from cluster_core.query import plan
from cluster_core.query.plan import LIMIT_DEFAULT, Direction, Operator
from cluster_core.types import Consistency, Digest

__all__ = [
    "EXAMPLES",
    "QUERY_REQUEST",
    "EdgesAnswer",
    "HistoryAnswer",
    "PlanAnswer",
    "QueryAnswer",
    "QueryRequest",
]

# Conditions


class Comparison(RequestModel):
    """One property against a literal. A missing property counts as null."""

    property: Annotated[str, Field(examples=["age"])]
    op: Operator
    value: JsonValue = None

    def to_plan(self, where: str) -> plan.Where:
        value = value_from_json(self.value, f"{where}.value")
        return plan.Comparison(self.property, self.op, value)


class And(RequestModel):
    """All of them hold."""

    and_: Annotated[Items[Where], Field(alias="and")]

    def to_plan(self, where: str) -> plan.Where:
        return plan.AllOf(_conditions(self.and_, f"{where}.and"))


class Or(RequestModel):
    """At least one of them holds."""

    or_: Annotated[Items[Where], Field(alias="or")]

    def to_plan(self, where: str) -> plan.Where:
        return plan.AnyOf(_conditions(self.or_, f"{where}.or"))


class Not(RequestModel):
    """It does not hold."""

    not_: Annotated[Where, Field(alias="not")]

    def to_plan(self, where: str) -> plan.Where:
        return plan.Negation(_condition(self.not_, f"{where}.not"))


def _shape(condition: Any) -> str | None:
    if isinstance(condition, dict):
        for key, tag in _TAGS.items():
            if key in condition:
                return tag
    return None


# Tags must not be keys as well: a problem's path is read from what pydantic reports.
_TAGS: Final = {"property": "comparison", "and": "all", "or": "any", "not": "negation"}


Where = TypeAliasType(
    "Where",
    Annotated[
        Annotated[Comparison, Tag("comparison")]
        | Annotated[And, Tag("all")]
        | Annotated[Or, Tag("any")]
        | Annotated[Not, Tag("negation")],
        Discriminator(
            _shape,
            custom_error_type="condition",
            custom_error_message='must be {"property", "op", "value"}, {"and": […]}, {"or": […]} '
            'or {"not": …}',
        ),
    ],
)


def _conditions(conditions: tuple[Where, ...], where: str) -> tuple[plan.Where, ...]:
    return tuple(_condition(c, f"{where}.{i}") for i, c in enumerate(conditions))


def _condition(condition: Where, where: str) -> plan.Where:
    condition.refuse_unknown(where)
    return condition.to_plan(where)


def _optional(condition: Where | None, where: str) -> plan.Where | None:
    if condition is None:
        return None
    _refuse_oversized(condition, f"query.{where}")
    return _condition(condition, f"query.{where}")


def _refuse_oversized(root: Where, where: str) -> None:
    """Raise InvalidRequest for more conditions or literals than a query may have, before any of
    them is converted."""
    size = plan.WhereSize()
    waiting = [(root, 1)]
    while waiting:
        condition, depth = waiting.pop()
        too_large = size.add(depth, condition.value if isinstance(condition, Comparison) else [])
        if too_large is not None:
            raise invalid(where, too_large)
        waiting += [(inner, depth + 1) for inner in _inner(condition)]


def _inner(condition: Where) -> tuple[Where, ...]:
    match condition:
        case And():
            return condition.and_
        case Or():
            return condition.or_
        case Not():
            return (condition.not_,)
    return ()


# Queries


class OrderBy(RequestModel):
    property: Annotated[str, Field(examples=["age"])]
    descending: bool = False


Limit = Annotated[int, Field(ge=1, le=COUNT_MAX, description="Rows, at most.")]
Cursor = Annotated[
    str | None, Field(description="From the page before: continues in its snapshot.")
]
Order = Annotated[Items[OrderBy] | None, Field(description="Else the order is arbitrary.")]


class Get(RequestModel):
    """Entities by CID, in the order asked for; what does not exist is left out."""

    kind: Literal["get"]
    cids: Annotated[Items[CidText], Field(examples=[[CID_EXAMPLE]])]

    def to_plan(self) -> plan.Query:
        return plan.Get(cids=_digests(self.cids, "cids"))


class FindNodes(RequestModel):
    """Nodes that have all of the labels and satisfy the condition."""

    kind: Literal["find_nodes"]
    labels: Annotated[Items[str], Field(examples=[["Person"]])] = ()
    where: Where | None = None
    order_by: Order = None
    limit: Limit = LIMIT_DEFAULT
    cursor: Cursor = None

    def to_plan(self) -> plan.Query:
        return plan.FindNodes(
            labels=self.labels,
            where=_optional(self.where, "where"),
            order_by=_order(self.order_by),
            limit=self.limit,
            cursor=self.cursor,
        )


class FindEdges(RequestModel):
    """Edges with the label that satisfy the condition."""

    kind: Literal["find_edges"]
    label: Annotated[str | None, Field(examples=["KNOWS"])] = None
    where: Where | None = None
    order_by: Order = None
    limit: Limit = LIMIT_DEFAULT
    cursor: Cursor = None

    def to_plan(self) -> plan.Query:
        return plan.FindEdges(
            label=self.label,
            where=_optional(self.where, "where"),
            order_by=_order(self.order_by),
            limit=self.limit,
            cursor=self.cursor,
        )


class Count(RequestModel):
    """How many nodes or edges satisfy the condition."""

    kind: Literal["count"]
    of: Literal["nodes", "edges"] = "nodes"
    labels: Annotated[Items[str], Field(description="Of nodes.")] = ()
    label: Annotated[str | None, Field(description="Of edges.")] = None
    where: Where | None = None
    group_by: Annotated[
        str | None,
        Field(description=f"A property, or `{plan.GROUP_BY_LABEL}` for the labels themselves."),
    ] = None

    def to_plan(self) -> plan.Query:
        return plan.Count(
            of=self.of,
            labels=self.labels,
            label=self.label,
            where=_optional(self.where, "where"),
            group_by=self.group_by,
        )


class Traverse(RequestModel):
    """Breadth first from some nodes: every node once, at its smallest depth."""

    kind: Literal["traverse"]
    start: Annotated[Items[CidText], Field(examples=[[CID_EXAMPLE]])]
    direction: Direction = "out"
    edge_labels: Items[str] | None = None
    min_depth: Annotated[int, Field(ge=0, le=COUNT_MAX)] = 1
    max_depth: Annotated[int, Field(ge=0, le=COUNT_MAX)] = 1
    where_node: Annotated[
        Where | None, Field(description="Which nodes are returned and expanded.")
    ] = None
    where_edge: Annotated[Where | None, Field(description="Which edges are followed.")] = None
    limit: Limit = LIMIT_DEFAULT
    return_: Annotated[Literal["nodes", "edges"], Field(alias="return")] = "nodes"

    def to_plan(self) -> plan.Query:
        return plan.Traverse(
            start=_digests(self.start, "start"),
            direction=self.direction,
            edge_labels=self.edge_labels,
            min_depth=self.min_depth,
            max_depth=self.max_depth,
            where_node=_optional(self.where_node, "where_node"),
            where_edge=_optional(self.where_edge, "where_edge"),
            limit=self.limit,
            return_=self.return_,
        )


class ShortestPath(RequestModel):
    """One shortest path, or no row."""

    kind: Literal["shortest_path"]
    source: CidText
    target: CidText
    direction: Direction = "out"
    edge_labels: Items[str] | None = None
    max_depth: Annotated[int, Field(ge=0, le=COUNT_MAX)] = 15
    weight: Annotated[
        str | None, Field(description="The property of edges whose sum is to be smallest.")
    ] = None

    def to_plan(self) -> plan.Query:
        return plan.ShortestPath(
            source=parse_cid(self.source, "query.source"),
            target=parse_cid(self.target, "query.target"),
            direction=self.direction,
            edge_labels=self.edge_labels,
            max_depth=self.max_depth,
            weight=self.weight,
        )


def _digests(texts: tuple[str, ...], where: str) -> tuple[Digest, ...]:
    return tuple(parse_cid(text, f"query.{where}.{i}") for i, text in enumerate(texts))


def _order(order_by: tuple[OrderBy, ...] | None) -> tuple[plan.OrderBy, ...]:
    for place, order in enumerate(order_by or ()):
        order.refuse_unknown(f"query.order_by.{place}")
    return tuple(plan.OrderBy(o.property, o.descending) for o in order_by or ())


Query = Annotated[
    Get | FindNodes | FindEdges | Count | Traverse | ShortestPath, Field(discriminator="kind")
]


class QueryRequest(RequestModel):
    """A query, and how new what it reads must be."""

    query: Query
    consistency: Consistency = "strong"
    as_of: Annotated[
        str | None,
        Field(description="A past time: a timestamp of the database or RFC 3339."),
    ] = None
    session: Annotated[
        str | None, Field(description="Means the same as the header Kotoba-Session.")
    ] = None
    max_staleness_ms: Annotated[
        int | None,
        Field(ge=0, le=COUNT_MAX, description="With `eventual`: how old the answer may be."),
    ] = None
    timeout_ms: TimeoutMs = None

    def to_plan(self) -> plan.Query:
        self.refuse_unknown()
        self.query.refuse_unknown("query")
        return self.query.to_plan()


QUERY_REQUEST: TypeAdapter[QueryRequest] = TypeAdapter(QueryRequest)


# Answers


class Counted(AnswerModel):
    """How many there are, in all or in one group."""

    group: JsonValue
    count: int


class TraversedNode(AnswerModel):
    node: Node
    depth: int
    via: Annotated[CidText | None, Field(description="The edge that reaches the node.")]


class TraversedEdge(AnswerModel):
    edge: Edge
    depth: int


class Path(AnswerModel):
    nodes: list[Node]
    edges: list[Edge]
    length: float


class Version(AnswerModel):
    """One version of an entity; ``entity`` is null where it was deleted."""

    timestamp: TimestampText
    deleted: bool
    entity: Node | Edge | None


class Statistics(AnswerModel):
    """What the query cost."""

    partitions: int
    cluster_nodes: int
    scanned: int
    elapsed_ms: float
    consistency: Annotated[
        Literal["strong", "read_your_writes", "eventual", "as_of"],
        Field(description="What was given; it may be more than was asked for."),
    ]
    staleness_ms: Annotated[
        float | None,
        Field(
            description="How old the snapshot is at most, by the clock of the node that answers; "
            "null where it is not known, and for a read of a given time."
        ),
    ]
    index: str | None


class _Page(AnswerModel):
    cursor: Annotated[str | None, Field(description="Asks for the next page.")]
    truncated: Annotated[
        bool, Field(description="There is more that this query would have returned.")
    ]
    bound: Annotated[str | None, Field(description="What cut the answer: limit, visited, …")]
    timestamp: TimestampText
    statistics: Statistics


class QueryAnswer(_Page):
    """Rows of one kind, which the query decides."""

    rows: list[Node | Edge | Counted | TraversedNode | TraversedEdge | Path]


class Plan(AnswerModel):
    """How a query finds its rows. There are no statistics: the choice follows from its shape."""

    kind: str
    access: Annotated[
        Literal["property_index", "label_index", "scan", "lookup", "adjacency"],
        Field(description="`scan`: all nodes, or all edges. `lookup`, `adjacency`: by CID."),
    ]
    index: Annotated[str | None, Field(description="As `statistics.index` names it.")]
    ranges: Annotated[
        int | None, Field(description="Ranges of the property index that are read, per partition.")
    ]
    filter: Annotated[bool, Field(description="Whether what is found is filtered further.")]
    records_read: Annotated[
        bool,
        Field(
            description="False where the index alone can count; then only one entity is read of "
            "each value that it is grouped by."
        ),
    ]
    order: Annotated[
        Literal["index", "sort", "place"] | None,
        Field(description="Rows in the order of the index, sorted, or by partition and CID."),
    ]
    partitions: Annotated[
        int | None, Field(description="Partitions read; null where that depends on what is found.")
    ]


class PlanAnswer(AnswerModel):
    plan: Plan


class EdgesAnswer(_Page):
    """A page of the edges of one node."""

    rows: list[Edge]


class HistoryAnswer(_Page):
    """The kept versions of an entity, newest first."""

    rows: list[Version]


EXAMPLES: dict[str, Any] = {
    "get": {"value": {"query": {"kind": "get", "cids": [CID_EXAMPLE]}}},
    "find_nodes": {
        "value": {
            "query": {
                "kind": "find_nodes",
                "labels": ["Person"],
                "where": {"property": "age", "op": "ge", "value": 30},
                "order_by": [{"property": "age", "descending": True}],
                "limit": 100,
            },
            "consistency": "strong",
        }
    },
    "find_edges": {"value": {"query": {"kind": "find_edges", "label": "KNOWS", "limit": 100}}},
    "count": {"value": {"query": {"kind": "count", "of": "nodes", "labels": ["Person"]}}},
    "traverse": {
        "value": {
            "query": {
                "kind": "traverse",
                "start": [CID_EXAMPLE],
                "direction": "out",
                "edge_labels": ["KNOWS"],
                "min_depth": 1,
                "max_depth": 3,
                "limit": 1000,
                "return": "nodes",
            }
        }
    },
    "shortest_path": {
        "value": {
            "query": {
                "kind": "shortest_path",
                "source": CID_EXAMPLE,
                "target": VERSION_EXAMPLE,
                "direction": "both",
                "max_depth": 15,
            }
        }
    },
}
