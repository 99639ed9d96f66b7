"""What two nodes tell each other before a frame flows: who they are, and why not.

A secret never travels: the header carries its digest, so that any text may be a secret and no log
of headers gives it away as the operator wrote it.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Any, Final

import httpx
import msgspec

from cluster_core.errors import KotobaError, Refused, Unreachable, error_from_fields
from cluster_core.types import NodeId

__all__ = [
    "EPOCH_HEADER",
    "NODE_HEADER",
    "PROTOCOL",
    "SECRET_HEADER",
    "Hello",
    "Welcome",
    "decode_hello",
    "decode_welcome",
    "encode",
    "error_of",
    "is_secret",
    "problem_of",
    "secret_digest",
]

PROTOCOL: Final = 1
"""Counts the incompatible changes of frames; nodes of different numbers refuse each other."""

SECRET_HEADER: Final = "kotoba-secret"
NODE_HEADER: Final = "kotoba-node"
EPOCH_HEADER: Final = "kotoba-epoch"


class Hello(msgspec.Struct, array_like=True, frozen=True):
    """Asks to open a stream. ``epoch`` is greater at each connect, also after a restart."""

    protocol: int
    cluster_id: str
    node_id: NodeId
    store_id: str
    epoch: int
    address: str


class Welcome(msgspec.Struct, array_like=True, frozen=True):
    """The answer to a hello that is accepted: who it reached."""

    node_id: NodeId
    store_id: str


encode = msgspec.msgpack.Encoder().encode
decode_hello = msgspec.msgpack.Decoder(Hello).decode
decode_welcome = msgspec.msgpack.Decoder(Welcome).decode


def secret_digest(secret: str) -> str:
    """What a request carries to prove that its sender knows ``secret``; nothing for no secret."""
    return (
        hashlib.sha256(b"kotoba cluster secret\0" + secret.encode()).hexdigest() if secret else ""
    )


def is_secret(expected: str, given: bytes) -> bool:
    """Whether the digest ``given`` is the ``expected`` one; where none is expected, all are."""
    return not expected or hmac.compare_digest(expected.encode(), given)


def problem_of(error: KotobaError) -> dict[str, Any]:
    """The problem document (RFC 9457) of ``error``."""
    return {"type": "about:blank", "title": error.title, "status": error.status, **error.fields()}


def error_of(response: httpx.Response) -> KotobaError:
    """The error that another node answered with."""
    where = f"{response.request.url.host}:{response.request.url.port or 80}"
    if response.status_code == httpx.codes.UNAUTHORIZED:
        return Refused(f"{where} has another cluster secret than this node")
    try:
        fields = response.json()
    except ValueError:
        fields = None
    if not isinstance(fields, dict) or "code" not in fields:
        return Unreachable(
            f"{where} answers {response.status_code}, but not as a node of a cluster does"
        )
    for name in ("type", "title", "status"):
        fields.pop(name, None)
    return error_from_fields(fields)
