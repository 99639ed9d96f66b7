"""Which values of one property can satisfy a condition, as ranges of keys of an index.

Ranges are of :func:`~cluster_core.graph.indexes.value_key`: disjoint, ascending, ``begin <= key <
end``. They never leave out a value that satisfies the condition; where they hold nothing else
either, they are *exact*, and no record needs to be looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from cluster_core.graph.indexes import VALUE_BYTES_MAX, value_key
from cluster_core.graph.ordering import family_range, order_key
from cluster_core.graph.values import Value
from cluster_core.query.plan import AllOf, AnyOf, Comparison, Negation, Where
from cluster_core.storage import keys

__all__ = ["EVERY_VALUE", "RANGES_MAX", "Bounds", "Range", "bounds_of", "is_single_value"]

Range = tuple[bytes, bytes]

EVERY_VALUE: Final[tuple[Range, ...]] = ((b"\1", b"\xff"),)
"""All keys: null is the smallest, and no family's tag is 255."""

_NOT_NULL: Final[tuple[Range, ...]] = ((b"\2", b"\xff"),)
_NULL: Final[tuple[Range, ...]] = ((b"\1", b"\2"),)

RANGES_MAX: Final = 256
"""Each is a scan of its own in each partition; more become the one range around them."""


class Bounds(NamedTuple):
    """``ranges`` None: the condition says nothing that an index on this property could use."""

    ranges: tuple[Range, ...] | None
    exact: bool


_UNBOUND: Final = Bounds(None, False)
_TRUE: Final = Bounds(None, True)


def bounds_of(where: Where | None, name: str) -> Bounds:
    """What ``where`` says of the property ``name``."""
    found = _TRUE if where is None else _bounds(where, name)
    if found.ranges is not None and len(found.ranges) > RANGES_MAX:
        return Bounds(((found.ranges[0][0], found.ranges[-1][1]),), False)
    return found


def _bounds(where: Where, name: str) -> Bounds:
    match where:
        case Comparison():
            return _compared(where) if where.property == name else _UNBOUND
        case Negation():
            return _UNBOUND
        case AllOf():
            return _all_of([_bounds(condition, name) for condition in where.conditions])
        case AnyOf():
            return _any_of([_bounds(condition, name) for condition in where.conditions])


def _all_of(parts: list[Bounds]) -> Bounds:
    ranges: tuple[Range, ...] | None = None
    for part in parts:
        if part.ranges is not None:
            ranges = part.ranges if ranges is None else _intersection(ranges, part.ranges)
    return Bounds(ranges, all(part.exact for part in parts))


def _any_of(parts: list[Bounds]) -> Bounds:
    every: list[Range] = []
    for part in parts:
        if part.ranges is None:
            return Bounds(None, part.exact)
        every += part.ranges
    return Bounds(_union(every), all(part.exact for part in parts))


def _compared(comparison: Comparison) -> Bounds:
    op, value = comparison.op, comparison.value
    match op:
        case "eq":
            return _points([value])
        case "in":
            assert isinstance(value, list)
            return _points(value)
        case "exists":
            return Bounds(_NULL if value is False else _NOT_NULL, True)
        case "ne":
            return Bounds(_NOT_NULL, value is None)
        case "contains":
            return Bounds(_NOT_NULL, False)
        case "starts_with":
            assert isinstance(value, str | bytes)
            return _beginning(value)
        case _:
            return _ordered(op, value)


def _points(values: Sequence[Value]) -> Bounds:
    ranges = [(key, keys.after(key)) for key in map(value_key, values)]
    return Bounds(_union(ranges), all(len(begin) < VALUE_BYTES_MAX for begin, _ in ranges))


def _beginning(value: str | bytes) -> Bounds:
    begin = order_key(value)[:-2][:VALUE_BYTES_MAX]  # without the two bytes that end it
    return Bounds(((begin, keys.after(begin)),), len(begin) < VALUE_BYTES_MAX)


def _ordered(op: str, value: Value) -> Bounds:
    """Inside the family of ``value``. Its own key goes to one side, whole."""
    low, high = family_range(value)
    key = value_key(value)
    exact = len(key) < VALUE_BYTES_MAX
    if op in ("lt", "le"):
        end = key if op == "lt" and exact else keys.after(key)
        return Bounds(_union([(low, end)]), exact)
    begin = keys.after(key) if op == "gt" and exact else key
    return Bounds(_union([(begin, high)]), exact)


def is_single_value(one: Range) -> bool:
    """Whether a range is that of one value, whose entries lie in the order of their digests."""
    begin, end = one
    if end != keys.after(begin) or len(begin) >= VALUE_BYTES_MAX:
        return False
    if len(begin) == 1:
        return begin < b"\4"  # null, false and true; else a whole family
    # Of strings, bytes and links the two bytes that end a value; else it is what they begin with.
    return begin[0] not in b"\5\6\7" or begin.endswith(b"\0\0")


def _union(ranges: list[Range]) -> tuple[Range, ...]:
    merged: list[Range] = []
    for begin, end in sorted(ranges):
        if begin >= end:
            continue
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return tuple(merged)


def _intersection(first: tuple[Range, ...], second: tuple[Range, ...]) -> tuple[Range, ...]:
    """Both are walked once, side by side: each may have thousands."""
    found: list[Range] = []
    left, right = 0, 0
    while left < len(first) and right < len(second):
        (begin, end), (other_begin, other_end) = first[left], second[right]
        low, high = max(begin, other_begin), min(end, other_end)
        if low < high:
            found.append((low, high))
        if end <= other_end:
            left += 1
        else:
            right += 1
    return tuple(found)
