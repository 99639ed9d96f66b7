"""CIDs: the names of blocks, as bytes inside and as text at the edge.

Our own CIDs are all CIDv1, dag-cbor, sha2-256, so inside the database an entity or a version is
named by its 32-byte digest alone. Text is base32 in lower case (``bafyrei…``, 59 characters). A
link among the values of a user may be any CID.

The text comes from libipld: 0.3 µs, where ``base64.b32encode`` and its trimming take 5.4 µs.
"""

from __future__ import annotations

from typing import Final

from libipld import decode_multibase, encode_multibase

from cluster_core.errors import InvalidRequest
from cluster_core.types import Digest

__all__ = ["any_cid_text", "cid_bytes", "cid_text", "is_cid", "parse_any_cid", "parse_cid"]

PREFIX: Final = b"\x01\x71\x12\x20"
"""Version 1, codec dag-cbor, hash sha2-256, 32 bytes."""

_V0_PREFIX: Final = b"\x12\x20"
_V0_LENGTH: Final = 34
_TEXT_LENGTH: Final = 59


def cid_bytes(digest: Digest) -> bytes:
    """The raw CID of our block with ``digest``."""
    return PREFIX + digest


def cid_text(digest: Digest) -> str:
    """The text of the CID of our block with ``digest``."""
    return encode_multibase("b", PREFIX + digest)


def parse_cid(text: str, where: str = "cid") -> Digest:
    """The digest in the text of one of our CIDs; ``where`` names the field in the error.

    Strict: one CID has one text, so upper case, other bases and stray bits are refused.
    Raises :class:`~cluster_core.errors.InvalidRequest`.
    """
    if len(text) == _TEXT_LENGTH and text.startswith("bafyrei"):
        try:
            raw = decode_multibase(text)[1]
        except ValueError:
            raw = b""
        if raw[:4] == PREFIX and len(raw) == 36 and encode_multibase("b", raw) == text:
            return raw[4:]
    raise _refusal(where, f"{text[:80]!r} is no CID of this database (bafyrei…, 59 characters)")


def is_cid(raw: bytes) -> bool:
    """Whether ``raw`` is exactly one CID, of version 0 or 1, of any codec and hash."""
    if len(raw) == 36 and raw[:4] == PREFIX:
        return True
    if raw[:2] == _V0_PREFIX:
        return len(raw) == _V0_LENGTH
    try:
        version, at = _varint(raw, 0)
        _codec, at = _varint(raw, at)
        _hash, at = _varint(raw, at)
        length, at = _varint(raw, at)
    except ValueError:
        return False
    return version == 1 and len(raw) - at == length


def any_cid_text(raw: bytes) -> str:
    """The canonical text of any CID: base58 for version 0, else base32."""
    return encode_multibase("z", raw)[1:] if raw[:2] == _V0_PREFIX else encode_multibase("b", raw)


def parse_any_cid(text: str, where: str = "") -> bytes:
    """The raw bytes of any CID, from its text in any multibase.

    Raises :class:`~cluster_core.errors.InvalidRequest`.
    """
    try:
        raw = decode_multibase("z" + text if text.startswith("Qm") else text)[1]
    except ValueError:
        raw = b""
    if not is_cid(raw):
        raise _refusal(where, f"{text[:80]!r} is no CID")
    return raw


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """The minimal unsigned varint at ``at``, and the place after it."""
    number = 0
    for shift in range(0, 63, 7):
        if at >= len(raw):
            break
        byte = raw[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            if shift and not byte:
                break
            return number, at
    raise ValueError("no minimal varint")


def _refusal(where: str, why: str) -> InvalidRequest:
    return InvalidRequest(
        f"{where}: {why}" if where else why, errors=[{"where": where, "why": why}]
    )
