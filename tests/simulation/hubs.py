"""Clients that delete vertices with more edges than go in one step, and look while it happens.

A *hub* is made in one transaction, with spokes to and from a few leaves that hubs share; all of its
edges have a label of their own. From then on nobody adds or removes one; some of their properties
change. Deleted with ``detach``, it has to go at one moment with all of its edges: whoever looks, in
any way, at any time, sees all of it or nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from cluster_core.errors import HistoryCollected, InvalidRequest, NotFound
from cluster_core.graph.operations import (
    BatchOperation,
    CreateEdge,
    CreateNode,
    DeleteNode,
    TransactionResult,
    UpdateEdge,
)
from cluster_core.graph.values import Value
from cluster_core.query.plan import Count, FindEdges, FindNodes, Get, Query, Traverse
from cluster_core.query.results import CountRow, QueryResult
from cluster_core.types import Digest, Timestamp
from tests.simulation.workload import Client, NotExecuted, Unsure
from tests.simulation.world import SIM_CONFIG

__all__ = ["HUB_LIMITS", "Hub", "Hubs", "Surveyor"]

HUB_LIMITS: Final = replace(SIM_CONFIG.limits, detach_step_edges_max=2, detach_chunk_keys_max=1)
"""Deletions in chunks of half an edge, four edges a page."""

_SPOKES: Final = (3, 20)
_LEAVES: Final = 3


@dataclass(slots=True, eq=False)
class Hub:
    label: str
    digest: Digest
    edges: list[Digest]
    sources: list[Digest]
    """Where each edge begins."""
    made: Timestamp
    untouched: Timestamp
    """Nobody had tried to delete it by then."""
    tried: bool = False
    """Somebody tries to delete it, or has."""
    gone: Timestamp = 0
    """When it was deleted, once that is known."""


class Hubs:
    """What the surveyors share."""

    def __init__(self) -> None:
        self.leaves: list[Digest] = []
        self.hubs: list[Hub] = []
        self.seen_whole = 0
        self.seen_gone = 0
        self._names = 0

    def name(self) -> str:
        self._names += 1
        return f"SPOKE{self._names}"


class Surveyor(Client):
    """See the module; what it finds wrong ends the run."""

    def __init__(self, hubs: Hubs, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.hubs = hubs

    async def _do_something(self) -> None:
        standing = [hub for hub in self.hubs.hubs if not hub.tried]
        kind = self.random.random()
        if len(self.hubs.leaves) < _LEAVES:
            await self.plant()
        elif not standing or (len(standing) < 3 and kind < 0.15):
            await self.build()
        elif kind < 0.25:
            await self.tear_down(self.random.choice(standing))
        elif kind < 0.4:
            await self.paint(self._recent_hub())
        elif kind < 0.5:
            await self.visit(self._recent_hub())
        else:
            await self.look(self._recent_hub())

    def _recent_hub(self) -> Hub:
        """Which may be on its way out."""
        return self.random.choice(self.hubs.hubs[-4:])

    async def plant(self) -> None:
        try:
            result, _ = await self._write(CreateNode(labels=("Leaf",)))
        except Unsure:
            return
        self.hubs.leaves.append(result.digest)

    async def build(self) -> None:
        label = self.hubs.name()
        operations = [BatchOperation(CreateNode(("Hub", label)), "hub")]
        leaves = []
        for number in range(self.random.randint(*_SPOKES)):
            leaf = self.random.choice(self.hubs.leaves)
            leaves.append(leaf)
            if number % 2:
                spoke = CreateEdge(label, b"", leaf, {"paint": 0})
                operations.append(BatchOperation(spoke, None, {"source_cid": "hub"}))
            else:
                spoke = CreateEdge(label, leaf, b"", {"paint": 0})
                operations.append(BatchOperation(spoke, None, {"target_cid": "hub"}))
        try:
            made, note = await self._transact(operations)
        except (Unsure, NotFound):
            return
        hub, *edges = made.results
        sources = [hub.digest if number % 2 else leaf for number, leaf in enumerate(leaves)]
        digests = [edge.digest for edge in edges]
        self.hubs.hubs.append(
            Hub(label, hub.digest, digests, sources, made.timestamp, made.timestamp)
        )
        self.world.note(f"{self.name} builds {label} {hub.digest[:4].hex()} [{note}]")

    async def _transact(self, operations: list[BatchOperation]) -> tuple[TransactionResult, str]:
        self._requests += 1
        key = f"{self.name}-{self._requests}"
        return await self._attempt(
            lambda cluster, timeout_ms: cluster.execute_transaction(
                operations, idempotency_key=key, timeout_ms=timeout_ms
            )
        )

    async def tear_down(self, hub: Hub) -> None:
        hub.tried = True
        try:
            result, note = await self._write(DeleteNode(digest=hub.digest, detach=True))
        except NotFound:
            self._complain(hub, "is not there to be deleted")
        except Unsure:
            self.world.note(f"{self.name} tears {hub.label} down: unknown")
        except NotExecuted:
            hub.tried = False
            raise
        else:
            hub.gone = result.timestamp
            self.world.note(f"{self.name} tears {hub.label} down at {hub.gone} [{note}]")

    async def paint(self, hub: Hub) -> None:
        """Two edges that change while their end goes."""
        paint: dict[str, Value] = {"paint": self.history.value()}
        spokes = [self.random.randrange(len(hub.edges)) for _ in "ab"]
        changes = [UpdateEdge(hub.edges[one], paint, hub.sources[one]) for one in spokes]
        try:
            if self.random.random() < 0.5:
                await self._write(changes[0])
            else:
                await self._transact([BatchOperation(change) for change in changes])
        except NotFound:
            if not hub.tried:
                self._complain(hub, "lacks an edge that is to be painted")
        except Unsure:
            pass

    async def visit(self, hub: Hub) -> None:
        """One more edge, of a label that nobody counts, while its end goes."""
        ends = [hub.digest, self.random.choice(self.hubs.leaves)]
        self.random.shuffle(ends)
        try:
            await self._write(CreateEdge("VISITS", ends[0], ends[1]))
        except NotFound:
            if not hub.tried:
                self._complain(hub, "is not there to be visited")
        except Unsure:
            pass

    async def look(self, hub: Hub) -> None:
        past = self.random.random() < 0.3
        moment = self.random.choice([hub.made, hub.untouched, hub.gone or hub.untouched])
        standing, gone = not hub.tried, bool(hub.gone)
        query, whole = self._some_query(hub)
        try:
            result, note = await self._attempt(
                lambda cluster, timeout_ms: cluster.execute_query(
                    query, as_of=moment if past else None, timeout_ms=timeout_ms
                )
            )
        except (HistoryCollected, InvalidRequest, Unsure, NotExecuted):
            return  # collected, or ahead of the clock of the node that was asked
        if past:
            standing, gone = moment <= hub.untouched, bool(hub.gone) and moment >= hub.gone
        elif standing and not hub.tried:
            hub.untouched = max(hub.untouched, result.timestamp)
        else:
            standing = False
        seen = _how_many(result)
        self.hubs.seen_whole += seen == whole
        self.hubs.seen_gone += seen == 0
        allowed = {whole} if standing else {0, whole}
        if gone:
            allowed = {0}
        if seen not in allowed:
            self._complain(hub, f"{seen} of {whole} are seen by {query} [{note}] as of {past}")

    def _some_query(self, hub: Hub) -> tuple[Query, int]:
        """A question about the hub, and what it counts while the hub stands."""
        edges = len(hub.edges)
        leaves = tuple(self.hubs.leaves)
        choice = self.random.randrange(8)
        if choice == 0:
            return Count(of="edges", label=hub.label), edges
        if choice == 1:
            return FindEdges(label=hub.label, limit=100), edges
        if choice == 2:
            return Get(cids=(hub.digest, *hub.edges)), edges + 1
        if choice == 3:
            return Get(cids=tuple(hub.edges)), edges
        if choice == 4:
            return Get(cids=(hub.digest,)), 1
        if choice == 5:
            return Count(labels=(hub.label,)), 1
        if choice == 6:
            return FindNodes(labels=(hub.label,), limit=10), 1
        around = Traverse(
            start=leaves,
            direction="both",
            edge_labels=(hub.label,),
            max_depth=1,
            limit=100,
            return_="edges",
        )
        return around, edges

    def _complain(self, hub: Hub, what: str) -> None:
        self.world.failures.append(
            f"half a hub: {hub.label} {hub.digest[:4].hex()} {what}, made {hub.made}, "
            f"untouched {hub.untouched}, gone {hub.gone}"
        )


def _how_many(result: QueryResult) -> int:
    if len(result.rows) == 1 and isinstance(result.rows[0], CountRow):
        return result.rows[0].count
    return len(result.rows)
