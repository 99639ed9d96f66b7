"""Conditions on properties, compiled to functions, because they run for every record scanned.

What each operator means is said in :mod:`cluster_core.query.plan`. Conditions travel between nodes
as bytes, and compiled ones are remembered by those bytes: a traversal sends the same again and
again.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final

from cluster_core.graph.values import Link, Value, encode_message, message_decoder
from cluster_core.query.ordering import order_key
from cluster_core.query.plan import AllOf, AnyOf, Comparison, Negation, Where

__all__ = ["Predicate", "compile_where", "encode_where", "predicate"]

Predicate = Callable[[Mapping[str, Value]], bool]

SMALL_BYTES_MAX: Final = 2 << 10
"""Compiled, a literal takes some 30 times its bytes: all small ones kept are 16 MiB at most."""

_ORDERS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}


def compile_where(where: Where) -> Predicate:
    """The function that says whether properties satisfy ``where``."""
    match where:
        case Comparison():
            return _compile_comparison(where)
        case Negation():
            inner = compile_where(where.condition)
            return lambda properties: not inner(properties)
        case AllOf():
            return _every([compile_where(condition) for condition in where.conditions])
        case AnyOf():
            return _some([compile_where(condition) for condition in where.conditions])


def _every(predicates: list[Predicate]) -> Predicate:
    if len(predicates) == 2:
        first, second = predicates
        return lambda properties: first(properties) and second(properties)

    def every(properties: Mapping[str, Value]) -> bool:
        return all(holds(properties) for holds in predicates)

    return every


def _some(predicates: list[Predicate]) -> Predicate:
    def some(properties: Mapping[str, Value]) -> bool:
        return any(holds(properties) for holds in predicates)

    return some


def _compile_comparison(comparison: Comparison) -> Predicate:
    name, op, value = comparison.property, comparison.op, comparison.value
    if op == "eq":
        return _equals(name, value)
    if op == "ne":
        equal = _equals(name, value)
        return lambda properties: properties.get(name) is not None and not equal(properties)
    if op == "in":
        assert isinstance(value, list)
        wanted = frozenset(map(order_key, value))
        return lambda properties: order_key(properties.get(name)) in wanted
    if op == "exists":
        there = value is not False
        return lambda properties: (properties.get(name) is not None) == there
    if op == "starts_with":
        return _starts_with(name, value)
    if op == "contains":
        return _contains(name, value)
    return _ordered(name, _ORDERS[op], value)


def _equals(name: str, value: Value) -> Predicate:
    if value is None or isinstance(value, bool):
        return lambda properties: properties.get(name) is value
    if isinstance(value, int | float):

        def same_number(properties: Mapping[str, Value]) -> bool:
            found = properties.get(name)
            return found == value and not isinstance(found, bool)

        return same_number
    if isinstance(value, str | Link):
        return lambda properties: properties.get(name) == value
    key = order_key(value)
    return lambda properties: order_key(properties.get(name)) == key


def _ordered(name: str, order: Callable[[Any, Any], bool], value: Value) -> Predicate:
    if isinstance(value, str):

        def ordered_string(properties: Mapping[str, Value]) -> bool:
            found = properties.get(name)
            return isinstance(found, str) and order(found, value)

        return ordered_string
    if isinstance(value, int | float) and not isinstance(value, bool):

        def ordered_number(properties: Mapping[str, Value]) -> bool:
            found = properties.get(name)
            return (
                isinstance(found, int | float)
                and not isinstance(found, bool)
                and order(found, value)
            )

        return ordered_number
    key, family = order_key(value), _family(value)

    def ordered_any(properties: Mapping[str, Value]) -> bool:
        found = properties.get(name)
        return _family(found) is family and order(order_key(found), key)

    return ordered_any


def _family(value: Value) -> type | None:
    for family in (bool, Link, bytes, list, str, int | float):
        if isinstance(value, family):
            return family  # type: ignore[return-value]
    return None


def _starts_with(name: str, value: Value) -> Predicate:
    if isinstance(value, str):

        def string_starts(properties: Mapping[str, Value]) -> bool:
            found = properties.get(name)
            return isinstance(found, str) and found.startswith(value)

        return string_starts
    assert isinstance(value, bytes)

    def bytes_start(properties: Mapping[str, Value]) -> bool:
        found = properties.get(name)
        return isinstance(found, bytes) and found.startswith(value)

    return bytes_start


def _contains(name: str, value: Value) -> Predicate:
    element = order_key(value)

    def contains(properties: Mapping[str, Value]) -> bool:
        found = properties.get(name)
        if isinstance(found, list):
            return any(order_key(each) == element for each in found)
        if isinstance(found, str):
            return isinstance(value, str) and value in found
        if isinstance(found, bytes):
            return isinstance(value, bytes) and value in found
        return False

    return contains


_decode_where = message_decoder(Where)


def encode_where(where: Where | None) -> bytes:
    """A condition for the wire; none is empty."""
    return b"" if where is None else encode_message(where)


def predicate(encoded: bytes) -> Predicate | None:
    """The compiled form of :func:`encode_where`'s bytes."""
    if not encoded:
        return None
    return _small(encoded) if len(encoded) <= SMALL_BYTES_MAX else _large(encoded)


def _compile(encoded: bytes) -> Predicate:
    return compile_where(_decode_where(encoded))


_small: Final = lru_cache(maxsize=256)(_compile)
_large: Final = lru_cache(maxsize=4)(_compile)
"""A traversal that sends 10,000 literals again and again does not compile them (10 ms) each time;
of such conditions, which take up to some megabytes, only the last few are kept."""
