"""Which queries are refused, and how the refusal says why."""

from __future__ import annotations

import pytest

from cluster_core.config import LimitConfig
from cluster_core.errors import InvalidRequest
from cluster_core.query.plan import (
    AllOf,
    Comparison,
    Count,
    FindEdges,
    FindNodes,
    Get,
    Negation,
    Neighbours,
    OrderBy,
    Query,
    ShortestPath,
    Traverse,
    Where,
    check_query,
)

A = b"a" * 32
LIMITS = LimitConfig()


@pytest.mark.parametrize(
    ("query", "where"),
    [
        (Get(cids=(b"short",)), "cids"),
        (Get(cids=(A,) * 10_001), "cids"),
        (Get(cids=(A,), source=b"x"), "source"),
        (FindNodes(limit=0), "limit"),
        (FindNodes(limit=10_001), "limit"),
        (FindNodes(order_by=(OrderBy("a"),) * 9), "order_by"),
        (FindNodes(where=Comparison("a", "in", 3)), "where.value"),
        (FindNodes(where=Comparison("a", "lt", None)), "where.value"),
        (FindNodes(where=Comparison("a", "exists", 1)), "where.value"),
        (FindNodes(where=Comparison("a", "starts_with", 1)), "where.value"),
        (FindNodes(where=Comparison("a", "eq", 1 << 64)), "where.value"),
        (
            FindNodes(where=AllOf((Negation(Comparison("a", "in", "x")),))),
            "where.and.0.not.value",
        ),
        (Count(of="edges", labels=("L",)), "labels"),
        (Count(of="nodes", label="L"), "label"),
        (FindNodes(labels=("P", "P\0ab")), "labels.1"),
        (FindEdges(label="P\0ab"), "label"),
        (Count(labels=("P\0ab",)), "labels.0"),
        (Count(of="edges", label="\ud800"), "label"),
        (Traverse(start=(A,), edge_labels=("\0",)), "edge_labels.0"),
        (ShortestPath(source=A, target=A, edge_labels=("K", "K\0")), "edge_labels.1"),
        (Neighbours(vertex=A, label="K\0"), "label"),
        (Traverse(start=()), "start"),
        (Traverse(start=(A,), max_depth=51), "max_depth"),
        (Traverse(start=(A,), min_depth=3, max_depth=2), "min_depth"),
        (Traverse(start=(A,), where_edge=Comparison("a", "in", 0)), "where_edge.value"),
        (ShortestPath(source=A, target=A, max_depth=51), "max_depth"),
        (ShortestPath(source=A, target=A, edge_labels=("L",) * 101), "edge_labels"),
    ],
)
def test_a_query_beyond_a_bound_is_refused(query: Query, where: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_query(query, LIMITS)
    assert where in [problem["where"] for problem in refused.value.extra["errors"]]


def test_everything_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_query(Traverse(start=(b"x",), max_depth=99, limit=0), LIMITS)
    assert [problem["where"] for problem in refused.value.extra["errors"]] == [
        "start",
        "max_depth",
        "limit",
    ]


def test_a_condition_may_be_neither_too_deep_nor_too_wide() -> None:
    deep: Where = Comparison("a", "eq", 1)
    for _ in range(100_000):
        deep = Negation(deep)
    wide = AllOf((Comparison("a", "eq", 1),) * 1_001)
    for where in (deep, wide):
        with pytest.raises(InvalidRequest, match="too large"):
            check_query(FindNodes(where=where), LIMITS)


def test_a_condition_may_have_so_many_literals_in_all() -> None:
    some = Comparison("a", "in", [1] * 5_000)
    check_query(FindNodes(where=AllOf((some, some))), LIMITS)
    with pytest.raises(InvalidRequest, match="where: too large: at most 10000 literals"):
        check_query(FindNodes(where=AllOf((some, some, Comparison("a", "eq", 1)))), LIMITS)


def test_a_plain_query_passes() -> None:
    check_query(Traverse(start=(A,), max_depth=3, where_node=Comparison("a", "eq", 1)), LIMITS)
