"""Values: what a property may hold, how it is written as JSON, and how it travels.

A value is null, a bool, a 64-bit signed int, a finite float, a string, bytes, a link, or a list of
these; lists do not nest. JSON spells bytes and links as DAG-JSON does::

    {"/": {"bytes": "<base64, no padding>"}}      {"/": "<cid>"}

Between nodes values travel as msgpack, links as an extension type, so a link is never taken for
bytes. Equality of Python takes ``1``, ``1.0`` and ``True`` for the same: whoever compares contents
compares their blocks.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Callable
from math import isfinite
from types import NoneType
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypedDict, TypeVar, overload

import msgspec

from cluster_core.errors import InvalidRequest
from cluster_core.graph.cid import any_cid_text, is_cid, parse_any_cid

__all__ = [
    "INT_MAX",
    "INT_MIN",
    "Link",
    "Problem",
    "Scalar",
    "Value",
    "check_value",
    "encode_message",
    "invalid",
    "message_decoder",
    "problem_of",
    "problem_of_text",
    "properties_from_json",
    "properties_to_json",
    "value_from_json",
    "value_to_json",
]

INT_MIN: Final = -(1 << 63)
INT_MAX: Final = (1 << 63) - 1

_LINK_CODE: Final = 42
"""msgpack extension type of a link; the number is the CBOR tag that links have in blocks."""

T = TypeVar("T")


class Link:
    """A reference to any block of the world: the raw bytes of a CID. Immutable.

    A plain class, since msgspec would write a Struct or a dataclass as a map and read it back as a
    dict; this it writes as the extension type below, or, where that is forgotten, not at all.
    """

    __slots__ = ("cid",)

    def __init__(self, cid: bytes) -> None:
        self.cid: Final = cid

    def __eq__(self, other: object) -> bool:
        return type(other) is Link and self.cid == other.cid

    def __hash__(self) -> int:
        return hash(self.cid)

    def __repr__(self) -> str:
        return f"Link({self.cid!r})"

    def __bytes__(self) -> bytes:
        return self.cid

    def __str__(self) -> str:
        return any_cid_text(self.cid)


class Problem(TypedDict):
    """One thing that is wrong with a request: the path of the field, and the reason."""

    where: str
    why: str


if TYPE_CHECKING:
    Scalar: TypeAlias = bool | int | float | str | bytes | Link | None
    Value: TypeAlias = Scalar | list[Scalar]
else:
    # msgspec refuses a union of str and bytes, which msgpack itself tells apart very well.
    Scalar = Any
    Value = Any


def invalid(problems: list[Problem]) -> InvalidRequest:
    """The error that carries ``problems``; its detail names the first few."""
    told = "; ".join(f"{p['where']}: {p['why']}" if p["where"] else p["why"] for p in problems[:3])
    more = len(problems) - 3
    return InvalidRequest(f"{told}; and {more} more" if more > 0 else told, errors=problems)


# Checking


def check_value(value: object, where: str = "") -> None:
    """Raise :class:`~cluster_core.errors.InvalidRequest` unless ``value`` is a value."""
    why = problem_of(value)
    if why is not None:
        raise invalid([{"where": where, "why": why}])


def problem_of(value: object) -> str | None:
    """Why ``value`` is no value; None when it is one."""
    if type(value) is not list:
        return _problem_of_scalar(value)
    if _is_plain(value):
        return None
    for index, item in enumerate(value):
        why = _problem_of_item(item)
        if why is not None:
            return f"item {index}: {why}"
    return None


def _is_plain(items: list[Any]) -> bool:
    """Whether ``items`` are common scalars, seen at a look at all of each kind: a tenth of what
    one look at each item takes, and lists are long."""
    kinds = set(map(type, items))
    for kind in kinds:
        are_plain = _PLAIN.get(kind)
        if are_plain is None:
            return False
        if not are_plain(items if len(kinds) == 1 else [i for i in items if type(i) is kind]):
            return False
    return True


def _problem_of_item(item: object) -> str | None:
    return "a list in a list" if type(item) is list else _problem_of_scalar(item)


def _problem_of_scalar(value: object) -> str | None:
    check = _CHECKS.get(type(value))
    return check(value) if check else f"{type(value).__name__} is not a type of value"


def _problem_of_int(value: int) -> str | None:
    return None if INT_MIN <= value <= INT_MAX else "an int outside of 64 bits"


def _problem_of_float(value: float) -> str | None:
    return None if isfinite(value) else "a float that is not finite"


def problem_of_text(value: str) -> str | None:
    """Why ``value`` cannot be written as UTF-8; None when it can."""
    if value.isascii():
        return None
    try:
        value.encode()
    except UnicodeEncodeError:
        return "a string with half a surrogate pair"
    return None


def _problem_of_link(value: Link) -> str | None:
    return None if is_cid(value.cid) else "a link that is no CID"


def _no_problem(_value: object) -> None:
    return None


def _are_64_bits(items: list[int]) -> bool:
    return _problem_of_int(min(items)) is None and _problem_of_int(max(items)) is None


def _always(_items: list[Any]) -> bool:
    return True


_PLAIN: Final[dict[type, Callable[[list[Any]], bool]]] = {
    NoneType: _always,
    bool: _always,
    bytes: _always,
    int: _are_64_bits,
    float: lambda items: all(map(isfinite, items)),
    str: lambda items: all(map(str.isascii, items)),
}

_CHECKS: Final[dict[type, Callable[[Any], str | None]]] = {
    type(None): _no_problem,
    bool: _no_problem,
    bytes: _no_problem,
    int: _problem_of_int,
    float: _problem_of_float,
    str: problem_of_text,
    Link: _problem_of_link,
}


# JSON


def value_from_json(document: object, where: str = "") -> Value:
    """The value that a JSON document (already parsed) spells; ``where`` is its path.

    Raises :class:`~cluster_core.errors.InvalidRequest`.
    """
    if type(document) is list:
        return document if _is_plain(document) else _items_from_json(document, where)
    if type(document) is dict:
        return _from_object(document, where)
    why = _problem_of_scalar(document)
    if why is not None:
        raise invalid([{"where": where, "why": why}])
    return document  # type: ignore[return-value]  # the check above is by type


def _items_from_json(items: list[Any], where: str) -> list[Scalar]:
    scalars: list[Scalar] = []
    for index, item in enumerate(items):
        if type(item) is dict:
            scalars.append(_from_object(item, f"{where}.{index}"))
            continue
        why = _problem_of_item(item)
        if why is not None:
            raise invalid([{"where": f"{where}.{index}", "why": why}])
        scalars.append(item)
    return scalars


def properties_from_json(document: object, where: str = "properties") -> dict[str, Value]:
    """The properties that a JSON object spells. Raises with *all* that is wrong."""
    if not isinstance(document, dict):
        raise invalid([{"where": where, "why": "must be an object"}])
    properties: dict[str, Value] = {}
    problems: list[Problem] = []
    for name, item in document.items():
        try:
            properties[name] = value_from_json(item, f"{where}.{name}")
        except InvalidRequest as error:
            problems += error.extra["errors"]
    if problems:
        raise invalid(problems)
    return properties


def _from_object(document: dict[str, Any], where: str) -> bytes | Link:
    inner = document.get("/")
    if len(document) == 1 and isinstance(inner, str):
        return Link(parse_any_cid(inner, where))
    if len(document) == 1 and isinstance(inner, dict) and len(inner) == 1:
        text = inner.get("bytes")
        if isinstance(text, str):
            return _bytes_from_text(text, where)
    why = 'an object must be {"/": {"bytes": "<base64>"}} or {"/": "<cid>"}'
    raise invalid([{"where": where, "why": why}])


def _bytes_from_text(text: str, where: str) -> bytes:
    try:
        raw = b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (Base64Error, ValueError):
        raw = None
    if raw is None or _base64(raw) != text:
        raise invalid([{"where": where, "why": "not base64 without padding"}])
    return raw


def value_to_json(value: Value) -> Any:
    """The JSON document of ``value``: the inverse of :func:`value_from_json`."""
    kind = type(value)
    if kind is bytes:
        return {"/": {"bytes": _base64(value)}}  # type: ignore[arg-type]
    if kind is Link:
        return {"/": str(value)}
    if kind is list:
        kinds = set(map(type, value))  # type: ignore[arg-type]
        if bytes in kinds or Link in kinds:
            return [value_to_json(item) for item in value]  # type: ignore[union-attr]
    return value


def properties_to_json(properties: dict[str, Value]) -> dict[str, Any]:
    """The JSON object of ``properties``."""
    return {name: value_to_json(value) for name, value in properties.items()}


def _base64(raw: bytes) -> str:
    return b64encode(raw).rstrip(b"=").decode()


# Between nodes


def _encode_link(value: Any) -> msgspec.msgpack.Ext:
    if type(value) is Link:
        return msgspec.msgpack.Ext(_LINK_CODE, value.cid)
    raise NotImplementedError(f"{type(value).__name__} does not travel between nodes")


def _decode_link(code: int, data: memoryview) -> Link:
    if code == _LINK_CODE:
        return Link(bytes(data))
    raise ValueError(f"unknown extension type {code}")


encode_message: Final = msgspec.msgpack.Encoder(enc_hook=_encode_link).encode
"""Any Struct that holds values, as msgpack."""


@overload
def message_decoder(kind: type[T]) -> Callable[[bytes], T]: ...
@overload
def message_decoder(kind: Any) -> Callable[[bytes], Any]: ...
def message_decoder(kind: Any) -> Callable[[bytes], Any]:
    """A function that reads a ``kind`` (a Struct or a union of them) that holds values."""
    return msgspec.msgpack.Decoder(kind, ext_hook=_decode_link).decode
