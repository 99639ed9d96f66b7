"""A batch, from its bytes to the operations that can be tried, each for itself.

An operation that is malformed, or that names the ``ref`` of a failed one, gets its error here; all
others go to the database in one call, and their results back to where they stood.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final, NamedTuple

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json, to_json

from app.problems import invalid, invalid_body
from app.schemas.operations import BATCH, BATCH_OPERATION, BatchOperation
from cluster_core.errors import DependencyFailed, KotobaError, TooLarge
from cluster_core.graph.cid import parse_cid
from cluster_core.graph.operations import BatchOperation as CoreBatchOperation
from cluster_core.graph.operations import OperationResult
from cluster_core.types import Digest

__all__ = ["Batch", "keys_of", "read_json_batch", "read_ndjson_batch", "refuse_repeated_keys"]

OPERATIONS_PER_TURN: Final = 500
"""After so many (5 ms of work) the event loop gets a turn, so that heartbeats leave in time."""


ITEMS_PER_OPERATION: Final = 100
"""So many items of a list are as much work as an operation without one."""


BYTES_PER_OPERATION: Final = 4 << 10
"""So many bytes of a line are as much work as a short line."""
BYTES_PER_TURN: Final = 512 << 10
"""White space looked through between two pauses, at 10 ns a byte."""

_TEXT: Final = re.compile(rb"[^ \t\r\n]")


class Malformed(NamedTuple):
    """An operation that cannot be tried; its ``ref``, where it has one, fails who names it."""

    error: KotobaError
    ref: str | None = None


Line = BatchOperation | Malformed


def read_json_batch(body: bytes, operations_max: int, *, what: str = "batch") -> Sequence[Line]:
    """The operations of ``{"operations": […]}``; one by one where some are malformed."""
    try:
        request = BATCH.validate_json(body)
        request.refuse_unknown()
        lines: Sequence[Line] = request.operations
    except ValidationError as error:
        lines = _one_by_one(body, error, operations_max, what)
    _check_count(len(lines), operations_max, what)
    keys = 1 + sum(keys_of(line) for line in lines if not isinstance(line, Malformed))
    if keys != body.count(b":"):
        refuse_repeated_keys(body)
    return lines


def _one_by_one(body: bytes, error: ValidationError, operations_max: int, what: str) -> list[Line]:
    if error.errors(include_url=False)[0]["type"] == "json_invalid":
        raise invalid_body(error, body) from None
    document = from_json(body)
    if not isinstance(document, dict) or document.keys() != {"operations"}:
        raise invalid_body(error, body) from None
    if not isinstance(document["operations"], list):
        raise invalid_body(error, body) from None
    _check_count(len(document["operations"]), operations_max, what)
    return [_line(to_json(item, inf_nan_mode="constants")) for item in document["operations"]]


async def read_ndjson_batch(body: bytes, operations_max: int) -> Sequence[Line]:
    """One operation a line; empty lines are nothing."""
    texts: list[bytes] = []
    async for text in _lines(body):
        texts.append(text)
        _check_count(len(texts), operations_max)
    lines: list[Line] = []
    work = 0
    for text in texts:
        lines.append(_line(text, check_keys=True))
        work += 1 + len(text) // BYTES_PER_OPERATION
        if work >= OPERATIONS_PER_TURN:
            work = 0
            await asyncio.sleep(0)
    return lines


async def _lines(body: bytes) -> AsyncIterator[bytes]:
    """The lines that are not empty, one after the other: who has enough need not see millions."""
    position = skipped = 0
    while position < len(body):
        text = _TEXT.search(body, position, position + BYTES_PER_TURN)
        begin = position + BYTES_PER_TURN if text is None else text.start()
        skipped += begin - position
        position = begin
        if skipped >= BYTES_PER_TURN:
            skipped = 0
            await asyncio.sleep(0)
        if text is not None:
            position = body.find(b"\n", begin) + 1 or len(body)
            yield body[begin:position]


def _line(text: bytes, *, check_keys: bool = False) -> Line:
    try:
        line = BATCH_OPERATION.validate_json(text)
        if check_keys and keys_of(line) != text.count(b":"):
            refuse_repeated_keys(text)
        return line
    except ValidationError as error:
        return Malformed(invalid_body(error, text), _ref_of(text))
    except KotobaError as error:
        return Malformed(error, _ref_of(text))


def _ref_of(text: bytes) -> str | None:
    try:
        ref = from_json(text).get("ref")
    except (ValueError, AttributeError):
        return None
    return ref if isinstance(ref, str) else None


def _check_count(count: int, operations_max: int, what: str = "batch") -> None:
    if count > operations_max:
        detail = f"A {what} may have {operations_max} operations, this has more"
        raise TooLarge.beyond(f"{what}_operations_max", operations_max, detail)


# Repeated keys: pydantic takes the last of them, silently


def keys_of(model: BaseModel) -> int:
    """How many keys the JSON object of ``model`` had, where no value of it is an object."""
    count = len(model.model_fields_set)
    properties = getattr(model, "properties", None)
    return count + len(properties) if properties else count


def refuse_repeated_keys(body: bytes) -> None:
    """Raise InvalidRequest where an object in ``body``, which is valid JSON, repeats a key.

    It costs a second parse with a call for every object, so callers first compare the number of
    colons with the number of keys that they saw: equal numbers leave no room for a repeated key.
    """
    json.loads(body, object_pairs_hook=_once_each)


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise invalid("body", f"the key {_first_repeated(pairs)!r} stands twice in one object")
    return document


def _first_repeated(pairs: list[tuple[str, Any]]) -> str:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            break
        seen.add(name)
    return name


# References


def _items_of(line: Line) -> int:
    """How many items the lists in the properties of an operation have."""
    properties: dict[str, Any] = getattr(line, "properties", None) or {}
    return sum(len(value) for value in properties.values() if type(value) is list)


class Batch:
    """The operations of a batch that can be tried, and the place of each result."""

    def __init__(self, entity_bytes_max: int) -> None:
        self._entity_bytes_max = entity_bytes_max
        self.operations: list[CoreBatchOperation] = []
        self._results: list[KotobaError | None] = []
        self._known: set[str] = set()
        self._failed: set[str] = set()

    async def add_all(self, lines: Sequence[Line]) -> None:
        work = 0
        for line in lines:
            self._add(line)
            work += 1 + _items_of(line) // ITEMS_PER_OPERATION
            if work >= OPERATIONS_PER_TURN:
                work = 0
                await asyncio.sleep(0)

    def results(
        self, tried: Sequence[OperationResult | KotobaError]
    ) -> list[OperationResult | KotobaError]:
        """All results in the order of the request; ``tried`` are those of ``operations``."""
        assert len(tried) == len(self.operations)
        rest = iter(tried)
        return [next(rest) if own is None else own for own in self._results]

    def _add(self, line: Line) -> None:
        if isinstance(line, Malformed):
            self._fail(line.error, line.ref)
            return
        try:
            operation = self._resolve(line)
        except KotobaError as error:
            self._fail(error, line.ref)
            return
        self.operations.append(operation)
        self._results.append(None)
        if line.ref is not None:
            self._known.add(line.ref)

    def _fail(self, error: KotobaError, ref: str | None) -> None:
        self._results.append(error)
        if ref is not None and ref not in self._known:
            self._failed.add(ref)

    def _resolve(self, line: BatchOperation) -> CoreBatchOperation:
        line.refuse_unknown()
        ref = line.ref
        if ref is not None and (ref in self._known or ref in self._failed):
            raise invalid("ref", f"{ref!r} is the ref of an earlier operation")
        refs: dict[str, str] = {}

        def parse(text: str, where: str) -> Digest:
            if not text.startswith("$"):
                return parse_cid(text, where)
            refs[where] = self._reference(text[1:], where)
            return b""

        return CoreBatchOperation(line.to_core(self._entity_bytes_max, parse), ref, refs)

    def _reference(self, name: str, where: str) -> str:
        if name in self._failed:
            raise DependencyFailed(f"The operation that ${name} names failed", ref=name)
        if name not in self._known:
            raise invalid(where, f"${name} names no earlier operation")
        return name
