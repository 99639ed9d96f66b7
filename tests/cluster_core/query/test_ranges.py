"""Ranges never leave out a value that satisfies the condition, and exact ones hold nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster_core.graph.indexes import VALUE_BYTES_MAX, value_key
from cluster_core.graph.values import Link, Value
from cluster_core.query.plan import AllOf, AnyOf, Comparison, Negation, Operator, Where
from cluster_core.query.predicates import compile_where
from cluster_core.query.ranges import RANGES_MAX, bounds_of, is_single_value

LONG = "x" * (VALUE_BYTES_MAX - 3)
"""Its whole key just fits; a longer one is cut."""

texts = st.sampled_from(
    ["", "a", "a\0", "a\0b", "ab", "b", "é", LONG, LONG + "x", LONG + "xy", LONG + "xz"]
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.sampled_from([0, -1, 1, 1.0, 2.5, -0.0, 1 << 53, (1 << 53) + 1, float(1 << 53)]),
    st.floats(allow_nan=False, allow_infinity=False),
    texts,
    texts.map(str.encode),
    st.just(Link(b"\1\x71\x12\x20" + b"l" * 32)),
)
values: st.SearchStrategy[Any] = st.one_of(scalars, st.lists(scalars, max_size=3))


@st.composite
def comparisons(draw: st.DrawFn) -> Where:
    op: Operator = draw(
        st.sampled_from(
            ["eq", "ne", "lt", "le", "gt", "ge", "in", "starts_with", "contains", "exists"]
        )
    )
    operands: dict[str, st.SearchStrategy[Any]] = {
        "in": st.lists(scalars, max_size=4),
        "starts_with": st.one_of(texts, texts.map(str.encode)),
        "exists": st.sampled_from([None, True, False]),
    }
    ordered = values.filter(lambda value: value is not None)
    operands |= dict.fromkeys(["lt", "le", "gt", "ge"], ordered)
    name = draw(st.sampled_from(["p", "p", "p", "q"]))
    return Comparison(name, op, draw(operands.get(op, values)))


def joined(inner: st.SearchStrategy[Where]) -> st.SearchStrategy[Where]:
    several = st.lists(inner, max_size=3).map(tuple)
    return st.one_of(several.map(AllOf), several.map(AnyOf), inner.map(Negation))


conditions = st.recursive(comparisons(), joined, max_leaves=5)


@settings(max_examples=400)
@given(conditions, values, values)
def test_what_satisfies_the_condition_lies_in_the_ranges(
    where: Where, value: Value, other: Value
) -> None:
    ranges, exact = bounds_of(where, "p")
    present = {"p": value, "q": other}
    holds = compile_where(where)({k: v for k, v in present.items() if v is not None})
    key = value_key(value)
    inside = ranges is None or any(begin <= key < end for begin, end in ranges)
    if holds:
        assert inside
    if exact:
        assert inside == holds


@given(conditions)
def test_ranges_are_disjoint_and_ascending(where: Where) -> None:
    ranges, _ = bounds_of(where, "p")
    edges = [bound for one in ranges or () for bound in one]
    assert edges == sorted(edges)
    assert all(begin < end for begin, end in ranges or ())


@given(values)
def test_a_whole_value_is_a_single_value(value: Value) -> None:
    ranges, exact = bounds_of(Comparison("p", "eq", value), "p")
    assert ranges is not None
    assert is_single_value(ranges[0]) == exact


@pytest.mark.parametrize(
    "where",
    [
        Comparison("p", "starts_with", "a"),
        Comparison("p", "starts_with", ""),
        Comparison("p", "starts_with", b"a\0"),
        Comparison("p", "exists"),
        AllOf((Comparison("p", "ge", False), Comparison("p", "le", True))),
    ],
)
def test_what_many_values_begin_with_is_no_single_value(where: Where) -> None:
    ranges, _ = bounds_of(where, "p")
    assert ranges is not None
    assert not is_single_value(ranges[0])


def test_a_long_list_becomes_one_range_around_it() -> None:
    wanted: list[Any] = [2 * number for number in range(RANGES_MAX + 1)]
    ranges, exact = bounds_of(Comparison("p", "in", wanted), "p")
    assert ranges is not None
    assert len(ranges) == 1
    assert not exact
