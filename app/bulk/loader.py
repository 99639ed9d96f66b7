"""Loading files into a cluster: chunk by chunk, several at a time, each at most once.

A *chunk* is a run of consecutive rows of one file, cut where the file says so and not how fast the
cluster is, so that every attempt cuts the same ones. It is sent as one batch, or as several where
its JSON is large, each under an Idempotency-Key made of the import, the file and its first line;
nodes and edges get their nonces from that key. So a chunk may be sent any number of times, also
long after the cluster has forgotten the key, and makes its entities once.

Nodes come first, for edges name them. Memory: as many chunks as there are connections.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

import orjson

from app.bulk.api import TRANSIENT, Answer, Api
from app.bulk.ledger import Ledger, RowError
from app.bulk.sources import BadRow, EdgeRow, Key, NodeRow, Row, Source
from app.commands import CommandFailed
from cluster_core.errors import InvalidRequest
from cluster_core.graph.cid import cid_text, parse_cid

__all__ = ["CHUNK_ROWS", "CHUNK_ROWS_MAX", "FileReport", "Loader", "Watcher"]

CHUNK_ROWS: Final = 1_000
CHUNK_ROWS_MAX: Final = 10_000
"""What a node takes in one batch, unless configured otherwise."""
_CHUNK_BYTES: Final = 4 << 20
"""Bytes of input after which a chunk ends."""
_BATCH_BYTES: Final = 8 << 20
"""Bytes of JSON in one batch: half of what a node takes in a request, and more than any operation
may have. The JSON of a row can be many times as long as the row, since it repeats the names of all
columns. The cut decides which Idempotency-Key an operation has, so it must not depend on the node.
"""
_TIMEOUT_MS: Final = 30_000


class Watcher(Protocol):
    """Who wants to know how far it is."""

    def began(self, source: Source, size: int) -> None: ...

    def advanced(self, source: Source, *, position: int, rows: int, skipped: bool) -> None:
        """The chunk that ends at ``position`` is done; ``skipped``: it was done before."""
        ...


@dataclass(frozen=True, slots=True)
class FileReport:
    """What became of one file, earlier runs included."""

    source: Source
    rows: int
    written: int
    again: bool
    """Whether nothing was left to do."""

    @property
    def failed(self) -> int:
        return self.rows - self.written


@dataclass(slots=True)
class _Chunk:
    number: int
    rows: list[Row]
    position: int

    @property
    def first_line(self) -> int:
        return self.rows[0].line


@dataclass(slots=True)
class _Work:
    """What of a chunk is sent, and what is known to fail without asking anybody."""

    operations: list[bytes]
    """The JSON of each."""
    rows: list[NodeRow | EdgeRow]
    errors: list[RowError]


class _Batch(NamedTuple):
    first_line: int
    operations: list[bytes]


class Loader:
    """See the module. ``errors_max``: after so many rows that failed in this run, it is given up;
    those of earlier runs do not count, so that going on after too many is possible."""

    def __init__(
        self,
        api: Api,
        ledger: Ledger,
        watcher: Watcher,
        *,
        connections: int,
        chunk_rows: int = CHUNK_ROWS,
        errors_max: int | None = None,
    ) -> None:
        self._api = api
        self._ledger = ledger
        self._watcher = watcher
        self._connections = connections
        self._chunk_rows = chunk_rows
        self._errors_max = errors_max
        self._errors = 0

    async def load(self, sources: Sequence[Source]) -> list[FileReport]:
        """Load nodes, then edges, in the order of ``sources``."""
        self._ledger.bind(self._api.cluster_id)
        ordered = sorted(sources, key=lambda source: source.kind != "nodes")
        self._ledger.check_order([source.identity() for source in ordered])
        return [await self._load_file(source) for source in ordered]

    async def _load_file(self, source: Source) -> FileReport:
        identity = source.identity()
        progress = self._ledger.open_file(identity, str(source.path), self._chunk_rows)
        self._watcher.began(source, source.size)
        if not progress.done:
            await self._load_chunks(source, identity, progress.file, progress.chunk_rows)
            self._ledger.finish_file(progress.file)
        rows, written = self._ledger.counts(progress.file)
        if progress.done:
            self._watcher.advanced(source, position=source.size, rows=rows, skipped=True)
        return FileReport(source, rows, written, again=progress.done)

    async def _load_chunks(
        self, source: Source, identity: bytes, file: int, chunk_rows: int
    ) -> None:
        finished = self._ledger.finished_chunks(file)
        free = asyncio.Semaphore(self._connections)
        key = f"{self._ledger.import_id}:{identity.hex()[:16]}"
        try:
            async with asyncio.TaskGroup() as sending:
                for chunk in _chunks(source, chunk_rows):
                    if chunk.number in finished:
                        self._report(source, chunk, skipped=True)
                        continue
                    await free.acquire()
                    work = self._work(source, file, chunk)
                    sending.create_task(self._send(source, file, chunk, work, key, free))
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None

    def _report(self, source: Source, chunk: _Chunk, *, skipped: bool) -> None:
        self._watcher.advanced(
            source, position=chunk.position, rows=len(chunk.rows), skipped=skipped
        )

    async def _send(
        self,
        source: Source,
        file: int,
        chunk: _Chunk,
        work: _Work,
        key: str,
        free: asyncio.Semaphore,
    ) -> None:
        try:
            results = await self._results(work, key, chunk.first_line)
            nodes: list[tuple[Key, bytes]] = []
            errors = work.errors
            for row, result in zip(work.rows, results, strict=True):
                problem = result.get("error")
                if problem is not None:
                    errors.append(RowError(row.line, problem["code"], problem["detail"]))
                elif isinstance(row, NodeRow) and row.key is not None:
                    nodes.append((row.key, parse_cid(result["cid"])))
            written = len(chunk.rows) - len(errors)
            self._ledger.finish_chunk(file, chunk.number, len(chunk.rows), written, nodes, errors)
            self._count_errors(errors)
            self._report(source, chunk, skipped=False)
        finally:
            free.release()

    async def _results(self, work: _Work, key: str, first_line: int) -> list[dict[str, Any]]:
        results: list[dict[str, Any]] = []
        for batch in _batches(work, first_line):
            answer = await self._api.request(
                "POST",
                f"/v1/operations/batch?timeout_ms={_TIMEOUT_MS}",
                body=b'{"operations":[' + b",".join(batch.operations) + b"]}",
                headers={"Idempotency-Key": f"{key}:{batch.first_line}"},
                unsettled=_unsettled,
            )
            results += answer.json()["results"]
        return results

    def _count_errors(self, errors: Sequence[RowError]) -> None:
        self._errors += len(errors)
        if errors and self._errors_max is not None and self._errors > self._errors_max:
            last = errors[-1]
            raise CommandFailed(
                f"more than {self._errors_max} rows failed (line {last.line}: {last.detail}); the "
                "same command goes on from here, --errors-max allows more"
            )

    # From rows to operations

    def _work(self, source: Source, file: int, chunk: _Chunk) -> _Work:
        """Depends on the rows and on the nodes of files before this one alone, so that every
        attempt sends the same operations in the same places."""
        work = _Work([], [], [])
        for row in chunk.rows:
            made = self._operation(file, row)
            written = made if isinstance(made, RowError) else _json(row.line, made)
            if isinstance(written, RowError):
                work.errors.append(written)
            else:
                assert not isinstance(row, BadRow)
                work.operations.append(written)
                work.rows.append(row)
        return work

    def _operation(self, file: int, row: Row) -> dict[str, Any] | RowError:
        match row:
            case BadRow(line, why):
                return RowError(line, "unreadable", why)
            case NodeRow(line, key, labels, properties):
                if key is not None and not self._ledger.claim(key, file, line):
                    return RowError(line, "repeated_key", f"a node before is {_called(key)} too")
                return {"op": "create_node", "labels": labels, "properties": properties}
            case EdgeRow(line, source, target, label, properties):
                ends = []
                for key in (source, target):
                    cid = self._cid(key)
                    if cid is None:
                        return RowError(line, "unknown_key", f"no node is {_called(key)}")
                    ends.append(cid)
                return {
                    "op": "create_edge",
                    "label": label,
                    "source_cid": ends[0],
                    "target_cid": ends[1],
                    "properties": properties,
                }

    def _cid(self, key: Key) -> str | None:
        """The node that a file calls ``key``; a CID that no file has may be one in the database."""
        digest = self._ledger.digest(key)
        if digest is not None:
            return cid_text(digest)
        try:
            parse_cid(key[1])
        except InvalidRequest:
            return None
        return key[1]


def _json(line: int, operation: dict[str, Any]) -> bytes | RowError:
    try:
        written = orjson.dumps(operation)
    except orjson.JSONEncodeError as error:
        return RowError(line, "unreadable", f"cannot be sent: {error}")
    if len(written) > _BATCH_BYTES:
        return RowError(line, "too_large", f"is longer than {_BATCH_BYTES} bytes, as JSON")
    return written


def _batches(work: _Work, first_line: int) -> Iterator[_Batch]:
    """The operations of a chunk that begins at ``first_line``, in runs of bounded length."""
    batch, size = _Batch(first_line, []), 0
    for row, operation in zip(work.rows, work.operations, strict=True):
        if batch.operations and size + len(operation) > _BATCH_BYTES:
            yield batch
            batch, size = _Batch(row.line, []), 0
        batch.operations.append(operation)
        size += len(operation)
    if batch.operations:
        yield batch


def _called(key: Key) -> str:
    space, name = key
    return f"called {name[:80]!r}" + (f" in {space}" if space else "")


def _unsettled(answer: Answer) -> str | None:
    """Why a batch has to be sent again: some operation in it may succeed yet."""
    document = answer.json()
    if not document["failed"]:
        return None
    for result in document["results"]:
        problem = result.get("error")
        if problem is not None and problem["code"] in TRANSIENT:
            return f"{problem['code']}: {problem['detail']}"
    return None


def _chunks(source: Source, chunk_rows: int) -> Iterator[_Chunk]:
    reading = source.rows()
    try:
        rows: list[Row] = []
        number, began = 0, 0
        for row in reading:
            rows.append(row)
            if len(rows) == chunk_rows or reading.text_bytes - began >= _CHUNK_BYTES:
                yield _Chunk(number, rows, reading.position)
                number, rows, began = number + 1, [], reading.text_bytes
        if rows:
            yield _Chunk(number, rows, reading.position)
    finally:
        reading.close()
