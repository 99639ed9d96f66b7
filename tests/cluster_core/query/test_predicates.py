"""What conditions mean."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_core.graph.cid import cid_bytes
from cluster_core.graph.values import Link, Value
from cluster_core.query.plan import AllOf, AnyOf, Comparison, Negation, Operator, Where
from cluster_core.query.predicates import SMALL_BYTES_MAX, compile_where, encode_where, predicate

LINK = Link(cid_bytes(b"x" * 32))
OTHER_LINK = Link(cid_bytes(b"y" * 32))

ROW: dict[str, Value] = {
    "int": 3,
    "float": 2.5,
    "yes": True,
    "text": "kotoba",
    "raw": b"\x01\x02",
    "link": LINK,
    "list": [1, "a", None, LINK],
}


def holds(name: str, op: Operator, value: Value = None) -> bool:
    return compile_where(Comparison(name, op, value))(ROW)


@pytest.mark.parametrize(
    ("name", "op", "value"),
    [
        ("int", "eq", 3),
        ("int", "eq", 3.0),
        ("int", "ne", 4),
        ("int", "ne", True),
        ("int", "ge", 3),
        ("int", "gt", 2.9),
        ("int", "in", ["x", 3.0]),
        ("float", "lt", 3),
        ("yes", "eq", True),
        ("yes", "gt", False),
        ("text", "eq", "kotoba"),
        ("text", "le", "l"),
        ("text", "starts_with", "kot"),
        ("text", "contains", "oto"),
        ("raw", "eq", b"\x01\x02"),
        ("raw", "lt", b"\x02"),
        ("raw", "starts_with", b"\x01"),
        ("raw", "contains", b"\x02"),
        ("link", "eq", LINK),
        ("link", "lt", OTHER_LINK),
        ("list", "eq", [1.0, "a", None, LINK]),
        ("list", "contains", 1.0),
        ("list", "contains", None),
        ("list", "contains", LINK),
        ("list", "lt", [2]),
        ("none", "eq", None),
        ("none", "in", [None]),
        ("none", "exists", False),
        ("int", "ne", None),
        ("int", "exists", None),
        ("int", "exists", True),
    ],
)
def test_holds(name: str, op: Operator, value: Value) -> None:
    assert holds(name, op, value)
    assert not compile_where(Negation(Comparison(name, op, value)))(ROW)


@pytest.mark.parametrize(
    ("name", "op", "value"),
    [
        ("int", "eq", "3"),
        ("int", "lt", "4"),
        ("int", "ge", True),
        ("yes", "eq", 1),
        ("yes", "ge", 1),
        ("yes", "in", [1, "true"]),
        ("text", "eq", b"kotoba"),
        ("text", "gt", 1),
        ("text", "starts_with", b"kot"),
        ("text", "contains", 1),
        ("raw", "gt", "a"),
        ("link", "eq", LINK.cid),
        ("list", "eq", [True, "a", None, LINK]),
        ("list", "contains", True),
        ("list", "starts_with", "1"),
        ("none", "ne", 1),
        ("none", "lt", 1),
        ("none", "exists", True),
        ("int", "exists", False),
        ("int", "in", []),
    ],
)
def test_does_not_hold(name: str, op: Operator, value: Value) -> None:
    assert not holds(name, op, value)


def test_conditions_combine() -> None:
    three, text = Comparison("int", "eq", 3), Comparison("text", "eq", "other")
    assert compile_where(AnyOf((text, three)))(ROW)
    assert not compile_where(AllOf((text, three)))(ROW)
    assert compile_where(AllOf((three, three, Negation(text))))(ROW)
    assert compile_where(AllOf(()))(ROW)
    assert not compile_where(AnyOf(()))(ROW)


COMPARISONS: st.SearchStrategy[Where] = st.builds(
    Comparison,
    st.sampled_from(sorted(ROW)),
    st.sampled_from(["eq", "ne", "lt", "le", "gt", "ge", "contains"]),
    st.sampled_from([*ROW.values(), 3.0, [LINK, None], -1]),
)
CONDITIONS = st.recursive(
    COMPARISONS,
    lambda inner: st.one_of(
        st.builds(Negation, inner),
        st.builds(AllOf, st.lists(inner, max_size=3).map(tuple)),
        st.builds(AnyOf, st.lists(inner, max_size=3).map(tuple)),
    ),
    max_leaves=8,
)


@given(CONDITIONS)
def test_a_condition_that_travelled_means_the_same(where: Where) -> None:
    compiled = predicate(encode_where(where))
    assert compiled is not None
    assert compiled(ROW) == compile_where(where)(ROW)


def test_of_large_conditions_only_the_last_few_are_kept() -> None:
    def encoded(first: int) -> bytes:
        return encode_where(Comparison("int", "in", list(range(first, first + SMALL_BYTES_MAX))))

    kept = predicate(encoded(0))
    assert predicate(encoded(0)) is kept
    for first in range(1, 10):
        assert predicate(encoded(first)) is not kept
    assert predicate(encoded(0)) is not kept


def test_no_condition_is_no_bytes() -> None:
    assert encode_where(None) == b""
    assert predicate(b"") is None
