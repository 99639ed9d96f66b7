"""Which index a query takes."""

from __future__ import annotations

import pytest

from cluster_core.graph.indexes import IndexDefinition, IndexState
from cluster_core.query.plan import (
    GROUP_BY_LABEL,
    AllOf,
    AnyOf,
    Comparison,
    Count,
    FindEdges,
    FindNodes,
    Get,
    Negation,
    OrderBy,
    Query,
    Traverse,
)
from cluster_core.query.planner import choose_access, explain

INDEXES = [
    IndexDefinition(number, label, name, IndexState.READY, 1)
    for number, (label, name) in enumerate(
        [("Person", "age"), ("Person", "name"), ("Admin", "name"), ("KNOWS", "since")], start=1
    )
]

age, name = "age", "name"
adult = Comparison(age, "ge", 18)
alice = Comparison(name, "eq", "Alice")
by_age, by_name = (OrderBy(age),), (OrderBy(name),)


@pytest.mark.parametrize(
    ("query", "index"),
    [
        (FindNodes(), None),
        (FindNodes(where=alice), None),
        (FindNodes(labels=("Thing",), where=alice), "Thing"),
        (FindNodes(labels=("Person",)), "Person"),
        (FindNodes(labels=("Person",), where=alice), "Person.name"),
        (FindNodes(labels=("Person",), where=adult), "Person.age"),
        (FindNodes(labels=("Person",), where=AllOf((adult, alice))), "Person.name"),
        (FindNodes(labels=("Person",), where=AnyOf((adult, alice))), "Person"),
        (
            FindNodes(labels=("Person",), where=AnyOf((alice, Comparison(name, "eq", "Bob")))),
            "Person.name",
        ),
        (FindNodes(labels=("Person",), where=Negation(alice)), "Person"),
        (FindNodes(labels=("Person",), where=Comparison(name, "contains", "A")), "Person"),
        (FindNodes(labels=("Person",), where=Comparison(name, "exists")), "Person"),
        (FindNodes(labels=("Person",), where=Comparison(name, "exists", False)), "Person.name"),
        (FindNodes(labels=("Person",), order_by=by_age), "Person.age"),
        (FindNodes(labels=("Person",), where=adult, order_by=by_name), "Person.age"),
        (FindNodes(labels=("Person",), where=alice, order_by=by_age), "Person.name"),
        (FindNodes(labels=("Person",), order_by=(*by_age, *by_name)), "Person"),
        (FindNodes(labels=("Person", "Admin"), where=alice), "Person.name"),
        (FindNodes(labels=("Admin", "Person"), where=alice), "Admin.name"),
        (FindEdges(label="KNOWS", where=Comparison("since", "lt", 2020)), "KNOWS.since"),
        (FindEdges(label="KNOWS"), "KNOWS"),
        (FindEdges(), None),
        (Count(labels=("Person",), where=adult), "Person.age"),
        (Count(of="edges", label="KNOWS"), "KNOWS"),
        (Count(labels=("Person",), group_by=age), "Person.age"),
        (Count(labels=("Person",), where=adult, group_by=age), "Person.age"),
        (Count(labels=("Person",), where=Comparison(age, "ne", 3), group_by=age), "Person"),
        (Count(labels=("Person",), where=alice, group_by=age), "Person.name"),
        (Count(labels=("Person", "Admin"), group_by=age), "Person"),
        (Count(labels=("Thing",), group_by=age), "Thing"),
        (Count(group_by=age), None),
        (Count(of="edges", label="KNOWS", group_by="since"), "KNOWS.since"),
        (Count(of="edges", group_by=GROUP_BY_LABEL), GROUP_BY_LABEL),
        (Count(of="edges", where=adult, group_by=GROUP_BY_LABEL), None),
        (Count(of="nodes", group_by=GROUP_BY_LABEL), None),
    ],
)
def test_the_choice(query: FindNodes | FindEdges | Count, index: str | None) -> None:
    assert choose_access(query, INDEXES).name == index


def test_a_starting_piece_is_tighter_than_a_half_open_range() -> None:
    both = AllOf((adult, Comparison(name, "starts_with", "Al")))
    assert choose_access(FindNodes(labels=("Person",), where=both), INDEXES).name == "Person.name"


@pytest.mark.parametrize(
    ("query", "order", "filters", "reads"),
    [
        (FindNodes(labels=("Person",), where=adult), "place", False, True),
        (FindNodes(labels=("Person",), where=adult, order_by=by_age), "index", False, True),
        (FindNodes(labels=("Person",), where=adult, order_by=by_name), "sort", False, True),
        (FindNodes(labels=("Person", "Admin"), where=adult), "place", True, True),
        (FindNodes(labels=("Person",), where=AllOf((adult, alice))), "place", True, True),
        (Count(labels=("Person",), where=adult), None, False, False),
        (Count(labels=("Person",), where=adult, group_by=name), None, False, True),
        (Count(labels=("Person",)), None, False, False),
        (Count(labels=("Person",), group_by=age), None, False, False),
        (Count(labels=("Person",), where=adult, group_by=age), None, False, False),
        (Count(labels=("Person",), group_by=GROUP_BY_LABEL), None, False, True),
        (Count(of="edges", group_by=GROUP_BY_LABEL), None, False, False),
        (Count(of="edges", label="KNOWS", group_by="since"), None, False, False),
        (Count(), None, False, True),
        (Count(where=adult), None, True, True),
    ],
)
def test_explain_tells_order_filter_and_whether_records_are_read(
    query: Query, order: str | None, filters: bool, reads: bool
) -> None:
    plan = explain(query, INDEXES, 64)
    assert (plan.order, plan.filter, plan.records_read) == (order, filters, reads)
    assert plan.partitions == 64


def test_other_queries_explain_that_they_need_no_index() -> None:
    assert explain(Get(cids=(b"d" * 32,)), INDEXES, 64).access == "lookup"
    walk = explain(Traverse(start=(b"d" * 32,), where_node=adult), INDEXES, 64)
    assert (walk.kind, walk.access, walk.filter) == ("traverse", "adjacency", True)
