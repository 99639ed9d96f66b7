"""Everything that can go wrong, as one tree.

::

    KotobaError
    ├── RequestError              the caller must change the request
    │   ├── InvalidRequest        422  what is wrong, and where
    │   ├── NotFound              404
    │   ├── AlreadyExists         409
    │   ├── PreconditionFailed    412  the entity has another version
    │   ├── HasEdges              409  delete_node without detach
    │   ├── IdempotencyKeyReused  422  the same key with another request
    │   ├── DependencyFailed      424  a ``ref`` names an operation that failed
    │   ├── TooLarge              413
    │   └── HistoryCollected      410  older than what is kept
    ├── RetryError                certainly not executed: the caller may try again
    │   ├── NotLeader             307  ask the leader
    │   ├── NoLeader              503
    │   ├── Unavailable           503  no quorum, or not (yet) a member
    │   │   └── ClockCeiling      503  the clock waits for its ceiling to be durable
    │   ├── Overloaded            503  a bound is reached
    │   ├── Conflict              409  lost against another transaction
    │   └── StorageFull           507
    ├── OutcomeUnknown            504  retry with the same Idempotency-Key
    ├── Unreachable               503  nobody answers at an address (between nodes)
    ├── Refused                   409  a node refuses another (between nodes; says why)
    ├── StorageFailed             500  this node's disk failed; final for the process
    └── InternalError             500  a bug of ours, with an id that is in the log

An error holds fields; its message is composed from them. ``fields()`` is what goes into the
problem document (RFC 9457) and over the wire between nodes, and ``from_fields`` its inverse.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

__all__ = [
    "AlreadyExists",
    "CannotListen",
    "Conflict",
    "DependencyFailed",
    "HasEdges",
    "HistoryCollected",
    "IdempotencyKeyReused",
    "InternalError",
    "InvalidRequest",
    "KotobaError",
    "NoLeader",
    "NotFound",
    "NotLeader",
    "OutcomeUnknown",
    "Overloaded",
    "PreconditionFailed",
    "Refused",
    "RequestError",
    "RetryError",
    "StorageFailed",
    "StorageFull",
    "TooLarge",
    "Unavailable",
    "Unreachable",
    "error_from_fields",
]


class KotobaError(Exception):
    """The root. ``code``: the contract's name; ``status``: of HTTP; ``title``: a heading."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"

    def __init__(self, detail: str, **extra: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.extra: dict[str, Any] = extra

    def fields(self) -> dict[str, Any]:
        """``code``, ``detail`` and the fields of the code's own."""
        return {"code": self.code, "detail": self.detail, **self.extra}


class RequestError(KotobaError):
    """The caller must change the request."""


class InvalidRequest(RequestError):
    """``errors``: a list of ``{"where": "operations.0.cid", "why": "…"}``."""

    code = "invalid_request"
    status = 422
    title = "The request is not valid"


class NotFound(RequestError):
    code = "not_found"
    status = 404
    title = "Not found"


class AlreadyExists(RequestError):
    code = "already_exists"
    status = 409
    title = "Already exists"


class PreconditionFailed(RequestError):
    """``version``: the version that the entity has now."""

    code = "precondition_failed"
    status = 412
    title = "Precondition failed"


class HasEdges(RequestError):
    code = "has_edges"
    status = 409
    title = "The node has edges"


class IdempotencyKeyReused(RequestError):
    code = "idempotency_key_reused"
    status = 422
    title = "Idempotency key reused"


class DependencyFailed(RequestError):
    """``ref``: the name of the operation that failed."""

    code = "dependency_failed"
    status = 424
    title = "An earlier operation failed"


class TooLarge(RequestError):
    """``limit``: the bound that was passed, in the unit that the detail names; ``name``: what
    ``LimitConfig`` calls it, where it is one of its."""

    code = "too_large"
    status = 413
    title = "Too large"

    @classmethod
    def beyond(cls, name: str, limit: int, detail: str) -> Self:
        """The error of who passed the bound ``name``."""
        return cls(f"{detail} ({name})", limit=limit, name=name)


class HistoryCollected(RequestError):
    code = "history_collected"
    status = 410
    title = "History collected"


class RetryError(KotobaError):
    """Certainly not executed. ``retry_after_s`` says when it is worth another try."""

    retry_after_s: ClassVar[int] = 1


class NotLeader(RetryError):
    """``leader``: ``{"node_id", "address"}``; ``nonce``: hex, for a creation's second try."""

    code = "not_leader"
    status = 307
    title = "Not the leader"


class NoLeader(RetryError):
    code = "no_leader"
    status = 503
    title = "No leader"


class Unavailable(RetryError):
    code = "unavailable"
    status = 503
    title = "Unavailable"


class ClockCeiling(Unavailable):
    """``ceiling``: the highest timestamp that this node may give until it has persisted more."""


class Overloaded(RetryError):
    """``limit`` and ``name`` of the bound, as of :class:`TooLarge`, where it can be set."""

    code = "overloaded"
    status = 503
    title = "Overloaded"


class Conflict(RetryError):
    code = "conflict"
    status = 409
    title = "Conflict with another transaction"


class StorageFull(RetryError):
    code = "storage_full"
    status = 507
    title = "Storage full"


class OutcomeUnknown(KotobaError):
    code = "timeout"
    status = 504
    title = "Outcome unknown"


class Unreachable(KotobaError):
    code = "unavailable"
    status = 503
    title = "Unreachable"


class Refused(KotobaError):
    """One node refuses another: another cluster, a wiped disk, unequal peer lists."""

    code = "refused"
    status = 409
    title = "Refused"


class CannotListen(KotobaError):
    """``address``: where this node was told to listen."""

    title = "Cannot listen"


class StorageFailed(KotobaError):
    title = "Storage failed"


class InternalError(KotobaError):
    """``id``: also in this node's log, beside the traceback."""


_BY_CODE: dict[str, type[KotobaError]] = {
    error.code: error
    for error in (
        InvalidRequest,
        NotFound,
        AlreadyExists,
        PreconditionFailed,
        HasEdges,
        IdempotencyKeyReused,
        DependencyFailed,
        TooLarge,
        HistoryCollected,
        NotLeader,
        NoLeader,
        Unavailable,
        Overloaded,
        Conflict,
        StorageFull,
        OutcomeUnknown,
        Refused,
        InternalError,
    )
}


def error_from_fields(fields: dict[str, Any]) -> KotobaError:
    """The error whose :meth:`KotobaError.fields` are ``fields``; an unknown code is internal."""
    rest = dict(fields)
    cls = _BY_CODE.get(rest.pop("code", "internal"), InternalError)
    return cls(rest.pop("detail", ""), **rest)
