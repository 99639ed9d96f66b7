"""Strict serializability, looked at closely: writers whose steps follow each other in real time
only, and snapshots of all that they write.

A *walker* owns some vertices in different partitions and writes them in turn, each at the node that
leads its partition. What it is told at one it carries to the next at once, faster than any frame:
so a write that was acknowledged with a high timestamp is followed by one of another partition with
a low one, and no snapshot may show the second without the first (*causal reverse*). *Lookers* take
snapshots; walkers look at single vertices between their steps.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field, replace
from typing import Any, Final

from cluster_core.graph.entities import Vertex
from cluster_core.graph.operations import BatchOperation, CreateNode, UpdateNode
from cluster_core.query.plan import Get
from cluster_core.types import Digest, group_of, partition_of
from tests.simulation.chaos import Chaos
from tests.simulation.network import NetworkFaults
from tests.simulation.serializability import INITIAL, Transaction, check
from tests.simulation.workload import Client, History, NotExecuted, Unsure
from tests.simulation.world import SIM_CONFIG, SimNode, World, simulate

__all__ = ["run_strict"]

UNEVEN: Final = NetworkFaults(latency_max=0.001, slow_rate=0.1, slow=20.0)
"""One stream may take many times as long as another."""


@dataclass
class _Stage:
    """What all know together."""

    world: World
    history: History = field(default_factory=History)
    vertices: list[Digest] = field(default_factory=list)
    transactions: list[Transaction] = field(default_factory=list)
    named: int = 0
    glances: float = 0.3
    """How often walkers look at a vertex before their next step."""
    at_work: Digest = b""
    """The vertex that somebody began to write last."""

    def name(self) -> str:
        self.named += 1
        return f"txn{self.named}"


class _Person(Client):
    def __init__(self, stage: _Stage, name: str, home: SimNode | None = None) -> None:
        super().__init__(stage.world, stage.history, name, home=home, attempts=4)
        self.stage = stage

    async def see(self, digests: list[Digest], node: SimNode | None = None) -> None:
        """Read all of ``digests`` at once: who wrote each of them last."""
        query = Get(cids=tuple(digests))
        call = self.history.position()
        result, _ = await self._attempt(
            lambda cluster, timeout_ms: cluster.execute_query(query, timeout_ms=timeout_ms), node
        )
        rows = [row for row in result.rows if isinstance(row, Vertex)]
        seen = {row.digest: str(row.properties["by"]) for row in rows}
        assert seen.keys() == set(digests), "vertices do not go away"
        self.stage.transactions.append(
            Transaction(
                name=self.stage.name(), reads=seen, call=call, returned=self.history.position()
            )
        )


class _Walker(_Person):
    def __init__(self, stage: _Stage, name: str, home: SimNode | None = None) -> None:
        super().__init__(stage, name, home)
        self._own: dict[Digest, str] = {}
        """Its vertices, and who wrote them last: itself."""

    async def settle_down(self, count: int) -> None:
        """Create its vertices, in different partitions if possible."""
        operation = CreateNode(("Stone",), {"by": INITIAL})
        for number in range(count):
            key = f"{self.name}-{number}"
            result, _ = await self._attempt(
                lambda cluster, timeout_ms, key=key: cluster.execute_operation(  # type: ignore[misc]
                    operation, idempotency_key=key, timeout_ms=timeout_ms
                )
            )
            self._own[result.digest] = INITIAL
        self.stage.vertices += self._own

    async def run(self, until: float, think: float = 0.0) -> None:
        at = 0
        while self.world.loop.time() < until and self._own:
            steps = list(self._own)
            at = (at + 1) % len(steps)
            both = len(steps) > 1 and self.random.random() < 0.1
            with contextlib.suppress(NotExecuted):
                await self._write(steps[:2] if both else [steps[at]])
            if self.random.random() < self.stage.glances:
                await self._glance()
            await asyncio.sleep(think)

    async def _glance(self) -> None:
        """Look at what somebody else writes just now, before the next step."""
        digest = self.stage.at_work
        with contextlib.suppress(NotExecuted, Unsure):
            await self.see([digest], _leader(self.world, digest))

    async def _write(self, digests: list[Digest]) -> None:  # type: ignore[override]
        name = self.stage.name()
        steps = [BatchOperation(UpdateNode(digest, {"by": name})) for digest in digests]

        async def ask(cluster: Any, timeout_ms: int) -> int:
            more: dict[str, Any] = {"idempotency_key": name, "timeout_ms": timeout_ms}
            if len(steps) == 1:
                done = await cluster.execute_operation(steps[0].operation, **more)
            else:
                done = await cluster.execute_transaction(steps, **more)
            timestamp: int = done.timestamp
            return timestamp

        self.stage.at_work = digests[0]
        before = {digest: self._own[digest] for digest in digests}
        call, returned = self.history.position(), True
        try:
            timestamp, note = await self._attempt(ask, _leader(self.world, digests[0]))
        except Unsure:
            returned, timestamp, note = False, 0, "unsure"
            for digest in digests:
                del self._own[digest]
        else:
            self._own.update(dict.fromkeys(digests, name))
        self.stage.transactions.append(
            Transaction(
                name=name,
                reads=before,
                writes=frozenset(digests),
                call=call,
                returned=self.history.position() if returned else None,
            )
        )
        places = [digest[:3].hex() for digest in digests]
        self.world.note(f"{self.name} {name} {places} at {timestamp}: {note}")


def _leader(world: World, digest: Digest) -> SimNode | None:
    group = group_of(partition_of(digest, world.config.partition_count))
    for node in world.nodes:
        replica = node.founded and node.founded.host.replicas.get(group)
        if replica and replica.evaluation is not None:
            return node
    return None


class _Looker(_Person):
    async def run(self, until: float, think: float = 0.0) -> None:
        while self.world.loop.time() < until:
            with contextlib.suppress(NotExecuted, Unsure):
                await self.see(self.stage.vertices)
            await asyncio.sleep(think)


def run_strict(
    seed: int,
    *,
    nodes: int = 5,
    seconds: float = 1.0,
    walkers: int = 5,
    lookers: int = 2,
    glances: float = 0.3,
    faults: NetworkFaults = UNEVEN,
    only: str | None = None,
) -> World:
    """Run ``seed``; ``only`` names a kind of fault that happens meanwhile.

    Raises an AssertionError when the history is not strictly serializable.
    """

    async def scenario(world: World) -> None:
        world.start_all()
        await world.until_ready()
        stage = _Stage(world, glances=glances)
        homes = world.nodes
        walking = [_Walker(stage, f"walker{at}", homes[at % nodes]) for at in range(walkers)]
        for walker in walking:
            await walker.settle_down(3)
        looking = [_Looker(stage, f"looker{at}", homes[-1 - at % nodes]) for at in range(lookers)]
        until = world.loop.time() + seconds
        work = [one.run(until) for one in (*walking, *looking)]
        trouble = None if only is None else Chaos(world, pace=0.5, only=(only,))
        if trouble is not None:
            work.append(trouble.run(until))
        await asyncio.gather(*work)
        if trouble is not None:
            await trouble.end()
        world.note(f"{len(stage.transactions)} transactions")
        verdict = check(stage.transactions)
        assert verdict.ok, f"seed {seed}: {verdict.report}"

    world = simulate(seed, scenario, nodes=nodes, config=SIM_CONFIG, faults=replace(faults))
    assert not world.failures, f"seed {seed}: " + "\n".join(world.failures)
    return world
