"""A graph in dictionaries: what the leader of every partition does, without the cluster."""

from __future__ import annotations

from collections.abc import Sequence

from cluster_core.config import LimitConfig
from cluster_core.graph.decompose import decompose
from cluster_core.graph.entities import Entity
from cluster_core.graph.evaluate import evaluate
from cluster_core.graph.indexes import NO_INDEXES, Indexes
from cluster_core.graph.operations import (
    CreateEdge,
    CreateNode,
    Operation,
    check_operation,
    home_partition,
)
from cluster_core.graph.parts import Change, Outcome, Part, decode_part, encode_part
from cluster_core.graph.records import decode_record
from cluster_core.graph.values import Value
from cluster_core.storage import keys
from cluster_core.types import Digest, GroupId, Timestamp, group_of, partition_of


class DictView:
    """One partition: the versions of each key, oldest first."""

    def __init__(self, group: GroupId) -> None:
        self.group = group
        self.indexes: Indexes = NO_INDEXES
        self.versions: dict[bytes, list[tuple[Timestamp, bytes]]] = {}
        self.pointers: dict[bytes, bytes] = {}

    def newest(self, user_key: bytes) -> tuple[Timestamp, bytes] | None:
        versions = self.versions.get(user_key)
        return versions[-1] if versions else None

    def scan_newest(self, prefix: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        live = [
            (key, versions[-1][1])
            for key, versions in sorted(self.versions.items())
            if key.startswith(prefix) and versions[-1][1]
        ]
        return live[:limit]

    def write(self, outcome: Outcome, timestamp: Timestamp) -> None:
        for key, value in outcome.writes:
            self.versions.setdefault(key, []).append((timestamp, value))
        self.pointers.update(outcome.pointers)


class SmallGraph:
    """Partitions whose operations happen one after the other, at timestamps 1, 2, 3, …"""

    def __init__(self, partition_count: int = 4, limits: LimitConfig | None = None) -> None:
        self.partition_count = partition_count
        self.limits = limits or LimitConfig()
        self.views = [DictView(group_of(p)) for p in range(partition_count)]
        self.now: Timestamp = 0
        self.changes: list[Change] = []
        self._nonces = 0

    def view_of(self, digest: Digest) -> DictView:
        return self.views[partition_of(digest, self.partition_count)]

    def parts(
        self,
        operation: Operation,
        *,
        at: Digest | None = None,
        nonce: bytes | None = None,
        check: bool = False,
    ) -> list[tuple[int, Part]]:
        """Decompose; ``at`` is a vertex that lives where an edge named without a hint does."""
        check_operation(operation, self.limits)
        if nonce is None and isinstance(operation, CreateNode | CreateEdge):
            self._nonces += 1
            nonce = self._nonces.to_bytes(16, "big")
        home = home_partition(operation, nonce, self.partition_count)
        if home is None:
            assert at is not None
            home = partition_of(at, self.partition_count)
        placed = decompose(
            operation, self.views[home], nonce, self.partition_count, self.limits, check=check
        )
        return [(partition, decode_part(encode_part(part))) for partition, part in placed]

    def run(self, placed: Sequence[tuple[int, Part]]) -> list[Outcome]:
        """Evaluate all parts, then write all of their outcomes at one timestamp."""
        outcomes = [evaluate(part, self.views[p], self.limits) for p, part in placed]
        self.now += 1
        for (partition, _), outcome in zip(placed, outcomes, strict=True):
            self.views[partition].write(outcome, self.now)
            if outcome.change is not None:
                self.changes.append(outcome.change)
        return outcomes

    def execute(
        self,
        operation: Operation,
        *,
        at: Digest | None = None,
        nonce: bytes | None = None,
        check: bool = False,
    ) -> Outcome:
        """The outcome of the part that answers."""
        outcomes = self.run(self.parts(operation, at=at, nonce=nonce, check=check))
        assert [outcome.answer is not None for outcome in outcomes].count(True) == 1
        return outcomes[0]

    def node(self, *labels: str, **properties: Value) -> Digest:
        answer = self.execute(CreateNode(labels, properties)).answer
        assert answer is not None
        return answer.digest

    def edge(self, source: Digest, label: str, target: Digest, **properties: Value) -> Digest:
        answer = self.execute(CreateEdge(label, source, target, properties)).answer
        assert answer is not None
        return answer.digest

    def read(self, digest: Digest, *, at: Digest | None = None) -> Entity | None:
        """The entity as it is now; ``at`` is the source of an edge."""
        view = self.view_of(at or digest)
        found = view.newest(keys.entity(view.group, digest))
        return decode_record(digest, *found) if found is not None and found[1] else None

    def out_edges(self, vertex: Digest) -> list[tuple[str, Digest, Digest]]:
        """(label, edge, target) of every live out-edge of ``vertex``."""
        view = self.view_of(vertex)
        found = view.scan_newest(keys.out_prefix(view.group, vertex), 10**6)
        return [(*keys.split_adjacency(key), other) for key, other in found]

    def in_edges(self, vertex: Digest) -> list[tuple[str, Digest, Digest]]:
        """(label, edge, source) of every live in-edge of ``vertex``."""
        view = self.view_of(vertex)
        found = view.scan_newest(keys.in_prefix(view.group, vertex), 10**6)
        return [(*keys.split_adjacency(key), other) for key, other in found]
