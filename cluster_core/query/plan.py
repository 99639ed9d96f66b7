"""The query language, as values, and the check that a query is one that we can bound.

Conditions on properties (``where``) read like this; a *family* is one of null, bool, number (int
and float are one), string, bytes, link, list:

- A property that is missing counts as null (a stored property is never null itself).
- ``eq`` and ``in`` compare inside a family; values of different families are never equal.
- ``ne`` holds when the property is there and is not equal, so ``ne`` null means "is there".
- ``lt le gt ge`` hold only between two values of one family; null has no order here.
- ``starts_with`` compares strings with strings and bytes with bytes.
- ``contains`` finds a piece in a string or in bytes, or an element in a list.
- ``exists`` takes true (also the default) or false.

``order_by`` uses one total order over all families: null < bool < number < string < bytes < link <
list. Ties are broken by digest, so every order is complete.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal

import msgspec

from cluster_core.config import LimitConfig
from cluster_core.errors import InvalidRequest
from cluster_core.graph.values import Value, problem_of, problem_of_text
from cluster_core.types import Digest

__all__ = [
    "GROUP_BY_LABEL",
    "AllOf",
    "AnyOf",
    "Blocks",
    "Comparison",
    "Count",
    "Direction",
    "FindEdges",
    "FindNodes",
    "Get",
    "History",
    "Negation",
    "Neighbours",
    "Operator",
    "OrderBy",
    "Query",
    "ShortestPath",
    "Traverse",
    "Where",
    "WhereSize",
    "check_query",
]

Direction = Literal["out", "in", "both"]
Operator = Literal["eq", "ne", "lt", "le", "gt", "ge", "in", "starts_with", "contains", "exists"]

LIMIT_DEFAULT: Final = 100
CONDITIONS_MAX: Final = 1_000
"""Comparisons and combinations in one ``where``: each is evaluated for every record scanned."""
CONDITION_DEPTH_MAX: Final = 50
LITERALS_MAX: Final = 10_000
"""In one ``where``, those in lists included: they are sorted and compiled at every node."""
ORDER_BY_MAX: Final = 8
GROUP_BY_LABEL: Final = "@label"
"""``Count.group_by`` with this value counts by label; any other value names a property."""


class Comparison(msgspec.Struct, frozen=True, array_like=True, tag="is"):
    """One property against one literal; the module's docstring says when it holds."""

    property: str
    op: Operator
    value: Value = None


class AllOf(msgspec.Struct, frozen=True, array_like=True, tag="and"):
    """``{"and": […]}``; of nothing: true."""

    conditions: tuple[Where, ...]


class AnyOf(msgspec.Struct, frozen=True, array_like=True, tag="or"):
    """``{"or": […]}``; of nothing: false."""

    conditions: tuple[Where, ...]


class Negation(msgspec.Struct, frozen=True, array_like=True, tag="not"):
    """``{"not": …}``: exactly where the condition does not hold."""

    condition: Where


Where = Comparison | AllOf | AnyOf | Negation


class OrderBy(msgspec.Struct, frozen=True, array_like=True):
    property: str
    descending: bool = False


class Get(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="get"):
    """Entities by CID. The rows come in the order of ``cids``; what does not exist is left out.

    The first CID of a vertex or an edge gives the entity as it is at the read's time. The CID of a
    later version gives exactly that version, also when the entity has changed or gone since; with
    ``exact`` the first CID, too, means the first version. ``source`` is a hint: the vertex where
    the edges asked for begin, whose partition is tried first.
    """

    cids: tuple[Digest, ...]
    source: Digest | None = None
    exact: bool = False


class FindNodes(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="find_nodes"):
    """Vertices that have all of ``labels`` and satisfy ``where``, a page at a time.

    Without ``order_by`` they come by partition and digest. All pages that follow from one cursor
    show one snapshot.
    """

    labels: tuple[str, ...] = ()
    where: Where | None = None
    order_by: tuple[OrderBy, ...] = ()
    limit: int = LIMIT_DEFAULT
    cursor: str | None = None


class FindEdges(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="find_edges"):
    """Edges with ``label`` (None: any) that satisfy ``where``; pages as in :class:`FindNodes`."""

    label: str | None = None
    where: Where | None = None
    order_by: tuple[OrderBy, ...] = ()
    limit: int = LIMIT_DEFAULT
    cursor: str | None = None


class Count(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="count"):
    """How many vertices (with all of ``labels``) or edges (with ``label``) satisfy ``where``.

    ``group_by``: a property's name, or :data:`GROUP_BY_LABEL`; a vertex counts once for each of
    its labels. Entities without the property, or without a label, form the group null.
    """

    of: Literal["nodes", "edges"] = "nodes"
    labels: tuple[str, ...] = ()
    label: str | None = None
    where: Where | None = None
    group_by: str | None = None


class Traverse(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="traverse"):
    """Breadth first from ``start``: every vertex once, at its smallest depth.

    ``where_edge`` says which edges may be followed. ``where_node`` says which vertices reached by
    an edge count: the others are neither returned nor expanded. Vertices of ``start`` are expanded
    always, and returned when ``min_depth`` is 0 and they satisfy ``where_node``.

    ``return_`` "nodes": a row for each vertex, by depth and digest; ``via`` is the edge with the
    smallest digest among those that reach it from the depth before. "edges": a row for each edge
    followed, once, by depth of its far end and digest.
    """

    start: tuple[Digest, ...]
    direction: Direction = "out"
    edge_labels: tuple[str, ...] | None = None
    min_depth: int = 1
    max_depth: int = 1
    where_node: Where | None = None
    where_edge: Where | None = None
    limit: int = LIMIT_DEFAULT
    return_: Literal["nodes", "edges"] = msgspec.field(default="nodes", name="return")


class ShortestPath(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="shortest_path"
):
    """One shortest path of at most ``max_depth`` edges, or no row.

    Without ``weight`` the fewest edges. With it the smallest sum of that property over the edges;
    an edge without the property weighs 1, and one whose weight is no number or negative makes the
    query invalid where the search comes to it, as does a sum that no float holds.
    """

    source: Digest
    target: Digest
    direction: Direction = "out"
    edge_labels: tuple[str, ...] | None = None
    max_depth: int = 15
    weight: str | None = None


class Neighbours(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="neighbours"):
    """The edges of one vertex, a page at a time: incoming before outgoing, by label and digest.

    A self-loop is one row. Raises NotFound when the vertex does not exist.
    """

    vertex: Digest
    direction: Direction = "out"
    label: str | None = None
    limit: int = LIMIT_DEFAULT
    cursor: str | None = None


class History(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="history"):
    """All kept versions of an entity, newest first, deletion included. Any of its CIDs names it.

    Raises NotFound when there is none.
    """

    digest: Digest
    limit: int = LIMIT_DEFAULT


class Blocks(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="blocks"):
    """The blocks of versions, in the order of ``cids``; what does not exist is left out.

    ``sources``, where it is not empty, says of each version where it is: the vertex that it is a
    version of, or where the edge begins. It is looked for there alone; where that is None, in every
    partition. Of an answer that is truncated, all up to its last row is told.
    """

    cids: tuple[Digest, ...]
    sources: tuple[Digest | None, ...] = ()


Query = (
    Get | FindNodes | FindEdges | Count | Traverse | ShortestPath | Neighbours | History | Blocks
)

Problem = tuple[str, str]


def check_query(query: Query, limits: LimitConfig) -> None:
    """Raise InvalidRequest, with all that is wrong and where, unless ``query`` can be executed."""
    problems = [{"where": where, "why": why} for where, why in _problems(query, limits)]
    if problems:
        detail = "; ".join(f"{p['where']}: {p['why']}" for p in problems[:5])
        raise InvalidRequest(detail, errors=problems)


def _problems(query: Query, limits: LimitConfig) -> Iterator[Problem]:
    match query:
        case Get():
            yield from _check_digests("cids", query.cids, limits.query_rows_max)
            if query.source is not None:
                yield from _check_digests("source", (query.source,), 1)
        case FindNodes() | FindEdges():
            yield from _check_labels(query)
            yield from _check_between("limit", query.limit, 1, limits.query_rows_max)
            yield from _check_where("where", query.where)
            yield from _check_order(query.order_by)
        case Count():
            yield from _check_count(query)
        case Traverse():
            yield from _check_traverse(query, limits)
        case ShortestPath():
            yield from _check_digests("source", (query.source,), 1)
            yield from _check_digests("target", (query.target,), 1)
            yield from _check_between("max_depth", query.max_depth, 0, limits.query_depth_max)
            yield from _check_edge_labels(query.edge_labels, limits)
        case Neighbours():
            yield from _check_digests("vertex", (query.vertex,), 1)
            yield from _check_label("label", query.label)
            yield from _check_between("limit", query.limit, 1, limits.query_rows_max)
        case History():
            yield from _check_digests("digest", (query.digest,), 1)
            yield from _check_between("limit", query.limit, 1, limits.query_rows_max)
        case Blocks():
            yield from _check_blocks(query, limits)


def _check_count(query: Count) -> Iterator[Problem]:
    if query.of == "edges" and query.labels:
        yield "labels", "an edge has one label; say label"
    if query.of == "nodes" and query.label is not None:
        yield "label", "a node has a set of labels; say labels"
    yield from _check_labels(query)
    yield from _check_where("where", query.where)


def _check_blocks(query: Blocks, limits: LimitConfig) -> Iterator[Problem]:
    if not query.cids:
        yield "cids", "must name at least one block"
    yield from _check_digests("cids", query.cids, limits.query_rows_max)
    if query.sources and len(query.sources) != len(query.cids):
        yield "sources", "must be as many as there are CIDs"
    known = tuple(source for source in query.sources if source is not None)
    yield from _check_digests("sources", known, limits.query_rows_max)


def _check_traverse(query: Traverse, limits: LimitConfig) -> Iterator[Problem]:
    if not query.start:
        yield "start", "must name at least one node"
    yield from _check_digests("start", query.start, limits.query_rows_max)
    yield from _check_between("max_depth", query.max_depth, 0, limits.query_depth_max)
    yield from _check_between("min_depth", query.min_depth, 0, max(query.max_depth, 0))
    yield from _check_between("limit", query.limit, 1, limits.query_rows_max)
    yield from _check_edge_labels(query.edge_labels, limits)
    yield from _check_where("where_node", query.where_node)
    yield from _check_where("where_edge", query.where_edge)


def _check_edge_labels(labels: tuple[str, ...] | None, limits: LimitConfig) -> Iterator[Problem]:
    if labels is not None and len(labels) > limits.label_count_max:
        yield "edge_labels", f"at most {limits.label_count_max} labels"
        return
    for place, label in enumerate(labels or ()):
        yield from _check_label(f"edge_labels.{place}", label)


def _check_labels(query: FindNodes | FindEdges | Count) -> Iterator[Problem]:
    if not isinstance(query, FindNodes):
        yield from _check_label("label", query.label)
    if not isinstance(query, FindEdges):
        for place, label in enumerate(query.labels):
            yield from _check_label(f"labels.{place}", label)


def _check_label(where: str, label: str | None) -> Iterator[Problem]:
    """No label has a NUL in it; behind one, an index would look for pieces of digests."""
    if label is not None and "\0" in label:
        yield where, f"{label[:80]!r} has a NUL in it"
    elif label is not None and (why := problem_of_text(label)) is not None:
        yield where, why


def _check_digests(where: str, digests: tuple[Digest, ...], count_max: int) -> Iterator[Problem]:
    if len(digests) > count_max:
        yield where, f"at most {count_max} CIDs"
    if any(len(digest) != 32 for digest in digests):
        yield where, "not a CID of this database"


def _check_between(where: str, value: int, low: int, high: int) -> Iterator[Problem]:
    if not low <= value <= high:
        yield where, f"must be {low} to {high}"


def _check_order(order_by: tuple[OrderBy, ...]) -> Iterator[Problem]:
    if len(order_by) > ORDER_BY_MAX:
        yield "order_by", f"at most {ORDER_BY_MAX} properties"


class WhereSize:
    """What was met of a ``where`` so far. Whoever converts one counts it first."""

    def __init__(self) -> None:
        self._conditions = 0
        self._literals = 0

    def add(self, depth: int, value: object) -> str | None:
        """Count a condition with its literals (a list, or one) and say why it is too much."""
        self._conditions += 1
        self._literals += len(value) if isinstance(value, list) else 1
        if depth > CONDITION_DEPTH_MAX or self._conditions > CONDITIONS_MAX:
            bounds = f"{CONDITIONS_MAX} conditions, {CONDITION_DEPTH_MAX} deep"
            return f"too large: at most {bounds}"
        if self._literals > LITERALS_MAX:
            return f"too large: at most {LITERALS_MAX} literals"
        return None


def _check_where(where: str, root: Where | None) -> Iterator[Problem]:
    """Walks with a list of its own: a deep condition must not meet Python's recursion limit."""
    open_conditions = [] if root is None else [(where, root, 1)]
    size = WhereSize()
    while open_conditions:
        path, condition, depth = open_conditions.pop()
        value = condition.value if isinstance(condition, Comparison) else []
        too_large = size.add(depth, value)
        if too_large is not None:
            yield where, too_large
            return
        match condition:
            case Comparison():
                why = _comparison_problem(condition)
                if why is not None:
                    yield f"{path}.value", why
            case Negation():
                open_conditions.append((f"{path}.not", condition.condition, depth + 1))
            case AllOf() | AnyOf():
                name = "and" if isinstance(condition, AllOf) else "or"
                for place, inner in enumerate(condition.conditions):
                    open_conditions.append((f"{path}.{name}.{place}", inner, depth + 1))


def _comparison_problem(comparison: Comparison) -> str | None:
    op, value = comparison.op, comparison.value
    if op == "in" and not isinstance(value, list):
        return "in takes a list"
    if op == "starts_with" and not isinstance(value, str | bytes):
        return "starts_with takes a string or bytes"
    if op in ("lt", "le", "gt", "ge") and value is None:
        return f"{op} takes a value that is not null"
    if op == "exists" and not (value is None or isinstance(value, bool)):
        return "exists takes true or false"
    return problem_of(value)
