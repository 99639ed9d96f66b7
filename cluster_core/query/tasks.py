"""Tasks: the work of a query that is done where the data is, and its results.

They travel between cluster nodes as msgpack arrays. Lists of the same length belong together place
by place (a *column* each): that is the form that msgpack reads and writes fastest. Entities travel
as the records that are stored, so a node that only passes them on never decodes them.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from cluster_core.graph.values import Value, encode_message, message_decoder
from cluster_core.query.host import ReadPoint
from cluster_core.query.plan import GROUP_BY_LABEL, OrderBy
from cluster_core.types import Digest, Timestamp

__all__ = [
    "Access",
    "Adjacency",
    "Again",
    "Budget",
    "CountResult",
    "CountTask",
    "ExpandResult",
    "ExpandTask",
    "HistoryResult",
    "HistoryTask",
    "LoadResult",
    "LoadTask",
    "LocateResult",
    "LocateTask",
    "Located",
    "Result",
    "ScanResult",
    "ScanTask",
    "Stored",
    "Task",
    "TaskRequest",
    "as_weight",
    "decode_request",
    "decode_result",
    "encode_request",
    "encode_result",
]

_Position = bytes


def as_weight(value: Value) -> Value:
    """The value of a weight as it travels: of one that is no number only that it is none (False),
    since it may be as large as an entity."""
    return value if value is None or isinstance(value, int | float) else False


class Budget(msgspec.Struct, array_like=True, frozen=True):
    """What one task may spend. What ends it early says so in its result."""

    scanned: int
    """Stored pairs to look at."""
    bytes: int
    """Bytes of records to return."""


class Stored(msgspec.Struct, array_like=True, frozen=True):
    """One version as it is stored; an empty record is a deletion."""

    digest: Digest
    timestamp: Timestamp
    record: bytes


class Access(msgspec.Struct, array_like=True, frozen=True):
    """How a scan finds entities. A partition where the property index is not what the planner took
    it for reads the label index instead, with the same answer."""

    label: str = ""
    """Through the label index, or a property index, of this label; empty: all there are."""
    index: int = 0
    """The property index; 0: none."""
    property_name: str = ""
    ranges: tuple[tuple[bytes, bytes], ...] = ()
    """Of value keys, disjoint and ascending, that hold all values wanted."""
    ordered: bool = False
    """The index has the order that is asked for."""
    exact: bool = False
    """What the index finds is what is asked for: no record needs to be looked at."""
    every_label: bool = False
    """Through the label index of all labels: of edges, which have one each."""

    @property
    def name(self) -> str | None:
        """What ``statistics.index`` says."""
        if self.index:
            return f"{self.label}.{self.property_name}"
        return GROUP_BY_LABEL if self.every_label else self.label or None

    def counts(self, group_by: str | None) -> bool:
        """Whether the entries alone say how many there are in each group."""
        if group_by is None or not self.exact:
            return self.exact
        if group_by == GROUP_BY_LABEL:
            return self.every_label
        return bool(self.index) and group_by == self.property_name


# Tasks


class LoadTask(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """Entities by their first CIDs, each in the partition that is known to hold it.

    ``exact``: versions by their CIDs, each in the partition of its entity.

    ``want`` records: the records that satisfy ``where``. marks: only whether they do. weights: the
    property ``weight``, as :func:`as_weight` has it.
    """

    partitions: list[int]
    digests: list[Digest]
    kind: int | None = None
    """``VERTEX`` or ``EDGE`` of ``graph/records.py``: an entity of another kind is none."""
    where: bytes = b""
    want: Literal["records", "marks", "weights"] = "records"
    weight: str | None = None
    exact: bool = False


class LocateTask(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """Whether one of these partitions knows an entity or a version by any of its CIDs."""

    partitions: list[int]
    digests: list[Digest]
    exact: bool = False
    """The first CID, too, means the first version."""
    thorough: bool = False
    """Wait for every undecided transaction: the CID of a version that one of them wrote is on
    nobody's list of locks."""


class ScanTask(msgspec.Struct, array_like=True, frozen=True, tag=3):
    """The first ``limit`` entities after ``after`` that fit, in the order of the query.

    Without ``order_by`` a position is ``partition (2) · digest``, with it ``order key · digest``.
    """

    partitions: list[int]
    kind: int
    labels: list[str]
    where: bytes
    order_by: tuple[OrderBy, ...]
    limit: int
    after: _Position = b""
    access: Access = Access()


class CountTask(msgspec.Struct, array_like=True, frozen=True, tag=4):
    """How many entities fit, in each group."""

    partitions: list[int]
    kind: int
    labels: list[str]
    where: bytes
    group_by: str | None
    groups_max: int
    access: Access = Access()


class ExpandTask(msgspec.Struct, array_like=True, frozen=True, tag=5):
    """The edges of vertices, each vertex in its own partition: IN before OUT, by label and digest.

    ``where`` and ``weight`` are read from the edge records, which live with the source: here they
    work on OUT alone, and whoever asks does the rest for IN.
    """

    partitions: list[int]
    vertices: list[Digest]
    inward: bool
    outward: bool
    labels: list[str] | None
    limit: int
    """Entries to return; the result says where it stopped."""
    after: _Position = b""
    """Of the first vertex: ``table · label · 0 · edge``, the last entry that is known already."""
    where: bytes = b""
    weight: str | None = None


class HistoryTask(msgspec.Struct, array_like=True, frozen=True, tag=6):
    """The versions of one entity, newest first."""

    partition: int
    digest: Digest
    limit: int


Task = LoadTask | LocateTask | ScanTask | CountTask | ExpandTask | HistoryTask


class TaskRequest(msgspec.Struct, array_like=True, frozen=True):
    task: Task
    point: ReadPoint
    budget: Budget
    timeout_ms: int
    """What is left of the query's time."""


# Results


class LoadResult(msgspec.Struct, array_like=True, tag=1):
    """The column that was wanted. A column shorter than ``digests`` was cut by the bytes' budget.

    In ``records`` None is an entity that this partition has never known, or that does not fit.
    """

    scanned: int
    records: list[Stored | None] = []
    marks: list[bool] = []
    weights: list[Value] = []


class Located(msgspec.Struct, array_like=True, frozen=True):
    asked: Digest
    partition: int
    version: Stored


class LocateResult(msgspec.Struct, array_like=True, tag=2):
    scanned: int
    found: list[Located]


class ScanResult(msgspec.Struct, array_like=True, tag=3):
    scanned: int
    rows: list[Stored]
    more: bool = False
    """There are rows that fit after the last of ``rows``."""
    bound: str | None = None
    """The budget that ended the scan: scanned or bytes."""
    stopped: _Position = b""
    """Without ``order_by``, where the scan was when its budget ended; all before it is told."""
    refused: bool = False
    """The property index did not serve; the label index did."""


class CountResult(msgspec.Struct, array_like=True, tag=4):
    scanned: int
    groups: list[tuple[Value, int]]
    bound: str | None = None
    """scanned; or with no groups at all: groups, when there are more than ``groups_max``, and
    bytes, when they are larger than the budget."""
    refused: bool = False
    """As in :class:`ScanResult`."""


class Adjacency(msgspec.Struct, array_like=True):
    """Entries of one table, those of the first vertex first."""

    counts: list[int]
    """Of each vertex."""
    fars: list[Digest]
    edges: list[Digest]
    weights: list[Value]


class ExpandResult(msgspec.Struct, array_like=True, tag=5):
    scanned: int
    ins: Adjacency
    outs: Adjacency
    next: int | None = None
    """The vertex at which the next task goes on, ``after`` this position."""
    after: _Position = b""
    bound: str | None = None


class HistoryResult(msgspec.Struct, array_like=True, tag=6):
    scanned: int
    versions: list[Stored]
    bound: str | None = None


class Again(msgspec.Struct, array_like=True, tag=7):
    """A :class:`~cluster_core.query.host.ReadAgain` on its way to the node that asked."""

    timestamp: Timestamp


Result = LoadResult | LocateResult | ScanResult | CountResult | ExpandResult | HistoryResult

encode_request: Final = encode_message
decode_request: Final = message_decoder(TaskRequest)
encode_result: Final = encode_message
decode_result: Final = message_decoder(Result | Again)
