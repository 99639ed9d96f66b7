"""The language of headers: what a column of a file means, and of which type its values are.

A header names each column ``name:type``, as users of graph databases know it::

    personId:ID(person)  name  age:int  tags:string[]  :LABEL
    :START_ID(person)  :END_ID(person)  since:int  :TYPE

====================  ==========================================================================
``name``              a property, a string (in NDJSON: of the type that the JSON has)
``name:int``          also ``float bool string bytes link``; ``bytes`` are base64, a ``link`` is a
                      CID. ``long integer short byte``, ``double`` and ``boolean`` are known too
``name:int[]``        a list
``:ID``               what edges call this node; ``name:ID`` is a property as well
``:LABEL``            labels, several of them separated as lists are
``:START_ID :END_ID`` what the nodes at the ends of an edge are called
``:TYPE``             the label of an edge
``x:IGNORE``          nothing
====================  ==========================================================================

``:ID(space)`` keeps the names of different kinds of nodes apart. An empty field is no property.
"""

from __future__ import annotations

import math
import re
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from cluster_core.errors import InvalidRequest
from cluster_core.graph.cid import parse_any_cid
from cluster_core.graph.values import INT_MAX, INT_MIN

__all__ = ["BadColumn", "BadValue", "Column", "Role", "parse_column", "value_of"]

Role = Literal["property", "id", "label", "start", "end", "type", "ignore"]

_ROLES: Final[dict[str, Role]] = {
    "ID": "id",
    "LABEL": "label",
    "START_ID": "start",
    "END_ID": "end",
    "TYPE": "type",
    "IGNORE": "ignore",
}
_WITH_SPACE: Final = frozenset({"id", "start", "end"})
_ALIASES: Final = {
    "long": "int",
    "integer": "int",
    "short": "int",
    "byte": "int",
    "double": "float",
    "boolean": "bool",
    "char": "string",
}
_INT: Final = re.compile(r"[+-]?[0-9]{1,19}")
_FIELD: Final = re.compile(r"(?P<kind>[A-Za-z_]+)(?:\((?P<space>[^()]*)\))?(?P<list>\[\])?")


class BadColumn(Exception):
    """A header that says nothing we know."""


class BadValue(Exception):
    """A field that is not of its column's type."""


@dataclass(frozen=True, slots=True)
class Column:
    """What the fields of one column are. ``name`` is the property's, where they make one."""

    role: Role
    name: str | None = None
    kind: str | None = None
    """The type of each value; None: a string, or what the JSON says."""
    is_list: bool = False
    space: str = ""


def parse_column(text: str) -> Column:
    """The column that one field of a header describes. Raises BadColumn."""
    name, colon, rest = text.strip().rpartition(":")
    if not colon:
        if not rest:
            raise BadColumn("a column has no name; give it one, or say :IGNORE")
        return Column("property", rest)
    found = _FIELD.fullmatch(rest)
    if found is None:
        raise _unknown(text, rest)
    kind, space, is_list = found["kind"], found["space"], bool(found["list"])
    role = _ROLES.get(kind.upper())
    if role is not None and not is_list:
        if space is not None and role not in _WITH_SPACE:
            raise BadColumn(f"{text!r}: only :ID, :START_ID and :END_ID have a space")
        return Column(role, name or None, space=space or "")
    kind = _ALIASES.get(kind.lower(), kind.lower())
    if kind not in _CONVERSIONS or space is not None:
        raise _unknown(text, rest)
    if not name:
        raise BadColumn(f"{text!r} has a type but no name")
    return Column("property", name, kind, is_list)


def _unknown(text: str, rest: str) -> BadColumn:
    kinds = ", ".join(_CONVERSIONS)
    return BadColumn(
        f"{text!r}: {rest!r} is no type; known are {kinds}, each also with [], and :ID, :LABEL, "
        ":START_ID, :END_ID, :TYPE, :IGNORE (dates are strings here)"
    )


# Values


def _int(text: str) -> int:
    if _INT.fullmatch(text) and INT_MIN <= int(text) <= INT_MAX:
        return int(text)
    raise BadValue(f"{text[:80]!r} is no 64-bit int")


def _float(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or "_" in text:
        raise BadValue(f"{text[:80]!r} is no finite float")
    return number


def _bool(text: str) -> bool:
    known = {"true": True, "1": True, "false": False, "0": False}.get(text.lower())
    if known is None:
        raise BadValue(f"{text[:80]!r} is neither true nor false")
    return known


def _string(text: str) -> str:
    return text


def _bytes(text: str) -> dict[str, Any]:
    try:
        raw = b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (Base64Error, ValueError):
        raise BadValue(f"{text[:80]!r} is no base64") from None
    return {"/": {"bytes": b64encode(raw).decode().rstrip("=")}}


def _link(text: str) -> dict[str, str]:
    try:
        parse_any_cid(text)
    except InvalidRequest:
        raise BadValue(f"{text[:80]!r} is no CID") from None
    return {"/": text}


_CONVERSIONS: Final[dict[str, Callable[[str], Any]]] = {
    "int": _int,
    "float": _float,
    "bool": _bool,
    "string": _string,
    "bytes": _bytes,
    "link": _link,
}
_TRIMMED: Final = frozenset({"int", "float", "bool", "bytes", "link"})


def value_of(column: Column, field: Any, list_delimiter: str) -> Any:
    """The JSON of the value in one field of a property: of text as its column says; what JSON has
    typed already stays as it is. None where there is nothing. Raises BadValue."""
    if field is None or (isinstance(field, str) and not field):
        return None if column.kind is not None or field is None else field
    if not column.is_list:
        return _scalar(column.kind, field)
    items: Sequence[Any] = field.split(list_delimiter) if isinstance(field, str) else field
    if not isinstance(items, list):
        raise BadValue(f"{field!r} is no list")
    return [_scalar(column.kind, item) for item in items]


def _scalar(kind: str | None, field: Any) -> Any:
    if kind is None or not isinstance(field, str):
        return field
    return _CONVERSIONS[kind](field.strip() if kind in _TRIMMED else field)
