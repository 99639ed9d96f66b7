"""One total order over all values, as bytes: ``a`` comes before ``b`` when its key is smaller.

null < bool < number < string < bytes < link < list. A key is prefix-free (none begins another), so
keys of several values may be joined, and the complement of a key sorts the other way around. Equal
keys mean equal values in the sense of ``eq``: 1 and 1.0 are one number, 1 and true are not.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from cluster_core.graph.values import Link, Value

__all__ = ["family_range", "order_key"]

_F64: Final = Struct(">d").pack
_U16: Final = Struct(">H").pack
_COMPLEMENT: Final = bytes(range(255, -1, -1))
_RESIDUE_ZERO: Final = 1 << 15

_END: Final = b"\0"
_NULL: Final = b"\1"
_FALSE: Final = b"\2"
_TRUE: Final = b"\3"
_NUMBER: Final = b"\4"
_STRING: Final = b"\5"
_BYTES: Final = b"\6"
_LINK: Final = b"\7"
_LIST: Final = b"\x08"


def order_key(value: Value) -> bytes:
    """The bytes that sort as ``value`` does."""
    if value is None:
        return _NULL
    if isinstance(value, bool):
        return _TRUE if value else _FALSE
    if isinstance(value, int | float):
        return _NUMBER + _number(value)
    if isinstance(value, str):
        return _STRING + _terminated(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, Link):
        return _LINK + _terminated(value.cid)
    if isinstance(value, bytes):
        return _BYTES + _terminated(value)
    return _LIST + b"".join(map(order_key, value)) + _END


def _number(value: float) -> bytes:
    """The nearest float, then what an int lost on the way to it (at most 512 up to 64 bits)."""
    nearest = float(value)
    raw = _F64(nearest + 0.0)  # -0.0 + 0.0 is 0.0
    ordered = raw.translate(_COMPLEMENT) if raw[0] & 0x80 else bytes((raw[0] | 0x80,)) + raw[1:]
    residue = value - int(nearest) if isinstance(value, int) else 0
    return ordered + _U16(_RESIDUE_ZERO + residue)


def _terminated(raw: bytes) -> bytes:
    """A zero byte inside is followed by 255, the two that end it by nothing that sorts lower."""
    return raw.replace(b"\0", b"\0\xff") + b"\0\0"


def family_range(value: Value) -> tuple[bytes, bytes]:
    """The keys of all values of the family of ``value``: from the first to below the second."""
    if isinstance(value, bool):
        return _FALSE, _NUMBER
    tag = order_key(value)[0]
    return bytes((tag,)), bytes((tag + 1,))
