"""The total order over values, as bytes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster_core.graph.cid import cid_bytes
from cluster_core.graph.values import Link, Value
from cluster_core.query.ordering import compile_order, order_key
from cluster_core.query.plan import OrderBy

INTS = st.integers(-(1 << 63), (1 << 63) - 1)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
LINKS = st.binary(min_size=32, max_size=32).map(lambda digest: Link(cid_bytes(digest)))
SCALARS = st.one_of(st.none(), st.booleans(), INTS, FLOATS, st.text(), st.binary(), LINKS)
VALUES = st.one_of(SCALARS, st.lists(SCALARS, max_size=4))


def rank(value: Value) -> tuple[int, object]:
    """The order, said in Python."""
    if value is None:
        return 0, 0
    if isinstance(value, bool):
        return 1, value
    if isinstance(value, int | float):
        return 2, value
    if isinstance(value, str):
        return 3, value
    if isinstance(value, bytes):
        return 4, value
    if isinstance(value, Link):
        return 5, value.cid
    return 6, tuple(map(rank, value))


@given(st.lists(VALUES, max_size=8))
def test_values_sort_as_their_keys(values: list[Value]) -> None:
    by_key = [rank(value) for value in sorted(values, key=order_key)]
    assert by_key == sorted(map(rank, values))


@given(INTS, st.one_of(INTS, FLOATS, st.integers(-600, 600).map(lambda n: (1 << 62) + n)))
def test_ints_and_floats_are_one_exact_order(a: int, b: float) -> None:
    assert (order_key(a) < order_key(b)) == (a < b)
    assert (order_key(a) == order_key(b)) == (a == b)
    near = float(a)
    assert (order_key(a) < order_key(near)) == (a < near)
    assert (order_key(a) == order_key(near)) == (a == near)


@given(VALUES, VALUES)
def test_no_key_begins_another(a: Value, b: Value) -> None:
    first, second = order_key(a), order_key(b)
    assert first == second or not second.startswith(first)


@given(st.lists(st.tuples(VALUES, VALUES), max_size=8))
def test_rows_sort_by_several_properties_in_either_direction(
    rows: list[tuple[Value, Value]],
) -> None:
    place = compile_order((OrderBy("a", descending=True), OrderBy("b")))
    documents = [{"a": a, "b": b} for a, b in rows]
    got = sorted(documents, key=place)
    expected = sorted(documents, key=lambda row: rank(row["b"]))
    expected.sort(key=lambda row: rank(row["a"]), reverse=True)
    assert [(rank(r["a"]), rank(r["b"])) for r in got] == [
        (rank(r["a"]), rank(r["b"])) for r in expected
    ]


def test_zero_has_no_sign_and_true_is_not_one() -> None:
    assert order_key(0) == order_key(-0.0) == order_key(0.0)
    assert order_key(1) != order_key(True)


def test_a_missing_property_sorts_as_null() -> None:
    place = compile_order((OrderBy("a"),))
    assert place({}) == order_key(None) < place({"a": False})
