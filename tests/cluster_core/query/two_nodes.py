"""Two cluster nodes that share the partitions of a graph, and a model of the same graph.

Every query that touches partitions of both nodes travels through encoded bytes. The model is plain
Python over whole snapshots, so it knows nothing of keys, records, partitions or versions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, field, replace

from msgspec import structs

from cluster_core.config import LimitConfig
from cluster_core.errors import HistoryCollected
from cluster_core.graph.blocks import (
    decode_block,
    digest_of,
    first_edge_block,
    first_node_block,
    next_block,
)
from cluster_core.graph.entities import Edge, Vertex
from cluster_core.graph.indexes import (
    IndexDefinition,
    Indexes,
    IndexState,
    encode_definition,
    entry_changes,
    entry_keys,
    maintained,
)
from cluster_core.graph.records import (
    EDGE,
    VERTEX,
    encode_record,
    record_block,
    record_created_at,
    record_kind,
    record_version,
)
from cluster_core.graph.values import Value
from cluster_core.ports import DATA
from cluster_core.query.execute import execute
from cluster_core.query.host import ReadPoint
from cluster_core.query.local import run_task_bytes
from cluster_core.query.plan import Query
from cluster_core.query.results import QueryResult
from cluster_core.replication import history
from cluster_core.storage import keys
from cluster_core.storage.memory import MemoryEngine
from cluster_core.storage.mvcc import newest
from cluster_core.types import Digest, NodeId, ReplicaId, Timestamp, group_of, partition_of

PARTITIONS = 6


class QueryNode:
    """One cluster node: a host of queries, with an engine of its own."""

    def __init__(self, node_id: NodeId, mesh: dict[NodeId, QueryNode]) -> None:
        self.node_id = node_id
        self.partition_count = PARTITIONS
        self.engine = MemoryEngine()
        self.settled: list[tuple[int, Timestamp, Collection[Digest] | None]] = []
        self.waited: list[tuple[int, int]] = []
        self.requests = 0
        self.fault: Exception | None = None
        """Raised by the next settle."""
        self.delay = 0.0
        self.kept_since: Timestamp = 0
        self.replica: ReplicaId = 1
        """Of each partition."""
        self.known: list[IndexDefinition] = []
        """The property indexes that this node takes for ready."""
        self._mesh = mesh
        mesh[node_id] = self

    def steady_s(self) -> float:
        return asyncio.get_running_loop().time()

    def indexes(self) -> list[IndexDefinition]:
        return self.known

    def serving_node(self, partition: int, point: ReadPoint | None = None) -> NodeId:
        names = sorted(self._mesh)
        return names[partition % len(names)]

    async def run_remote(self, node: NodeId, task: bytes) -> bytes:
        self.requests += 1
        await asyncio.sleep(self.delay)
        return await run_task_bytes(self._mesh[node], task)

    async def wait_applied(self, partition: int, index: int) -> None:
        assert self.serving_node(partition) == self.node_id
        self.waited.append((partition, index))

    def require_history(self, partition: int, timestamp: Timestamp) -> ReplicaId:
        assert self.serving_node(partition) == self.node_id
        if timestamp < self.kept_since:
            raise HistoryCollected("it is older than what is kept")
        return self.replica

    def horizon(self, partition: int) -> Timestamp:
        return self.kept_since

    def detaching(self, partition: int) -> frozenset[Digest]:
        return frozenset()

    async def settle(
        self,
        partition: int,
        timestamp: Timestamp,
        digests: Collection[Digest] | None,
        *,
        past_holds: bool = False,
    ) -> None:
        assert self.serving_node(partition) == self.node_id
        self.settled.append((partition, timestamp, digests))
        if self.fault is not None:
            raise self.fault


@dataclass
class Snapshot:
    """The graph at one time."""

    vertices: dict[Digest, Vertex] = field(default_factory=dict)
    edges: dict[Digest, Edge] = field(default_factory=dict)


class TwoNodes:
    """The cluster. Every change happens at a timestamp of its own, and is remembered."""

    def __init__(self, *, nodes: int = 2) -> None:
        self.mesh: dict[NodeId, QueryNode] = {}
        for name in ("alpha", "beta", "gamma")[:nodes]:
            QueryNode(name, self.mesh)
        self.alpha = self.mesh["alpha"]
        self.now: Timestamp = 1 << 16
        self.snapshots: dict[Timestamp, Snapshot] = {self.now: Snapshot()}
        self._nonce = 0
        self._maintained: Indexes = {}
        self._definitions: dict[int, IndexDefinition] = {}

    @property
    def graph(self) -> Snapshot:
        return self.snapshots[self.now]

    def home(self, digest: Digest) -> int:
        return partition_of(digest, PARTITIONS)

    def home_of(self, entity: Vertex | Edge) -> int:
        return self.home(entity.source if isinstance(entity, Edge) else entity.digest)

    async def ask(
        self,
        query: Query,
        *,
        at: Timestamp | None = None,
        limits: LimitConfig = LimitConfig(),  # noqa: B008  # frozen
        point: ReadPoint | None = None,
        timeout: float = 10,
        node: NodeId = "alpha",
    ) -> QueryResult:
        deadline = asyncio.get_running_loop().time() + timeout
        point = point or ReadPoint(self.now if at is None else at)
        return await execute(query, self.mesh[node], point, limits, deadline)

    # Changes

    def add_vertex(self, *labels: str, **properties: Value) -> Digest:
        block = first_node_block(labels, properties, self._next_nonce())
        digest, now = digest_of(block), self._tick()
        group = group_of(self.home(digest))
        self._put(group, keys.entity(group, digest), encode_record(VERTEX, digest, 0, block))
        vertex = Vertex(digest, digest, tuple(sorted(set(labels))), properties, now, now)
        self._enter(None, vertex)
        self.graph.vertices[digest] = vertex
        return digest

    def add_edge(self, label: str, source: Digest, target: Digest, **properties: Value) -> Digest:
        block = first_edge_block(label, source, target, properties, self._next_nonce())
        digest, now = digest_of(block), self._tick()
        near, far = group_of(self.home(source)), group_of(self.home(target))
        self._put(near, keys.entity(near, digest), encode_record(EDGE, digest, 0, block))
        self._put(near, keys.out_edge(near, source, label, digest), target)
        self._put(far, keys.in_edge(far, target, label, digest), source)
        edge = Edge(digest, digest, label, source, target, properties, now, now)
        self._enter(None, edge)
        self.graph.edges[digest] = edge
        return digest

    def update(self, digest: Digest, **properties: Value) -> Digest:
        """Replace the properties; returns the version."""
        entity = self._entity(digest)
        now = self._tick()
        group = group_of(self.home_of(entity))
        key = keys.entity(group, digest)
        found = newest(self._engine(group), key)
        assert found is not None
        record = found[1]
        content = decode_block(record_block(record)) | {"properties": properties}
        block = next_block(content, digest, record_version(record))
        version, created = digest_of(block), record_created_at(record, found[0])
        self._put(group, key, encode_record(record_kind(record), version, created, block))
        self._put_plain(group, keys.version(group, version), digest)
        changed = structs.replace(entity, version=version, properties=properties, updated_at=now)
        self._enter(entity, changed)
        if isinstance(changed, Edge):
            self.graph.edges[digest] = changed
        else:
            self.graph.vertices[digest] = changed
        return version

    def delete(self, digest: Digest) -> None:
        """Delete an edge, or a vertex with its edges."""
        entity = self._entity(digest)
        if isinstance(entity, Vertex):
            for edge in list(self.graph.edges.values()):
                if digest in (edge.source, edge.target):
                    self.delete(edge.digest)
        self._tick()
        group = group_of(self.home_of(entity))
        self._put(group, keys.entity(group, digest), b"")
        self._enter(entity, None)
        if isinstance(entity, Edge):
            far = group_of(self.home(entity.target))
            label = entity.label
            self._put(group, keys.out_edge(group, entity.source, label, digest), b"")
            self._put(far, keys.in_edge(far, entity.target, label, digest), b"")
            del self.graph.edges[digest]
        else:
            del self.graph.vertices[digest]

    def collect(self, horizon: Timestamp) -> None:
        """Give up what no read at ``horizon`` or later sees, and refuse reads below it."""
        self.move_horizon(horizon)
        for partition in range(PARTITIONS):
            group = group_of(partition)
            collection = history.Collection(self._engine(group), group, horizon)
            while collection.step():
                pass

    def move_horizon(self, horizon: Timestamp) -> None:
        """Refuse reads below it; all is still there."""
        for node in self.mesh.values():
            node.kept_since = horizon

    # Indexes

    def begin_index(self, label: str, name: str) -> IndexDefinition:
        """From now on writes maintain it; it is not complete yet."""
        self._tick()
        index = len(self._definitions) + 1
        return self._define(IndexDefinition(index, label, name, IndexState.BUILDING, self.now))

    def finish_index(self, building: IndexDefinition) -> IndexDefinition:
        """The backfill, and the entry that says that it is done."""
        entities: list[Vertex | Edge] = [*self.graph.vertices.values(), *self.graph.edges.values()]
        for entity in entities:
            self._tick()
            self._enter(None, entity)
        self._tick()
        ready = structs.replace(building, state=IndexState.READY, since=self.now)
        for node in self.mesh.values():
            node.known.append(ready)
        return self._define(ready)

    def drop_index(self, ready: IndexDefinition, *, known: bool = True) -> None:
        """Delete it with all its entries; ``known`` says whether the nodes have heard of it."""
        self._tick()
        self._define(structs.replace(ready, state=IndexState.DROPPING, since=self.now))
        for partition in range(PARTITIONS):
            engine = self._engine(group_of(partition))
            prefix = keys.index_prefix(group_of(partition), ready.id)
            batch = engine.batch()
            for key, _ in engine.scan(DATA, prefix, keys.after(prefix)):
                batch.delete(DATA, key)
            engine.write(batch)
        for node in self.mesh.values():
            node.known = [one for one in node.known if one.id != ready.id or not known]

    def _define(self, definition: IndexDefinition) -> IndexDefinition:
        self._definitions[definition.id] = definition
        self._maintained = maintained(self._definitions.values())
        for partition in range(PARTITIONS):
            group = group_of(partition)
            key = keys.index_definition(group, definition.id)
            self._put_plain(group, key, encode_definition(definition))
        return definition

    def _enter(self, before: Vertex | Edge | None, after: Vertex | Edge | None) -> None:
        some = after or before
        assert some is not None
        group = group_of(self.home_of(some))
        for key, value in entry_changes(self._entries(before), self._entries(after)):
            self._put(group, key, value)

    def _entries(self, entity: Vertex | Edge | None) -> list[bytes]:
        if entity is None:
            return []
        kind, labels = VERTEX, entity.labels if isinstance(entity, Vertex) else (entity.label,)
        if isinstance(entity, Edge):
            kind = EDGE
        group = group_of(self.home_of(entity))
        return entry_keys(group, kind, entity.digest, labels, entity.properties, self._maintained)

    def _entity(self, digest: Digest) -> Vertex | Edge:
        return self.graph.vertices.get(digest) or self.graph.edges[digest]

    def _tick(self) -> Timestamp:
        before = self.graph
        self.now += 1 << 16
        self.snapshots[self.now] = replace(
            before, vertices=dict(before.vertices), edges=dict(before.edges)
        )
        return self.now

    def _next_nonce(self) -> bytes:
        self._nonce += 1
        return self._nonce.to_bytes(16, "big")

    def _engine(self, group: int) -> MemoryEngine:
        return self.mesh[self.alpha.serving_node(group - 1)].engine

    def _put(self, group: int, user_key: bytes, value: bytes) -> None:
        self._put_plain(group, keys.versioned(user_key, self.now), value)

    def _put_plain(self, group: int, key: bytes, value: bytes) -> None:
        engine = self._engine(group)
        batch = engine.batch()
        batch.put(DATA, key, value)
        engine.write(batch)
