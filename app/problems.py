"""Errors as problem documents (RFC 9457), and the errors that only a gateway knows.

The database raises a :class:`~cluster_core.errors.KotobaError`; everything else that escapes is a
bug of ours: it is logged with its traceback under an id, and the caller learns the id only.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from secrets import token_hex
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import orjson
from pydantic import ValidationError
from pydantic_core import from_json

from app.settings import NodeSettings, option_of
from cluster_core.errors import (
    AlreadyExists,
    Conflict,
    DependencyFailed,
    HasEdges,
    HistoryCollected,
    IdempotencyKeyReused,
    InternalError,
    InvalidRequest,
    KotobaError,
    NoLeader,
    NotFound,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    PreconditionFailed,
    RequestError,
    RetryError,
    StorageFailed,
    StorageFull,
    TooLarge,
    Unavailable,
)

__all__ = [
    "ERRORS_BY_CODE",
    "Answer",
    "ClientGone",
    "Forbidden",
    "MethodNotAllowed",
    "RateLimited",
    "Unauthorized",
    "UnsupportedMediaType",
    "ascii_header",
    "error_answer",
    "invalid",
    "invalid_body",
    "invalid_framework_request",
    "invalid_parameters",
    "invalid_request",
    "presentable",
    "problem_answer",
    "problem_document",
]

_log: Final = logging.getLogger("kotoba.gateway")

ERRORS_LISTED_MAX: Final = 20
"""So many mistakes of one request are listed; who made more of them has enough to begin with."""
TEXT_CHARACTERS_MAX: Final = 300
"""Texts that quote the request are cut here, so that an answer never mirrors megabytes."""


class UnsupportedMediaType(RequestError):
    code = "unsupported_media_type"
    status = 415
    title = "Unsupported media type"


class MethodNotAllowed(RequestError):
    """``allow``: the methods that the path has."""

    code = "method_not_allowed"
    status = 405
    title = "Method not allowed"


class Unauthorized(RequestError):
    code = "unauthorized"
    status = 401
    title = "Unauthorized"


class Forbidden(RequestError):
    code = "forbidden"
    status = 403
    title = "Forbidden"


class RateLimited(RetryError):
    code = "rate_limited"
    status = 429
    title = "Too many requests"


ERRORS_BY_CODE: Final[dict[str, type[KotobaError]]] = {
    error.code: error
    for error in (
        InvalidRequest,
        NotFound,
        AlreadyExists,
        PreconditionFailed,
        Conflict,
        HasEdges,
        IdempotencyKeyReused,
        DependencyFailed,
        Unauthorized,
        Forbidden,
        TooLarge,
        NotLeader,
        NoLeader,
        Unavailable,
        Overloaded,
        OutcomeUnknown,
        StorageFull,
        HistoryCollected,
        MethodNotAllowed,
        UnsupportedMediaType,
        RateLimited,
        InternalError,
    )
}
"""The errors that clients meet, by the codes of the contract."""


class ClientGone(Exception):
    """The client closed the connection before its request was complete: nobody to answer."""


class Answer(NamedTuple):
    """A whole HTTP answer, ready to be sent."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


def ascii_header(name: str, value: str) -> tuple[bytes, bytes]:
    """One header as ASGI wants it; what is not ASCII, or would end the line, becomes ``?``."""
    safe = "".join(c if c.isascii() and c.isprintable() else "?" for c in value)
    return name.lower().encode(), safe.encode()


def presentable(exception: BaseException, *, doing: str) -> KotobaError:
    """The error that a caller may see for ``exception``; a bug of ours is logged here, once."""
    if isinstance(exception, KotobaError) and exception.code != InternalError.code:
        return exception
    error = InternalError("A bug of ours; please report it with this id.", id=token_hex(8))
    if isinstance(exception, StorageFailed):
        error = InternalError(f"The disk of this node failed: {exception.detail}", **error.extra)
    elif isinstance(exception, InternalError):
        error = InternalError(exception.detail, **{**error.extra, **exception.extra})
    _log.error("internal error %s while %s", error.extra["id"], doing, exc_info=exception)
    return error


def problem_document(error: KotobaError) -> dict[str, Any]:
    """The problem document of ``error``: RFC 9457's members, ``code``, and the code's own."""
    document: dict[str, Any] = {
        "type": f"/problems/{error.code}",
        "title": error.title,
        "status": error.status,
        "detail": _cut(error.detail),
        "code": error.code,
    }
    document.update((k, v) for k, v in error.extra.items() if k not in document)
    if document.get("name") in NodeSettings.model_fields:
        document["setting"] = option_of(document["name"])
    if isinstance(error, InvalidRequest) and "errors" in error.extra:
        document["errors"] = [
            {"where": _cut(e["where"]), "why": _cut(e["why"])}
            for e in error.extra["errors"][:ERRORS_LISTED_MAX]
        ]
    return document


def problem_answer(error: KotobaError, *headers: tuple[bytes, bytes]) -> Answer:
    """The answer that reports ``error``; each 503 and 429 says when to come back."""
    body = orjson.dumps(problem_document(error), default=_plain)
    own = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
        *headers,
    ]
    if error.status in (429, 503):
        own.append((b"retry-after", b"%d" % getattr(error, "retry_after_s", 1)))
    if isinstance(error, MethodNotAllowed):
        own.append(ascii_header("Allow", ", ".join(error.extra.get("allow", ()))))
    return Answer(error.status, own, body)


def error_answer(exception: BaseException, scope: Mapping[str, Any]) -> Answer:
    """The answer to the request ``scope`` when ``exception`` ended it."""
    error = presentable(exception, doing=f"answering {scope['method']} {scope['path']!r}")
    if not isinstance(error, NotLeader):
        return problem_answer(error)
    address = (error.extra.get("leader") or {}).get("address")
    if not address:
        return problem_answer(NoLeader(error.detail))
    return problem_answer(error, ascii_header("Location", _location(error, address, scope)))


def _location(error: NotLeader, address: str, scope: Mapping[str, Any]) -> str:
    """The same request at the leader; a creation takes its nonce along, and so keeps its CID."""
    query = scope["query_string"].decode("latin-1")
    nonce = error.extra.get("nonce")
    if nonce and "nonce=" not in query:
        query = f"{query}&nonce={nonce}" if query else f"nonce={nonce}"
    url = f"{scope.get('scheme', 'http')}://{address}{quote(scope['path'])}"
    return f"{url}?{query}" if query else url


def _plain(value: Any) -> Any:
    """An error's field that JSON does not know: bytes are digests, anything else is named."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Iterable):
        return list(value)
    return repr(value)


def invalid(where: str, why: str) -> InvalidRequest:
    """One mistake of a request."""
    return invalid_request([{"where": where, "why": why}])


def invalid_request(errors: list[dict[str, str]]) -> InvalidRequest:
    """The mistakes of a request; the detail names the first."""
    first = errors[0]
    detail = f"{first['where']}: {first['why']}" if first["where"] else first["why"]
    if len(errors) > 1:
        detail += f" (and {len(errors) - 1} more)"
    return InvalidRequest(detail, errors=errors)


def invalid_body(error: ValidationError, body: bytes, *, root: str = "") -> InvalidRequest:
    """What pydantic found wrong with the JSON text ``body``."""
    details = error.errors(include_url=False, include_input=False)
    if details[0]["type"] == "json_invalid":
        return invalid(root or "body", _why(details[0]))
    document = from_json(body)
    return invalid_request([{"where": _where(d, document, root), "why": _why(d)} for d in details])


def invalid_parameters(error: ValidationError, kind: str = "query") -> InvalidRequest:
    """What pydantic found wrong with parameters of the ``kind`` query, header or path."""
    return invalid_request(
        [
            {"where": _cut(".".join((kind, *map(str, d["loc"])))), "why": _why(d)}
            for d in error.errors(include_url=False, include_input=False)
        ]
    )


def invalid_framework_request(details: Sequence[Mapping[str, Any]]) -> InvalidRequest:
    """What FastAPI found wrong with parameters."""
    return invalid_request(
        [{"where": _cut(".".join(map(str, d["loc"]))), "why": _why(d)} for d in details]
    )


def _where(detail: Mapping[str, Any], document: Any, root: str) -> str:
    """The path of what is wrong in ``document``, without the tags of unions that pydantic adds."""
    parts = [root] if root else []
    for part in detail["loc"]:
        if isinstance(part, int):
            document = document[part] if isinstance(document, list) else None
        elif isinstance(document, dict) and part in document:
            document = document[part]
        elif detail["type"] != "missing" or part != detail["loc"][-1]:
            continue
        parts.append(str(part))
    if detail["type"] in ("union_tag_invalid", "union_tag_not_found"):
        parts.append(detail["ctx"]["discriminator"].strip("'"))
    return _cut(".".join(parts)) or "body"


def _why(detail: Mapping[str, Any]) -> str:
    match detail["type"]:
        case "extra_forbidden":
            return "is not known here"
        case "missing" | "union_tag_not_found":
            return "is required"
        case "union_tag_invalid":
            context = detail["ctx"]
            return f"'{_cut(context['tag'], 60)}' is not one of {context['expected_tags']}"
        case _:
            return str(detail["msg"])


def _cut(text: str, characters: int = TEXT_CHARACTERS_MAX) -> str:
    return text if len(text) <= characters else text[:characters] + "…"
