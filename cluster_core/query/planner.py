"""The planner: how a query finds the entities that it filters.

There are no statistics, so the choice follows from the query's shape alone, and ``explain`` can be
understood without knowing the data:

1. A **property index** on one of the query's labels, where the condition (through ``and``, and
   through ``or`` where all of it speaks of the property) bounds its property. The tightest bound
   wins: single values (``eq``, ``in``) before closed ranges and ``starts_with`` before half-open
   ranges. Among equals an index in the order of ``order_by`` wins, then the label that the query
   names first, then the name of the property.
2. A property index in the order of ``order_by``, when that is a single property, or of what a
   count groups by, where it alone can count.
3. The **label index** of the first label: name the rarest first.
4. All nodes, or all edges: to count edges by label, in the label index.

Every record found is checked against all of the query's labels and its condition, unless the index
alone decides (then ``records_read`` is false: counts. Of each value that a count groups by, one
record is read all the same: the index knows how values are ordered, not which they are).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

import msgspec

from cluster_core.graph.indexes import IndexDefinition
from cluster_core.query.plan import (
    GROUP_BY_LABEL,
    Count,
    FindEdges,
    FindNodes,
    Query,
    ShortestPath,
    Traverse,
)
from cluster_core.query.ranges import EVERY_VALUE, Range, bounds_of, is_single_value
from cluster_core.query.tasks import Access

__all__ = ["Explanation", "choose_access", "explain"]

_HALF_OPEN: Final = 1
_CLOSED: Final = 2
_SINGLE_VALUES: Final = 3
"""How tight the bounds of a property are."""


class _Candidate(NamedTuple):
    definition: IndexDefinition
    ranges: tuple[Range, ...]
    exact: bool
    tightness: int
    ordered: bool
    place: int
    """Of the label in the query."""

    @property
    def rank(self) -> tuple[int, bool, int, str]:
        """The smallest is the best."""
        return -self.tightness, not self.ordered, self.place, self.definition.property


def choose_access(
    query: FindNodes | FindEdges | Count, indexes: Sequence[IndexDefinition]
) -> Access:
    """How to find what ``query`` looks at; ``indexes`` are those that its snapshot may use."""
    labels = _labels_of(query)
    if not labels:
        counts_labels = _counts_edges_by_label(query)
        return Access(exact=counts_labels, every_label=counts_labels)
    where = query.where
    found = [
        candidate
        for definition in indexes
        if definition.label in labels
        and (candidate := _candidate(definition, query, labels)) is not None
    ]
    if not found:
        exact = where is None and len(labels) == 1
        return Access(label=labels[0], exact=exact)
    best = min(found, key=lambda candidate: candidate.rank)
    return Access(
        label=best.definition.label,
        index=best.definition.id,
        property_name=best.definition.property,
        ranges=best.ranges,
        ordered=best.ordered,
        exact=best.exact and len(labels) == 1,
    )


def _labels_of(query: FindNodes | FindEdges | Count) -> tuple[str, ...]:
    if isinstance(query, FindNodes) or (isinstance(query, Count) and query.of == "nodes"):
        return tuple(dict.fromkeys(query.labels))
    return () if query.label is None else (query.label,)


def _counts_edges_by_label(query: FindNodes | FindEdges | Count) -> bool:
    """Of nodes the label index does not know those without a label."""
    if not isinstance(query, Count) or query.of == "nodes":
        return False
    return query.group_by == GROUP_BY_LABEL and query.where is None


def _candidate(
    definition: IndexDefinition, query: FindNodes | FindEdges | Count, labels: tuple[str, ...]
) -> _Candidate | None:
    name = definition.property
    bounds = bounds_of(query.where, name)
    if isinstance(query, Count):
        ordered = False
        grouped = query.group_by == name and bounds.exact and len(labels) == 1
    else:
        ordered = len(query.order_by) == 1 and query.order_by[0].property == name
        grouped = False
    tightness = 0 if bounds.ranges is None else _tightness(bounds.ranges)
    if not (tightness or ordered or grouped):
        return None
    ranges = EVERY_VALUE if bounds.ranges is None else bounds.ranges
    place = labels.index(definition.label)
    return _Candidate(definition, ranges, bounds.exact, tightness, ordered, place)


def _tightness(ranges: tuple[Range, ...]) -> int:
    """0 for whole families of values, which exclude next to nothing."""
    if all(map(is_single_value, ranges)):
        return _SINGLE_VALUES
    inside = [len(bound) > 1 for one in ranges for bound in one]
    return _CLOSED if all(inside) else _HALF_OPEN if any(inside) else 0


# Explain


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """What :func:`explain` answers. See the module for the choice."""

    kind: str
    access: Literal["property_index", "label_index", "scan", "lookup", "adjacency"]
    index: str | None
    """As ``statistics.index`` will name it."""
    ranges: int | None
    """How many ranges of the property index are read in each partition."""
    filter: bool
    """Whether a condition, or a further label, is checked on what the index finds."""
    records_read: bool
    """Whether entities are read at all: a count may need the index alone."""
    order: Literal["index", "sort", "place"] | None
    """The rows come in order from the index, are sorted, or come by partition and CID."""
    partitions: int | None
    """Partitions that are read; None where that depends on what is found."""


def _kind_of(access: Access) -> Literal["property_index", "label_index", "scan"]:
    if access.index:
        return "property_index"
    return "label_index" if access.label or access.every_label else "scan"


def explain(query: Query, indexes: Sequence[IndexDefinition], partition_count: int) -> Explanation:
    """The plan of ``query``, which is not executed."""
    kind: str = query.__struct_config__.tag  # type: ignore[assignment]
    if not isinstance(query, FindNodes | FindEdges | Count):
        walks = isinstance(query, Traverse | ShortestPath) or kind == "neighbours"
        return Explanation(
            kind=kind,
            access="adjacency" if walks else "lookup",
            index=None,
            ranges=None,
            filter=isinstance(query, Traverse)
            and (query.where_node is not None or query.where_edge is not None),
            records_read=True,
            order=None,
            partitions=None,
        )
    access = choose_access(query, indexes)
    order: Literal["index", "sort", "place"] | None = None
    if isinstance(query, Count):
        records_read = not access.counts(query.group_by)
    else:
        records_read = True
        order = "place" if not query.order_by else "index" if access.ordered else "sort"
    return Explanation(
        kind=kind,
        access=_kind_of(access),
        index=access.name,
        ranges=len(access.ranges) if access.index else None,
        filter=not access.exact and (query.where is not None or len(_labels_of(query)) > 1),
        records_read=records_read,
        order=order,
        partitions=partition_count,
    )
