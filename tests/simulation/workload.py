"""Clients of the simulated cluster: what they do, what they were told, and the history of it.

A client is sequential: it waits for the outcome of one operation before it begins the next. It
asks a random node, retries under the same idempotency key like a careful program would, and writes
down one of four outcomes:

- an answer;
- a refusal that is certain (not found, another version): an answer as well;
- *certainly not executed* by every attempt (rule: 307, 409 conflict and 503 mean that): the
  operation is left out of the history, so if it did take effect after all, a read will see a
  value that nobody wrote;
- *unknown*: some attempt ended without an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Literal, TypeVar

from cluster_core.cluster import KotobaCluster
from cluster_core.errors import (
    HasEdges,
    KotobaError,
    NotFound,
    OutcomeUnknown,
    PreconditionFailed,
    RetryError,
    StorageFailed,
    Unreachable,
)
from cluster_core.graph.entities import Edge, Vertex
from cluster_core.graph.operations import (
    CreateEdge,
    CreateNode,
    DeleteEdge,
    DeleteNode,
    Operation,
    OperationResult,
    UpdateEdge,
    UpdateNode,
)
from cluster_core.query.plan import Get
from tests.simulation import models
from tests.simulation.linearizability import UNKNOWN
from tests.simulation.linearizability import Operation as Event
from tests.simulation.loop import ProcessDied
from tests.simulation.world import SimNode, World

__all__ = ["Client", "Entity", "History", "NotExecuted"]

T = TypeVar("T")

_ATTEMPT_MS: Final = (100, 300, 1_000, 3_000)
"""Patience of a client for one attempt: around every time-out inside, so that retries meet what
they retry in every state."""

_PATIENCE_S: Final = 0.5
"""Beyond its time-out a node that says nothing stands still; the client hangs up."""

_CROWD: Final = 6
"""Everybody works on the newest few entities, so that operations meet."""

_UNSURE = (OutcomeUnknown, Unreachable, StorageFailed, ProcessDied, TimeoutError)


_CARELESS: Final = 0.15
"""Share of the changes that are asked for once, without a key: their outcome is what the first
attempt says, and only the cluster may try again."""


class NotExecuted(Exception):
    """Every attempt said for certain that it did nothing."""


class Unsure(Exception):
    """Some attempt may have taken effect, or may yet."""


@dataclass(slots=True, eq=False)
class Entity:
    """What the clients know together of one vertex or edge."""

    kind: Literal["vertex", "edge"]
    digest: bytes
    partition: int
    versions: list[bytes] = field(default_factory=list)
    source: bytes = b""
    target: bytes = b""
    gone: bool = False


class History:
    """What all clients saw, in the order in which it happened."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.entities: list[Entity] = []
        self.acknowledged: list[tuple[Any, OperationResult]] = []
        """Writes that were answered with success, each with its model action."""
        self.detached: list[tuple[int, bytes]] = []
        """Attempts to delete a vertex with its edges: when each began, and which."""
        self._position = 0
        self._values = 0

    def position(self) -> int:
        self._position += 1
        return self._position

    def value(self) -> int:
        """A property value that nobody else writes."""
        self._values += 1
        return self._values

    def add(self, client: str, key: Any, action: Any, output: Any, call: int, note: str) -> None:
        returned = None if output is UNKNOWN else self.position()
        self.events.append(
            Event(
                client=client,
                key=key,
                action=action,
                output=output,
                call=call,
                returned=returned,
                note=note,
            )
        )

    def with_cascades(self) -> list[Event]:
        """All events, and for each edge the deletions that may have come with one of its ends.

        Whether they did is left open: an operation of unknown outcome says just that.
        """
        edges = [entity for entity in self.entities if entity.kind == "edge"]
        cascades = [
            Event(
                client="cascade",
                key=edge.digest,
                action=models.Delete(),
                output=UNKNOWN,
                call=call,
                returned=None,
                note=f"detaching {vertex[:4].hex()}",
            )
            for call, vertex in self.detached
            for edge in edges
            if vertex in (edge.source, edge.target)
        ]
        return self.events + cascades

    def alive(self, kind: Literal["vertex", "edge"]) -> list[Entity]:
        return [entity for entity in self.entities if entity.kind == kind and not entity.gone]


class Client:
    """One sequential client. ``attempts`` bounds the retries of one operation.

    Mostly it asks its ``home``, so that a node in trouble does not take all clients with it.
    """

    def __init__(
        self,
        world: World,
        history: History,
        name: str,
        *,
        home: SimNode | None = None,
        attempts: int = 5,
    ):
        self.world = world
        self.history = history
        self.name = name
        self.home = home
        self.attempts = attempts
        self.random = random.Random(f"{world.seed}/{name}")
        self._requests = 0

    async def run(self, until: float, think: float = 0.03) -> None:
        """Do random things until virtual time ``until``."""
        while self.world.loop.time() < until:
            with contextlib.suppress(NotExecuted):
                await self._do_something()
            await asyncio.sleep(self.random.uniform(0, 2 * think))

    async def _do_something(self) -> None:
        vertices = self.history.alive("vertex")[-_CROWD:]
        edges = self.history.alive("edge")[-_CROWD:]
        kind = self.random.random()
        if len(vertices) < 3 or kind < 0.06:
            await self.create_vertex()
        elif kind < 0.18:
            await self.create_edge(self.random.choice(vertices), self.random.choice(vertices))
        elif kind < 0.55:
            await self.read(self.random.choice(self._recent(vertices + edges)))
        elif kind < 0.87 or not edges:
            await self.update(self.random.choice(vertices + edges))
        elif kind < 0.96:
            await self.delete(self.random.choice(edges))
        else:
            await self.delete(self.random.choice(vertices), detach=self.random.random() < 0.5)

    def _recent(self, alive: list[Entity]) -> list[Entity]:
        """What is alive, and what was not long ago."""
        return alive + self.history.entities[-_CROWD:]

    # Operations.

    async def create_vertex(self) -> Entity | None:
        value = self.history.value()
        operation = CreateNode(labels=("Thing",), properties={"value": value})
        return await self._create("vertex", value, operation, b"", b"")

    async def create_edge(self, source: Entity, target: Entity) -> Entity | None:
        value = self.history.value()
        operation = CreateEdge(
            label="LINKS",
            source=source.digest,
            target=target.digest,
            properties={"value": value},
        )
        return await self._create("edge", value, operation, source.digest, target.digest)

    async def _create(
        self,
        kind: Literal["vertex", "edge"],
        value: int,
        operation: Operation,
        source: bytes,
        target: bytes,
    ) -> Entity | None:
        """A creation whose outcome stays unknown has no CID that anybody could ask for."""
        call, began = self.history.position(), self.world.loop.time()
        try:
            result, note = await self._write(operation)
        except (Unsure, NotFound):
            return None
        entity = Entity(kind, result.digest, result.partition, [result.version], source, target)
        self._acknowledge(entity, models.Create(value), result, call, began, note)
        self.history.entities.append(entity)
        await self._look_at(entity)
        return entity

    async def _look_at(self, entity: Entity) -> None:
        """At once after a write, while some replicas have not heard of it."""
        if self.random.random() < 0.3:
            await self.read(entity)

    async def update(self, entity: Entity) -> None:
        value = self.history.value()
        expected = self._some_version(entity)
        if entity.kind == "vertex":
            labels = self.random.choice([None, None, ("Thing",), ("Odd", "Thing"), ("Odd",)])
            operation: Operation = UpdateNode(
                digest=entity.digest,
                properties={"value": value},
                labels=labels,
                if_version=expected,
            )
        else:
            operation = UpdateEdge(
                digest=entity.digest,
                properties={"value": value},
                source=entity.source,
                if_version=expected,
            )
        await self._change(entity, models.Update(value, expected), operation)

    async def delete(self, entity: Entity, *, detach: bool = False) -> None:
        if entity.kind == "vertex":
            if detach:
                self.history.detached.append((self.history.position(), entity.digest))
            operation: Operation = DeleteNode(digest=entity.digest, detach=detach)
        else:
            operation = DeleteEdge(digest=entity.digest, source=entity.source)
        await self._change(entity, models.Delete(), operation)

    async def _change(self, entity: Entity, action: Any, operation: Operation) -> None:
        call, began = self.history.position(), self.world.loop.time()
        output: Any = UNKNOWN
        note = f"t={began:.3f}"
        try:
            result, note = await self._write(operation)
        except NotFound:
            output = models.Failed("not_found")
        except PreconditionFailed:
            output = models.Failed("version")
        except HasEdges:
            return
        except Unsure:
            pass
        else:
            self._acknowledge(entity, action, result, call, began, note)
            await self._look_at(entity)
            return
        self.history.add(self.name, entity.digest, action, output, call, note)
        self._note(began, note, f"{action} {entity.digest[:4].hex()} -> {output}")

    def _acknowledge(
        self,
        entity: Entity,
        action: Any,
        result: OperationResult,
        call: int,
        began: float,
        note: str,
    ) -> None:
        output: Any = result.version
        if isinstance(action, models.Delete):
            entity.gone, output = True, True
        else:
            entity.versions.append(result.version)
        self.history.acknowledged.append((action, result))
        self.history.add(self.name, entity.digest, action, output, call, note)
        self._note(began, note, f"{action} {entity.digest[:4].hex()} -> {result.version[:4].hex()}")

    async def read(self, entity: Entity, node: SimNode | None = None) -> bool:
        """A strong read; False when no node answered it."""
        call, began = self.history.position(), self.world.loop.time()
        query = Get(cids=(entity.digest,))
        try:
            result, note = await self._attempt(
                lambda cluster, timeout_ms: cluster.execute_query(
                    query, consistency="strong", timeout_ms=timeout_ms
                ),
                node,
            )
        except NotFound:
            rows: list[Any] = []
            note = f"t={began:.3f}"
        except (Unsure, NotExecuted):
            return False
        else:
            rows = result.rows
        output = None if not rows else _seen(rows[0])
        self.history.add(self.name, entity.digest, models.Read(), output, call, note)
        self._note(began, note, f"read {entity.digest[:4].hex()} -> {output and output[0]}")
        return True

    def _some_version(self, entity: Entity) -> bytes | None:
        """Mostly none; else the newest that anybody knows, or an older one."""
        if self.random.random() < 0.6:
            return None
        return self.random.choice(entity.versions[-3:])

    # Attempts.

    async def _write(self, operation: Operation) -> tuple[OperationResult, str]:
        self._requests += 1
        key: str | None = f"{self.name}-{self._requests}"
        attempts = self.attempts
        if not isinstance(operation, CreateNode | CreateEdge) and self.random.random() < _CARELESS:
            key, attempts = None, 1
        return await self._attempt(
            lambda cluster, timeout_ms: cluster.execute_operation(
                operation, idempotency_key=key, timeout_ms=timeout_ms
            ),
            attempts=attempts,
        )

    async def _attempt(
        self,
        request: Callable[[KotobaCluster, int], Coroutine[Any, Any, T]],
        node: SimNode | None = None,
        attempts: int | None = None,
    ) -> tuple[T, str]:
        """The first answer of up to ``attempts`` tries, with where and when it was given."""
        began = self.world.loop.time()
        unsure = False
        for attempt in range(attempts or self.attempts):
            asked = node or self._some_node()
            timeout_ms = self.random.choice(_ATTEMPT_MS)
            try:
                async with asyncio.timeout(timeout_ms / 1000 + _PATIENCE_S):
                    answer = await asked.ask(partial(_ask, request, timeout_ms))
            except RetryError:
                pass
            except _UNSURE:
                unsure = True
            except KotobaError as error:
                if type(error).status >= 500:
                    self.world.failures.append(f"{self.name} at {asked.name}: {error!r}")
                if unsure:
                    # An earlier attempt may still be on its way.
                    raise Unsure from error
                raise
            else:
                now = self.world.loop.time()
                return answer, f"t={began:.3f}..{now:.3f} {asked.name} try {attempt + 1}"
            await asyncio.sleep(self.random.uniform(0.01, 0.2) * (attempt + 1))
        if unsure:
            raise Unsure
        raise NotExecuted

    def _some_node(self) -> SimNode:
        if self.home is not None and self.random.random() < 0.7:
            return self.home
        return self.random.choice(self.world.nodes)

    def _note(self, began: float, note: str, text: str) -> None:
        self.world.note(f"{self.name} {text} [{note}]")


def _ask(
    request: Callable[[KotobaCluster, int], Coroutine[Any, Any, T]],
    timeout_ms: int,
    cluster: KotobaCluster,
) -> Coroutine[Any, Any, T]:
    return request(cluster, timeout_ms)


def _seen(row: Any) -> tuple[Any, bytes]:
    assert isinstance(row, Vertex | Edge), row
    return row.properties["value"], row.version
