"""Gather: split work by partition, send it to where the partitions are served, put it together.

Local partitions are read directly; each other cluster node gets one request, all at the same time.
A query keeps to the node that it first chose for a partition.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final, TypeVar, cast

import msgspec

from cluster_core.config import LimitConfig
from cluster_core.errors import InternalError
from cluster_core.graph.entities import Edge, Entity, Vertex
from cluster_core.graph.records import EDGE, decode_record
from cluster_core.graph.values import Value
from cluster_core.query.host import QueryHost, ReadAgain, ReadPoint
from cluster_core.query.local import run_task
from cluster_core.query.plan import Direction
from cluster_core.query.tasks import (
    Adjacency,
    Again,
    Budget,
    ExpandResult,
    ExpandTask,
    LoadResult,
    LoadTask,
    Located,
    LocateResult,
    LocateTask,
    Result,
    Stored,
    Task,
    TaskRequest,
    decode_result,
    encode_request,
)
from cluster_core.query.work import PAUSE_AFTER
from cluster_core.types import Digest, NodeId, partition_of

__all__ = [
    "ENTRIES_MAX",
    "Entries",
    "Expansion",
    "Gather",
    "Hop",
    "as_edge",
    "as_vertex",
    "decode_rows",
    "flip",
    "in_chunks",
    "together",
]

CHUNK: Final = 2_048
"""Entities in one request: its columns stay below 100 kB, and no step takes long."""
LOCATED_MAX: Final = 32
"""Entities that are looked for everywhere at a time: of 1 MiB each, they are a whole answer."""
ENTRIES_MAX: Final = 8_192
"""Adjacency entries in one answer, half a megabyte: a hub is read in pieces."""
PIECE_GROWTH: Final = 4
"""A piece that did not bring enough is followed by one so many times as large."""

T = TypeVar("T")
R = TypeVar("R")


class Hop(msgspec.Struct, frozen=True, kw_only=True):
    """How to follow edges."""

    direction: Direction
    labels: tuple[str, ...] | None = None
    where: bytes = b""
    """Of ``encode_where``: a condition on the edge."""
    weight: str | None = None


class Entries(msgspec.Struct, frozen=True):
    """Part of a hop's result: entries of one table, those of ``vertices[0]`` first."""

    vertices: Sequence[Digest]
    outward: bool
    """The vertices are the sources; else the targets."""
    entries: Adjacency


def flip(direction: Direction) -> Direction:
    """The direction in which the same edges are followed from their other ends."""
    return {"out": "in", "in": "out"}.get(direction, "both")  # type: ignore[return-value]


def in_chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """``items`` in lists of ``size``; the last may be shorter."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


class Gather:
    """The reads of one query, and what they have cost."""

    def __init__(
        self, host: QueryHost, point: ReadPoint, limits: LimitConfig, deadline: float
    ) -> None:
        self.host = host
        self.point = point
        self.limits = limits
        self.scanned = 0
        self.bound: str | None = None
        """The first budget that cut something: scanned, or visited where the caller says so."""
        self.index: str | None = None
        """The index that was used, where the caller says so."""
        self._deadline = deadline
        self._serving: dict[int, NodeId] = {}

    @property
    def partitions(self) -> int:
        """How many partitions were read."""
        return len(self._serving)

    @property
    def cluster_nodes(self) -> int:
        return len(set(self._serving.values()))

    @property
    def exhausted(self) -> bool:
        return self.scanned >= self.limits.query_scanned_max

    def home(self, digest: Digest) -> int:
        """The partition of the vertex ``digest``."""
        return partition_of(digest, self.host.partition_count)

    def by_node(self, partitions: Iterable[int]) -> dict[NodeId, list[int]]:
        """Which cluster node serves which of ``partitions``."""
        nodes: dict[NodeId, list[int]] = {}
        for partition in partitions:
            nodes.setdefault(self.node_of(partition), []).append(partition)
        return nodes

    def every_partition(self) -> dict[NodeId, list[int]]:
        return self.by_node(range(self.host.partition_count))

    def node_of(self, partition: int) -> NodeId:
        node = self._serving.get(partition)
        if node is None:
            node = self._serving[partition] = self.host.serving_node(partition, self.point)
        return node

    async def ask(
        self,
        node: NodeId,
        task: Task,
        kind: type[R],
        bytes_left: int = 0,
        scanned_max: int = 0,
    ) -> R:
        """Run ``task`` at ``node``, which serves all of its partitions. ``scanned_max``: what it
        may look at (default: all that is left to the query)."""
        scanned_left = max(1, self.limits.query_scanned_max - self.scanned)
        scanned = min(scanned_left, scanned_max or scanned_left)
        budget = Budget(scanned, bytes_left or self.limits.query_bytes_max)
        if node == self.host.node_id:
            result: Result | Again = await run_task(task, self.host, self.point, budget)
        else:
            result = await self._ask_remote(node, task, budget)
        if isinstance(result, Again):
            raise ReadAgain(result.timestamp)
        if not isinstance(result, kind):
            raise InternalError(f"{node} answers {type(task).__name__} with another's result")
        self.scanned += cast("Any", result).scanned
        return result

    async def _ask_remote(self, node: NodeId, task: Task, budget: Budget) -> Result | Again:
        left = self._deadline - asyncio.get_running_loop().time()
        if left <= 0:
            raise TimeoutError
        request = TaskRequest(task, self.point, budget, max(1, int(left * 1000)))
        result: Result | Again = decode_result(
            await self.host.run_remote(node, encode_request(request))
        )
        return result

    async def ask_each(
        self, tasks: Mapping[NodeId, Task], kind: type[R], bytes_left: int = 0
    ) -> list[tuple[NodeId, R]]:
        """Run one task at each node, at the same time; results in the order of the names."""
        nodes = sorted(tasks)
        results = await together([self.ask(node, tasks[node], kind, bytes_left) for node in nodes])
        return list(zip(nodes, results, strict=True))

    # Entities

    async def records(
        self,
        digests: Sequence[Digest],
        *,
        kind: int | None = None,
        partitions: Sequence[int] | None = None,
        bytes_left: int = 0,
        exact: bool = False,
    ) -> list[Stored | None]:
        """The records of entities by first CID; a vertex's partition follows from its digest.
        ``exact``: of versions.

        May be shorter than ``digests``, when ``bytes_left`` (default: all that a query may return)
        were not enough.
        """
        places = self._places(digests, partitions)
        left = bytes_left or self.limits.query_bytes_max
        records: list[Stored | None] = []
        for chunk in in_chunks(zip(digests, places, strict=True), CHUNK):
            column, cut = await self._load_chunk(chunk, LoadTask([], [], kind, exact=exact), left)
            for record in column:
                if left <= 0:
                    return records
                records.append(record)
                left -= 0 if record is None else len(record.record)
            if cut:
                return records
        return records

    async def marks(self, digests: Sequence[Digest], kind: int, where: bytes = b"") -> list[bool]:
        """Which of these vertices exist and satisfy ``where``."""
        return await self._columns(
            digests, self._places(digests, None), LoadTask([], [], kind, where, "marks")
        )

    def _places(self, digests: Sequence[Digest], partitions: Sequence[int] | None) -> Sequence[int]:
        return list(map(self.home, digests)) if partitions is None else partitions

    async def _columns(
        self, digests: Sequence[Digest], places: Sequence[int], task: LoadTask
    ) -> list[Any]:
        whole: list[Any] = []
        for chunk in in_chunks(zip(digests, places, strict=True), CHUNK):
            column, _ = await self._load_chunk(chunk, task, 0)
            whole += column
        return whole

    async def _load_chunk(
        self, chunk: list[tuple[Digest, int]], task: LoadTask, bytes_left: int
    ) -> tuple[list[Any], bool]:
        """One column for ``chunk``, and whether some node's budget cut it."""
        indexes: dict[NodeId, list[int]] = {}
        for index, (_, partition) in enumerate(chunk):
            indexes.setdefault(self.node_of(partition), []).append(index)
        tasks: dict[NodeId, Task] = {
            node: msgspec.structs.replace(
                task,
                digests=[chunk[index][0] for index in mine],
                partitions=[chunk[index][1] for index in mine],
            )
            for node, mine in indexes.items()
        }
        column: list[Any] = [None] * len(chunk)
        whole = len(chunk)
        for node, result in await self.ask_each(tasks, LoadResult, bytes_left):
            mine = indexes[node]
            part: list[Any] = getattr(result, task.want)
            for index, item in zip(mine, part, strict=False):
                column[index] = item
            if len(part) < len(mine):
                whole = min(whole, mine[len(part)])
        return column[:whole], whole < len(chunk)

    async def locate(
        self, digests: Sequence[Digest], *, exact: bool = False
    ) -> tuple[dict[Digest, Located], bool]:
        """Entities and versions by any of their CIDs, at whatever partition knows them; False
        where those that were found fill an answer, and what came after them was not looked for."""
        found: dict[Digest, Located] = {}
        size = 0
        for chunk in in_chunks(digests, LOCATED_MAX):
            if size >= self.limits.query_bytes_max:
                return found, False
            for located in await self._locate_chunk(chunk, exact):
                found[located.asked] = located
                size += len(located.version.record)
        return found, True

    async def _locate_chunk(self, digests: Sequence[Digest], exact: bool) -> list[Located]:
        found: list[Located] = []
        missing = list(digests)
        for thorough in (False,) if self.point.skip_intents else (False, True):
            if not missing:
                break
            tasks: dict[NodeId, Task] = {
                node: LocateTask(partitions, missing, exact, thorough)
                for node, partitions in self.every_partition().items()
            }
            for _, result in await self.ask_each(tasks, LocateResult):
                found += result.found
            known = {located.asked for located in found}
            missing = [digest for digest in missing if digest not in known]
        return found

    # Edges

    async def expand(
        self, vertices: Iterable[Digest], hop: Hop, consume: Callable[[Entries], None]
    ) -> None:
        """Hand the edges of ``vertices`` to ``consume``, piece by piece, in any order; not all of
        them where a budget ends."""
        expansion = Expansion(self, vertices, hop, consume, ENTRIES_MAX)
        while await expansion.read():
            pass

    async def expand_ahead(
        self, vertices: Iterable[Digest], hop: Hop, limit: int
    ) -> list[tuple[list[Digest], ExpandResult]]:
        """One piece from each node that serves some of ``vertices``: up to ``limit`` edges of
        those, and no more looks. It ends no budget of the query: what is cut was not asked for."""
        nodes: dict[NodeId, list[Digest]] = {}
        for vertex in vertices:
            nodes.setdefault(self.node_of(self.home(vertex)), []).append(vertex)
        results = await together(
            [self.expand_some(node, ones, hop, limit, b"", limit) for node, ones in nodes.items()]
        )
        return list(zip(nodes.values(), results, strict=True))

    async def expand_some(
        self,
        node: NodeId,
        vertices: list[Digest],
        hop: Hop,
        limit: int,
        after: bytes,
        scanned_max: int = 0,
    ) -> ExpandResult:
        """Up to ``limit`` edges of ``vertices``, which ``node`` serves."""
        task = ExpandTask(
            list(map(self.home, vertices)),
            vertices,
            hop.direction != "out",
            hop.direction != "in",
            None if hop.labels is None else list(hop.labels),
            limit,
            after,
            hop.where,
            hop.weight,
        )
        result = await self.ask(node, task, ExpandResult, scanned_max=scanned_max)
        if result.ins.edges and (hop.where or hop.weight is not None):
            result.ins = await self._read_in_records(result.ins, hop)
        return result

    async def _read_in_records(self, ins: Adjacency, hop: Hop) -> Adjacency:
        """What the serving node does for OUT: the records of IN live with the far ends."""
        places = list(map(self.home, ins.fars))
        marks = await self._columns(ins.edges, places, LoadTask([], [], EDGE, hop.where, "marks"))
        weights: list[Value] = []
        if hop.weight is not None:
            task = LoadTask([], [], EDGE, hop.where, "weights", hop.weight)
            weights = await self._columns(ins.edges, places, task)
        return _only_marked(ins, marks, weights)


class Expansion:
    """The edges of vertices, read in rounds: in each, every cluster node that has some of them
    gives one piece. Who has enough stops, and nobody reads all of a hub for it."""

    def __init__(
        self,
        gather: Gather,
        vertices: Iterable[Digest],
        hop: Hop,
        consume: Callable[[Entries], None],
        piece: int,
    ) -> None:
        """``piece``: entries in the first piece of a node; later ones are larger."""
        self._gather = gather
        self._hop = hop
        self._consume = consume
        self._piece = min(piece, ENTRIES_MAX)
        self._chunks = in_chunks(vertices, CHUNK)
        self._left = self._next_chunk()
        """What each node has yet to read of the chunk at work, and where it goes on."""

    def _next_chunk(self) -> dict[NodeId, tuple[list[Digest], bytes]]:
        gather = self._gather
        left: dict[NodeId, tuple[list[Digest], bytes]] = {}
        for vertex in next(self._chunks, []):
            node = gather.node_of(gather.home(vertex))
            left.setdefault(node, ([], b""))[0].append(vertex)
        return left

    async def read(self) -> bool:
        """A round. False when nothing is left to read, or a budget of the query has ended."""
        left = sorted(self._left.items())
        results = await together(
            [
                self._gather.expand_some(node, vertices, self._hop, self._piece, after)
                for node, (vertices, after) in left
            ]
        )
        for (node, (vertices, _)), result in zip(left, results, strict=True):
            self._take(node, vertices, result)
        self._piece = min(PIECE_GROWTH * self._piece, ENTRIES_MAX)
        self._left = self._left or self._next_chunk()
        await asyncio.sleep(0)
        return bool(self._left) and self._gather.bound is None

    def _take(self, node: NodeId, vertices: list[Digest], result: ExpandResult) -> None:
        if result.ins.edges:
            self._consume(Entries(vertices, False, result.ins))
        if result.outs.edges:
            self._consume(Entries(vertices, True, result.outs))
        if result.next is None:
            del self._left[node]
            return
        self._left[node] = (vertices[result.next :], result.after)
        if result.bound is not None or self._gather.exhausted:
            self._gather.bound = "scanned"


def _only_marked(entries: Adjacency, marks: list[bool], weights: list[Value]) -> Adjacency:
    kept = Adjacency([], [], [], [])
    at = 0
    for count in entries.counts:
        places = [place for place in range(at, at + count) if marks[place]]
        kept.counts.append(len(places))
        kept.fars += [entries.fars[place] for place in places]
        kept.edges += [entries.edges[place] for place in places]
        if weights:
            kept.weights += [weights[place] for place in places]
        at += count
    return kept


async def decode_rows(versions: Iterable[Stored]) -> list[Entity]:
    """The entities of records, at about 3 us each, pausing."""
    entities: list[Entity] = []
    for chunk in in_chunks(versions, PAUSE_AFTER):
        entities += [decode_record(each.digest, each.timestamp, each.record) for each in chunk]
        await asyncio.sleep(0)
    return entities


def as_vertex(stored: Stored) -> Vertex:
    entity = decode_record(stored.digest, stored.timestamp, stored.record)
    assert isinstance(entity, Vertex)
    return entity


def as_edge(stored: Stored) -> Edge:
    entity = decode_record(stored.digest, stored.timestamp, stored.record)
    assert isinstance(entity, Edge)
    return entity


async def together(calls: Sequence[Coroutine[Any, Any, R]]) -> list[R]:
    """All results, or the error that matters most; then the other calls are cancelled."""
    if len(calls) == 1:
        return [await calls[0]]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    except BaseExceptionGroup as failures:
        raise _weightiest(failures.exceptions) from None
    return [task.result() for task in tasks]


def _weightiest(errors: Sequence[BaseException]) -> BaseException:
    """A ReadAgain with the latest time, since that asks for all of them; else the first error."""
    again = [error for error in errors if isinstance(error, ReadAgain)]
    return max(again, key=lambda error: error.timestamp) if again else errors[0]
