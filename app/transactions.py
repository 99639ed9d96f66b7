"""A transaction, from its bytes to the operations of the database, or to the first mistake."""

from __future__ import annotations

from collections.abc import Sequence

from app.batch import Malformed, read_json_batch
from app.schemas.operations import BatchOperation
from cluster_core.config import LimitConfig
from cluster_core.errors import InvalidRequest, KotobaError
from cluster_core.graph.cid import parse_cid
from cluster_core.graph.operations import BatchOperation as CoreBatchOperation
from cluster_core.types import Digest

__all__ = ["read_transaction"]


def read_transaction(body: bytes, limits: LimitConfig) -> Sequence[CoreBatchOperation]:
    """The operations of ``{"operations": […]}``. Raises what is wrong with the first bad one, with
    its ``index``."""
    lines = read_json_batch(body, limits.transaction_operations_max, what="transaction")
    operations = []
    for index, line in enumerate(lines):
        try:
            if isinstance(line, Malformed):
                raise line.error
            operations.append(_to_core(line, limits.entity_bytes_max))
        except KotobaError as error:
            raise _placed(error, index) from None
    return operations


def _to_core(line: BatchOperation, entity_bytes_max: int) -> CoreBatchOperation:
    """``$a`` where a CID is meant stays a name; whether it is known is for the database to say."""
    line.refuse_unknown()
    refs: dict[str, str] = {}

    def parse(text: str, where: str) -> Digest:
        if not text.startswith("$"):
            return parse_cid(text, where)
        refs[where] = text[1:]
        return b""

    return CoreBatchOperation(line.to_core(entity_bytes_max, parse), line.ref, refs)


def _placed(error: KotobaError, index: int) -> KotobaError:
    """The error of the operation at ``index``, with paths that begin at the request."""
    error.extra["index"] = index
    if isinstance(error, InvalidRequest):
        error.extra["errors"] = [
            {**mistake, "where": f"operations.{index}.{mistake['where']}"}
            for mistake in error.extra.get("errors", ())
        ]
    return error
