"""Files as rows: CSV and NDJSON, nodes and edges, each row with the line where it begins.

Memory is bounded by the longest row. A row that cannot be read is a :class:`BadRow`; the rest of
the file goes on.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import orjson

from app.bulk.columns import BadColumn, BadValue, Column, Role, parse_column, value_of
from app.commands.json_input import BadJson, read_json

__all__ = [
    "ROW_BYTES_MAX",
    "BadRow",
    "BadSource",
    "EdgeRow",
    "Format",
    "Key",
    "Kind",
    "NodeRow",
    "Reading",
    "Row",
    "Source",
    "guess_format",
]

Kind = Literal["nodes", "edges"]
Format = Literal["csv", "ndjson"]

ROW_BYTES_MAX: Final = 8 << 20
"""Bytes of one row, at most: more than the JSON of the largest entity takes, save for one that is
nothing but control characters."""
_ENDS: Final = 1 << 20
"""So much of a file's beginning and end goes into its fingerprint."""
_SUFFIXES: Final[dict[str, tuple[Format, str]]] = {
    ".csv": ("csv", ","),
    ".tsv": ("csv", "\t"),
    ".ndjson": ("ndjson", ""),
    ".jsonl": ("ndjson", ""),
}

Key = tuple[str, str]
"""What a row calls a node: a space, and a name in it."""


class BadSource(Exception):
    """A file that cannot be read at all, or a header that makes no rows of it."""


class NodeRow(NamedTuple):
    line: int
    key: Key | None
    labels: list[str]
    properties: dict[str, Any]


class EdgeRow(NamedTuple):
    line: int
    source: Key
    target: Key
    label: str
    properties: dict[str, Any]


class BadRow(NamedTuple):
    line: int
    why: str


Row = NodeRow | EdgeRow | BadRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One file, and how it is to be read. ``labels`` go to every node, or name every edge that
    says none; ``columns`` overrule the header's."""

    path: Path
    kind: Kind
    format: Format
    labels: tuple[str, ...] = ()
    header: str | None = None
    """The header of a CSV file that has none."""
    columns: Mapping[str, str] = field(default_factory=dict)
    delimiter: str = ","
    list_delimiter: str = ";"

    @property
    def size(self) -> int:
        return self.path.stat().st_size

    def identity(self) -> bytes:
        """Tells this file with these options from any other: size, beginning, end, options."""
        hashing = sha256()
        with self.path.open("rb") as stream:
            size = self.size
            hashing.update(size.to_bytes(8, "big") + stream.read(_ENDS))
            if size > _ENDS:
                stream.seek(max(_ENDS, size - _ENDS))
                hashing.update(stream.read(_ENDS))
        options = (
            self.kind,
            self.format,
            list(self.labels),
            self.header,
            sorted(self.columns.items()),
            self.delimiter,
            self.list_delimiter,
        )
        hashing.update(orjson.dumps(options))
        return hashing.digest()

    def rows(self) -> Reading:
        """The rows from the beginning."""
        return Reading(self)


def guess_format(path: Path) -> tuple[Format, str] | None:
    """Format and delimiter by the name's suffix, ``.gz`` left aside."""
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    return _SUFFIXES.get(suffixes[-1]) if suffixes else None


class Reading:
    """An iterator over the rows of a source that knows how far it is."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._raw = source.path.open("rb")
        self._lines = _Lines(self._raw)
        self._rows = self._csv() if source.format == "csv" else self._ndjson()

    def __iter__(self) -> Iterator[Row]:
        return self._rows

    def close(self) -> None:
        self._raw.close()

    @property
    def position(self) -> int:
        """Bytes of the file (packed ones where it is packed) that were read, about."""
        return self._raw.tell()

    @property
    def text_bytes(self) -> int:
        """Bytes of text that were read."""
        return self._lines.bytes

    # CSV

    def _csv(self) -> Iterator[Row]:
        source = self._source
        csv.field_size_limit(ROW_BYTES_MAX)
        reader = csv.reader(self._lines, delimiter=source.delimiter, strict=True)
        build = _RowBuilder(source, _csv_columns(source, self._csv_header(reader)))
        while True:
            line = self._lines.number + 1
            try:
                fields = next(reader, None)
            except csv.Error as error:
                self._lines.was_broken()
                yield BadRow(line, f"no CSV: {error}")
                continue
            if fields is None:
                return
            if self._lines.was_broken():
                yield BadRow(line, _NO_UTF8)
            elif fields:
                yield build.row(line, fields)

    def _csv_header(self, reader: Iterator[list[str]]) -> list[str]:
        if self._source.header is not None:
            return next(csv.reader([self._source.header], delimiter=self._source.delimiter))
        try:
            return next(reader)
        except (StopIteration, csv.Error):
            raise BadSource(f"{self._source.path} has no header") from None

    # NDJSON

    def _ndjson(self) -> Iterator[Row]:
        build = _DocumentRows(self._source)
        for text in self._lines:
            line = self._lines.number
            if self._lines.was_broken():
                yield BadRow(line, _NO_UTF8)
            elif text.strip():
                try:
                    document = read_json(text)
                except BadJson as error:
                    yield BadRow(line, str(error))
                    continue
                yield build.row(line, document)


_NO_UTF8: Final = "not UTF-8"


class _Lines:
    """The lines of a file as text, unpacked where it is packed; counts them, and remembers when one
    was no UTF-8."""

    def __init__(self, raw: io.BufferedReader) -> None:
        self.number = 0
        self.bytes = 0
        self._broken = False
        is_packed = raw.peek(2)[:2] == b"\x1f\x8b"
        self._stream = gzip.GzipFile(fileobj=raw) if is_packed else raw

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        try:
            raw = self._stream.readline(ROW_BYTES_MAX + 1)
        except (OSError, EOFError) as error:
            raise BadSource(f"cannot read on after line {self.number}: {error}") from None
        if not raw:
            raise StopIteration
        if len(raw) > ROW_BYTES_MAX:
            raise BadSource(f"line {self.number + 1} is longer than {ROW_BYTES_MAX >> 20} MiB")
        self.number += 1
        self.bytes += len(raw)
        if self.number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        try:
            return str(raw, "utf-8")
        except UnicodeDecodeError:
            self._broken = True
            return str(raw, "utf-8", "replace")

    def was_broken(self) -> bool:
        """Whether a line since the last question was no UTF-8."""
        broken, self._broken = self._broken, False
        return broken


def _csv_columns(source: Source, header: Sequence[str]) -> list[Column]:
    columns = [_column(source, text) for text in header]
    # Text has no types of its own: without one said, it is a string.
    columns = [
        Column("property", one.name, "string")
        if one.role == "property" and one.kind is None
        else one
        for one in columns
    ]
    _check_columns(source, columns)
    return columns


def _column(source: Source, text: str) -> Column:
    """What ``--map`` says of a column, else what the header says."""
    mapped = source.columns.get(text.strip())
    if mapped is None:
        name, _, _ = text.strip().rpartition(":")
        mapped = source.columns.get(name) if name else None
    try:
        return parse_column(text if mapped is None else mapped)
    except BadColumn as error:
        raise BadSource(f"{source.path}: {error}") from None


_BELONGS: Final[dict[Kind, frozenset[Role]]] = {
    "nodes": frozenset({"property", "id", "label", "ignore"}),
    "edges": frozenset({"property", "start", "end", "type", "ignore"}),
}
_HEADER_OF: Final[dict[Role, str]] = {
    "id": ":ID",
    "label": ":LABEL",
    "start": ":START_ID",
    "end": ":END_ID",
    "type": ":TYPE",
}


def _check_columns(source: Source, columns: Sequence[Column]) -> None:
    roles = [column.role for column in columns]
    for role, name in _HEADER_OF.items():
        if role in roles and role not in _BELONGS[source.kind]:
            raise BadSource(f"{source.path}: {name} does not belong into a file of {source.kind}")
        if roles.count(role) > 1 and role != "label":
            raise BadSource(f"{source.path}: {name} stands more than once in the header")
    if source.kind == "edges":
        missing = [_HEADER_OF[role] for role in ("start", "end") if role not in roles]
        if "type" not in roles and not source.labels:
            missing.append(":TYPE (or --edges LABEL=FILE)")
        if missing:
            raise BadSource(f"{source.path}: the header has no {', no '.join(missing)}")
    names = [column.name for column in columns if column.name is not None]
    for name in names:
        if names.count(name) > 1:
            raise BadSource(f"{source.path}: two columns are the property {name!r}")


class _RowBuilder:
    """Makes rows of fields that stand in the order of ``columns``."""

    def __init__(self, source: Source, columns: Sequence[Column]) -> None:
        self._source = source
        self._columns = columns

    def row(self, line: int, fields: Sequence[Any]) -> Row:
        columns = self._columns
        if len(fields) != len(columns):
            return BadRow(line, f"has {len(fields)} fields, the header has {len(columns)}")
        return _assemble(self._source, line, zip(columns, fields, strict=True))


class _DocumentRows:
    """Makes rows of JSON objects: of what ``kotoba export`` wrote, or of flat ones, whose keys are
    columns."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._known: dict[str, Column] = {}

    def row(self, line: int, document: Any) -> Row:
        if not isinstance(document, dict):
            return BadRow(line, "not an object")
        if isinstance(document.get("properties"), dict) and "/" not in document["properties"]:
            return self._entity(line, document)
        try:
            fields = [(self._of(name), value) for name, value in document.items()]
        except BadSource as error:
            return BadRow(line, str(error))
        return _assemble(self._source, line, fields)

    def _of(self, name: str) -> Column:
        column = self._known.get(name)
        if column is None:
            column = _column(self._source, name)
            if len(self._known) < _KNOWN_MAX:
                self._known[name] = column
        return column

    def _entity(self, line: int, document: dict[str, Any]) -> Row:
        properties = document["properties"]
        if self._source.kind == "nodes":
            labels = document.get("labels", [])
            if not isinstance(labels, list):
                return BadRow(line, "labels are no list")
            cid = document.get("cid")
            key = None if cid is None else ("", str(cid))
            return NodeRow(line, key, [*self._source.labels, *labels], properties)
        source, target = document.get("source_cid"), document.get("target_cid")
        label = document.get("label") or next(iter(self._source.labels), None)
        if not isinstance(source, str) or not isinstance(target, str) or not label:
            return BadRow(line, "an edge needs label, source_cid and target_cid")
        return EdgeRow(line, ("", source), ("", target), label, properties)


_KNOWN_MAX: Final = 10_000
"""Names of NDJSON keys that are remembered with what they mean."""


def _assemble(source: Source, line: int, fields: Any) -> Row:
    """The row that columns with their fields make."""
    labels: list[str] = list(source.labels) if source.kind == "nodes" else []
    properties: dict[str, Any] = {}
    names: dict[Role, Key] = {}
    for column, field_ in fields:
        role = column.role
        try:
            if column.name is not None and role != "ignore":
                value = value_of(column, field_, source.list_delimiter)
                if value is not None:
                    if column.name in properties:
                        raise BadValue("two columns are this property")
                    properties[column.name] = value
            if role in ("property", "ignore") or field_ in (None, "", []):
                continue
            if role == "label":
                labels += _labels(field_, source.list_delimiter)
            else:
                if role in names:
                    raise BadValue(f"another column is {_HEADER_OF[role]} too")
                names[role] = (column.space, _name(field_))
        except BadValue as error:
            return BadRow(line, f"{column.name or _HEADER_OF[role]}: {error}")
    if source.kind == "nodes":
        return NodeRow(line, names.get("id"), labels, properties)
    for role in _ENDS_OF_EDGES:
        if role not in names:
            return BadRow(line, f"{_HEADER_OF[role]} is empty")
    label = names["type"][1] if "type" in names else next(iter(source.labels), "")
    if not label:
        return BadRow(line, ":TYPE is empty")
    return EdgeRow(line, names["start"], names["end"], label, properties)


_ENDS_OF_EDGES: Final[tuple[Role, ...]] = ("start", "end")


def _labels(field_: Any, list_delimiter: str) -> list[str]:
    labels = field_.split(list_delimiter) if isinstance(field_, str) else field_
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise BadValue("neither a string nor a list of strings")
    return labels


def _name(field_: Any) -> str:
    """What a node or the label of an edge is called; the names of nodes are often numbers."""
    if isinstance(field_, bool) or not isinstance(field_, str | int | float):
        raise BadValue("neither a string nor a number")
    return str(field_)
