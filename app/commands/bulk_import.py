"""``kotoba import``: what is asked for, and what is said about it in the end.

Exit codes: 0 all rows are in; 1 it could not go on, the same command continues; 2 asked for
wrongly; 3 done, but some rows failed; 130 interrupted, the same command continues.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson
from rich.console import Console
from rich.table import Table

from app.bulk.api import Api, GaveUp
from app.bulk.columns import BadColumn, parse_column
from app.bulk.ledger import Ledger, LedgerFailed
from app.bulk.loader import FileReport, Loader
from app.bulk.progress import duration_text, metered
from app.bulk.sources import BadSource, Format, Kind, Source, guess_format
from app.commands import CommandFailed

__all__ = ["ImportOptions", "import_files"]

_ROWS_FAILED: Final = 3
_INTERRUPTED: Final = 130


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """What the command line says; ``nodes`` and ``edges`` are ``[LABEL[:LABEL]=]FILE``."""

    nodes: Sequence[str]
    edges: Sequence[str]
    columns: Sequence[str] = ()
    node_header: str | None = None
    edge_header: str | None = None
    format: Format | None = None
    delimiter: str | None = None
    list_delimiter: str = ";"
    state: Path | None = None
    again: bool = False
    chunk_rows: int = 1_000
    connections: int = 6
    errors_max: int | None = None
    errors_file: Path | None = None
    patience_s: float = 300.0
    as_json: bool = False


@dataclass(slots=True)
class _Outcome:
    reports: list[FileReport]
    seconds: float
    retried: int
    errors: int
    errors_path: Path | None = field(default=None)


def import_files(url: str, options: ImportOptions) -> int:
    """Import; the exit code."""
    sources = _sources(options)
    state = options.state or _beside(sources[0].path, ".kotoba-state")
    errors_path = options.errors_file or _beside(state, ".errors.ndjson")
    if options.again:
        for path in (state, _beside(state, "-wal"), _beside(state, "-shm")):
            path.unlink(missing_ok=True)
    try:
        ledger = Ledger(state)
        try:
            outcome = asyncio.run(_load(url, options, sources, ledger))
        finally:
            errors = _write_errors(ledger, errors_path)
            ledger.close()
    except KeyboardInterrupt:
        raise CommandFailed(
            "interrupted; the same command goes on from here", exit_code=_INTERRUPTED
        ) from None
    except GaveUp as error:
        raise CommandFailed(f"{error}; the same command goes on from here") from None
    except (LedgerFailed, BadSource) as error:
        raise CommandFailed(str(error), exit_code=2) from None
    outcome.errors, outcome.errors_path = errors, errors_path if errors else None
    _tell(outcome, as_json=options.as_json)
    return _ROWS_FAILED if errors else 0


async def _load(
    url: str, options: ImportOptions, sources: Sequence[Source], ledger: Ledger
) -> _Outcome:
    began = time.monotonic()
    with metered(quiet=options.as_json) as meter:
        async with Api(
            url,
            connections=options.connections,
            patience_s=options.patience_s,
            waiting=meter.waiting,
        ) as api:
            loader = Loader(
                api,
                ledger,
                meter,
                connections=options.connections,
                chunk_rows=options.chunk_rows,
                errors_max=options.errors_max,
            )
            reports = await loader.load(sources)
            return _Outcome(reports, time.monotonic() - began, api.retried, 0)


def _write_errors(ledger: Ledger, path: Path) -> int:
    """All rows that failed so far, one JSON object a line; how many. No file where there are
    none."""
    count = ledger.error_count()
    if not count:
        path.unlink(missing_ok=True)
        return 0
    with path.open("wb") as stream:
        for name, error in ledger.errors():
            row = {"file": name, "line": error.line, "code": error.code, "detail": error.detail}
            stream.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
    return count


# What is asked for


def _sources(options: ImportOptions) -> list[Source]:
    columns = dict(_column(text) for text in options.columns)
    sources = [_source("nodes", text, options, columns) for text in options.nodes]
    sources += [_source("edges", text, options, columns) for text in options.edges]
    if not sources:
        raise CommandFailed("nothing to import: say --nodes FILE or --edges FILE", exit_code=2)
    return sources


def _column(text: str) -> tuple[str, str]:
    name, equals, column = text.rpartition("=")
    try:
        if not equals:
            raise BadColumn(f"{text!r} is not like COLUMN=NAME:TYPE")
        parse_column(column)
    except BadColumn as error:
        raise CommandFailed(f"--map: {error}", exit_code=2) from None
    return name, column


def _source(kind: Kind, text: str, options: ImportOptions, columns: Mapping[str, str]) -> Source:
    labels, path = _labels_and_path(kind, text)
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise CommandFailed(f"cannot read {path}: {why}", exit_code=2) from None
    known = guess_format(path)
    if options.format is None and known is None:
        raise CommandFailed(f"{path}: say --format csv or --format ndjson", exit_code=2)
    guessed, delimiter = known or ("csv", ",")
    return Source(
        path=path,
        kind=kind,
        format=options.format or guessed,
        labels=labels,
        header=options.node_header if kind == "nodes" else options.edge_header,
        columns=columns,
        delimiter=_character(options.delimiter) or delimiter or ",",
        list_delimiter=options.list_delimiter,
    )


def _labels_and_path(kind: Kind, text: str) -> tuple[tuple[str, ...], Path]:
    """``Person:Author=people.csv``; a file whose whole name that is wins."""
    before, equals, after = text.partition("=")
    if not equals or Path(text).exists():
        return (), Path(text)
    labels = tuple(label for label in before.split(":") if label)
    if kind == "edges" and len(labels) > 1:
        raise CommandFailed(f"--edges {text}: an edge has one label", exit_code=2)
    return labels, Path(after)


def _character(text: str | None) -> str | None:
    if text is None:
        return None
    one = {"tab": "\t", "\\t": "\t"}.get(text.lower(), text)
    if len(one) != 1:
        raise CommandFailed("--delimiter: one character, or tab", exit_code=2)
    return one


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


# What is said in the end


def _tell(outcome: _Outcome, *, as_json: bool) -> None:
    if as_json:
        print(orjson.dumps(_document(outcome), option=orjson.OPT_INDENT_2).decode())
        return
    console = Console(highlight=False)
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("file")
    for name in ("rows", "written", "failed"):
        table.add_column(name, justify="right")
    table.add_column("")
    for report in outcome.reports:
        table.add_row(
            report.source.path.name,
            f"{report.rows:,}",
            f"{report.written:,}",
            f"{report.failed:,}",
            "was done before" if report.again else "",
        )
    console.print(table)
    rows = sum(report.rows for report in outcome.reports if not report.again)
    if rows:
        rate = rows / max(outcome.seconds, 1e-3)
        console.print(f"\n{duration_text(outcome.seconds)}, {rate:,.0f} rows/s")
    else:
        console.print("\nnothing was left to do; --again imports the files once more")
    if outcome.errors_path is not None:
        console.print(f"{outcome.errors:,} rows failed, see {outcome.errors_path}", style="yellow")


def _document(outcome: _Outcome) -> dict[str, Any]:
    return {
        "seconds": round(outcome.seconds, 3),
        "requests_repeated": outcome.retried,
        "errors": outcome.errors,
        "errors_file": None if outcome.errors_path is None else str(outcome.errors_path),
        "files": [
            {
                "file": str(report.source.path),
                "kind": report.source.kind,
                "rows": report.rows,
                "written": report.written,
                "failed": report.failed,
                "was_done_before": report.again,
            }
            for report in outcome.reports
        ],
    }
