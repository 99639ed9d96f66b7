"""What a request says, read from the raw ASGI scope and messages: headers, parameters, body.

Used by the hot routes, which have no framework around them. Everything that is wrong raises a
KotobaError; nothing here looks into the body's content.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine, Mapping
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl

from pydantic import BaseModel, ValidationError

from app.problems import ClientGone, UnsupportedMediaType, invalid, invalid_parameters
from cluster_core.errors import TooLarge
from cluster_core.hlc import parse_timestamp
from cluster_core.types import Timestamp

__all__ = [
    "JSON",
    "NDJSON",
    "Headers",
    "headers_of",
    "idempotency_key_of",
    "if_match_of",
    "media_type_of",
    "parameters_of",
    "read_body",
    "session_of",
    "while_connected",
]

Headers = Mapping[bytes, bytes]

JSON: Final = b"application/json"
NDJSON: Final = b"application/x-ndjson"

PARAMETERS_MAX: Final = 32
IDEMPOTENCY_KEY_CHARACTERS_MAX: Final = 256

_SINGULAR: Final = (b"content-type", b"idempotency-key", b"if-match", b"kotoba-session")

P = TypeVar("P", bound=BaseModel)
T = TypeVar("T")


def headers_of(scope: Mapping[str, Any]) -> Headers:
    """The headers by their lower-case names; those that decide something may come once only."""
    pairs = scope["headers"]
    headers = dict(pairs)
    if len(headers) != len(pairs):
        names = [name for name, _ in pairs]
        for name in _SINGULAR:
            if names.count(name) > 1:
                raise invalid(f"header.{name.decode()}", "is given more than once")
    return headers


def media_type_of(headers: Headers, allowed: Collection[bytes]) -> bytes:
    """The media type of the body, which must be one of ``allowed``, in UTF-8 and not compressed.

    A missing Content-Type is refused as well: browsers send such requests across origins without
    asking first.
    """
    given = headers.get(b"content-type", b"")
    if given not in allowed:
        given = _without_charset(given)
        if given not in allowed:
            wanted = b" or ".join(sorted(allowed)).decode()
            raise UnsupportedMediaType(f"The body must be sent as Content-Type: {wanted}")
    if headers.get(b"content-encoding", b"identity") != b"identity":
        raise UnsupportedMediaType("The body must be sent without a Content-Encoding")
    return given


def _without_charset(content_type: bytes) -> bytes:
    kind, *parameters = (part.strip() for part in content_type.lower().split(b";"))
    for parameter in parameters:
        if parameter.startswith(b"charset=") and parameter[8:].strip(b'"') != b"utf-8":
            return b""
    return kind


async def read_body(
    receive: Any, headers: Headers, bytes_max: int, name: str | None = None
) -> bytes:
    """The whole body; refused as soon as it is known to be longer than ``bytes_max``, the bound of
    this ``name``."""
    declared = headers.get(b"content-length")
    if declared is not None and declared.isdigit() and int(declared) > bytes_max:
        raise _too_large(bytes_max, name)
    message = await receive()
    if message["type"] != "http.request":
        raise ClientGone
    body: bytes = message.get("body", b"")
    if message.get("more_body"):
        body = await _read_on(receive, body, bytes_max)
    if len(body) > bytes_max:
        raise _too_large(bytes_max, name)
    return body


async def _read_on(receive: Any, first: bytes, bytes_max: int) -> bytes:
    chunks, size = [first], len(first)
    while size <= bytes_max:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientGone
        chunk = message.get("body", b"")
        chunks.append(chunk)
        size += len(chunk)
        if not message.get("more_body"):
            break
    return b"".join(chunks)


async def while_connected(receive: Any, work: Coroutine[Any, Any, T]) -> T:
    """What ``work`` returns; it is cancelled when the client closes its connection, and ClientGone
    raised. Only for what may be given up half-way: reads. The body must have been read."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(receive())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


def _too_large(bytes_max: int, name: str | None) -> TooLarge:
    detail = f"The body is longer than {bytes_max} bytes"
    if name is None:
        return TooLarge(detail, limit=bytes_max)
    return TooLarge.beyond(name, bytes_max, detail)


def parameters_of(query_string: bytes, model: type[P]) -> P:
    """The query parameters as ``model`` has them; each may be given once."""
    try:
        pairs = parse_qsl(
            query_string.decode("latin-1"), keep_blank_values=True, max_num_fields=PARAMETERS_MAX
        )
    except ValueError:
        raise invalid("query", f"has more than {PARAMETERS_MAX} parameters") from None
    parameters = dict(pairs)
    if len(parameters) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise invalid(f"query.{twice[:100]}", "is given more than once")
    try:
        return model.model_validate_strings(parameters)
    except ValidationError as error:
        raise invalid_parameters(error) from None


def idempotency_key_of(headers: Headers) -> str | None:
    """The Idempotency-Key: 1 to 256 printable ASCII characters."""
    raw = headers.get(b"idempotency-key")
    if raw is None:
        return None
    key = raw.decode("latin-1")
    if not (0 < len(key) <= IDEMPOTENCY_KEY_CHARACTERS_MAX and key.isascii() and key.isprintable()):
        raise invalid("header.idempotency-key", "must be 1 to 256 printable ASCII characters")
    return key


def if_match_of(headers: Headers) -> str | None:
    """The version in If-Match: exactly one strong entity tag (RFC 9110, 13.1.1)."""
    raw = headers.get(b"if-match")
    if raw is None:
        return None
    tag = raw.decode("latin-1").strip()
    version = tag[1:-1]
    if len(tag) < 3 or tag[0] != '"' or tag[-1] != '"' or '"' in version:
        raise invalid("header.if-match", 'must be one version in quotes, like "bafyrei…"')
    return version


def session_of(headers: Headers) -> Timestamp | None:
    """The timestamp that this client has seen already, where it says so."""
    raw = headers.get(b"kotoba-session")
    if raw is None:
        return None
    return parse_timestamp(raw.decode("latin-1"), where="header.kotoba-session")
