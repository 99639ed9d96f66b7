"""Snapshots between whole nodes: writes that are faster than the transfer, crashes of both sides at
every stage of it, damage on its way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, Final

import msgspec
import pytest

from cluster_core.config import RaftConfig, ReplicationConfig
from cluster_core.errors import KotobaError
from cluster_core.graph.operations import CreateNode
from cluster_core.ports import DATA, RAFT
from cluster_core.query.plan import Get
from cluster_core.replication.snapshots.messages import Chunk, decode_request, encode
from cluster_core.replication.snapshots.staging import Manifest
from cluster_core.storage import keys
from tests.simulation.loop import ProcessDied
from tests.simulation.network import NetworkFaults, SimTransport
from tests.simulation.watch import Watch
from tests.simulation.workload import History
from tests.simulation.world import SIM_CONFIG, SimNode, World, simulate

pytestmark = [pytest.mark.simulation, pytest.mark.timeout(120)]

CONFIG: Final = replace(
    SIM_CONFIG,
    partition_count=1,
    raft=RaftConfig(log_keep_entries=8, log_entries_max=60),
    replication=ReplicationConfig(snapshot_chunk_bytes=4_000),
)
GROUP: Final = 1

FAULTS: Final = {"latency_min": 0.002, "latency_max": 0.01}
"""A chunk takes some 15 ms, and so do six writes."""

Scenario = Callable[["Trial"], Coroutine[Any, Any, None]]


class Trial:
    """Three nodes of which one was away for too long, and clients that never stop writing."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.made: list[bytes] = []
        self._writers: list[asyncio.Task[None]] = []

    async def begin(self) -> None:
        self.world.start_all()
        await self.world.until_ready()
        self._writers = [asyncio.ensure_future(self._write(number)) for number in range(6)]
        await self.world.until(lambda: len(self.made) > 300, 30, "a partition of some size")
        await self.away.crash()
        before = len(self.made)
        await self.world.until(lambda: len(self.made) > before + 150, 30, "a log that moved on")

    async def end(self) -> None:
        """All that was acknowledged is at the replica that was away."""
        for writer in self._writers:
            writer.cancel()
        await asyncio.gather(*self._writers, return_exceptions=True)
        for start in range(0, len(self.made), 100):
            await self._require(Get(cids=tuple(self.made[start : start + 100])))

    async def _require(self, query: Get) -> None:
        result = await self.away.ask(lambda cluster: cluster.execute_query(query, timeout_ms=5_000))
        assert len(result.rows) == len(query.cids)

    async def _write(self, number: int) -> None:
        operation = CreateNode(labels=("Thing",), properties={"text": "x" * 100})
        while True:
            node = self.world.nodes[number % len(self.world.nodes)]
            number += 1
            try:
                result = await node.ask(
                    lambda cluster: cluster.execute_operation(operation, timeout_ms=2_000)
                )
                self.made.append(result.digest)
            except (KotobaError, ProcessDied):
                await asyncio.sleep(0.02)

    @property
    def away(self) -> SimNode:
        """The node that needs a snapshot: the last of the group's choice of leaders."""
        return self.world.nodes[self._order[-1]]

    @property
    def leader(self) -> SimNode:
        found = [
            node
            for node in self.world.nodes
            if node.founded is not None
            and GROUP in node.founded.host.replicas
            and node.founded.host.replicas[GROUP].is_leader
        ]
        assert found
        return found[-1]

    @property
    def _order(self) -> list[int]:
        founded = next(node.founded for node in self.world.nodes if node.founded is not None)
        names = [node.name for node in self.world.nodes]
        return [names.index(name) for name in founded.tables[GROUP].members.values()]

    # What lies on the disk of the node that was away.

    def staged(self) -> int:
        """How many chunks."""
        engine, begin = self.away.disk.owner, keys.staged_chunk(GROUP, 0)
        if engine is None:
            return 0
        return sum(1 for _ in engine.scan(RAFT, begin, keys.after(keys.staged(GROUP))))

    def manifest(self) -> Manifest | None:
        engine = self.away.disk.owner
        value = None if engine is None else engine.get(RAFT, keys.staged_transfer(GROUP))
        return None if value is None else msgspec.msgpack.decode(value, type=Manifest)

    def replaced(self) -> bool:
        """The old state is gone, and some chunks of the new one are there."""
        engine, prefix = self.away.disk.owner, keys.group_prefix(GROUP)
        return (
            engine is not None
            and engine.get(DATA, keys.state(GROUP, b"applied")) is None
            and sum(1 for _ in engine.scan(DATA, prefix, keys.after(prefix))) > 100
        )

    def applied_on_disk(self) -> int:
        """While it is down."""
        value = self.away.disk.families.maps[DATA][keys.state(GROUP, b"applied")]
        return int.from_bytes(value[:8], "big")

    def applied(self) -> int | None:
        """Of what it serves."""
        founded = self.away.founded
        replica = None if founded is None else founded.host.replicas.get(GROUP)
        return None if replica is None else replica.applied

    def installed(self) -> int:
        """By this process."""
        return 0 if self.away.founded is None else self.away.founded.incoming.installed

    def frozen(self) -> int:
        return sum(node.cluster.node.outgoing.frozen for node in self.world.nodes if node.founded)

    def is_level(self) -> bool:
        """It has nearly all that is committed, while writes go on."""
        mine, theirs = self.applied(), self.leader.cluster.node.host.replicas[GROUP].applied
        return mine is not None and mine > theirs - 30

    async def comes_level(self) -> None:
        await self.world.until(self.is_level, 30, "the replica is level", every=0.01)


def run(scenario: Scenario, seed: int) -> World:
    async def whole(world: World) -> None:
        watch = Watch(world)
        trial = Trial(world)
        await trial.begin()
        await scenario(trial)
        await trial.end()
        await world.until_ready()
        await world.until(watch.is_level, 30.0, "replicas level, no intent left")
        watch.at_rest(History())
        assert trial.manifest() is None
        assert trial.staged() == 0

    world = simulate(seed, whole, config=CONFIG, faults=NetworkFaults(**FAULTS))
    assert not world.failures, "\n".join(world.failures)
    return world


def test_one_snapshot_is_enough_however_fast_writes_are() -> None:
    """During the transfer more is written than the log may keep; it is kept all the same."""

    async def scenario(trial: Trial) -> None:
        trial.away.start()
        await trial.world.until(lambda: trial.staged() > 0, 10, "it begins", every=0.001)
        before = trial.leader.cluster.node.host.replicas[GROUP].applied
        await trial.world.until(lambda: trial.installed() > 0, 20, "it is taken in", every=0.001)
        written = trial.leader.cluster.node.host.replicas[GROUP].applied - before
        assert written > 2 * CONFIG.raft.log_entries_max
        await asyncio.sleep(1)
        assert trial.frozen() == 1, "another one already"
        await trial.comes_level()
        await asyncio.sleep(2)
        assert trial.is_level()
        assert trial.installed() == trial.frozen() == 1

    run(scenario, 1)


STAGES: Final[dict[str, Callable[[Trial], bool]]] = {
    "begun": lambda trial: trial.manifest() is not None,
    "some-chunks": lambda trial: trial.staged() > 8,
    "marked": lambda trial: (manifest := trial.manifest()) is not None and manifest.replacing,
    "half-replaced": lambda trial: trial.replaced(),
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_crash_of_the_receiver_leaves_the_old_replica_or_the_new_one(stage: str) -> None:
    async def scenario(trial: Trial) -> None:
        before = trial.applied_on_disk()
        trial.away.start()
        await trial.world.until(lambda: STAGES[stage](trial), 20, stage, every=0.000_5)
        await trial.away.crash()
        await asyncio.sleep(0.5)
        trial.away.start()
        await trial.world.until(lambda: trial.applied() is not None, 5, "it serves", every=0.000_5)
        assert (trial.applied() or 0) >= before, "neither the old replica nor the new one"
        await trial.comes_level()
        assert trial.frozen() <= (1 if stage == "some-chunks" else 2), "it went on where it was"

    run(scenario, 2)


@pytest.mark.parametrize("stage", STAGES)
def test_a_crash_of_the_sender_costs_another_snapshot_at_most(stage: str) -> None:
    async def scenario(trial: Trial) -> None:
        trial.away.start()
        await trial.world.until(lambda: STAGES[stage](trial), 20, stage, every=0.000_5)
        leader = trial.leader
        await leader.crash()
        await asyncio.sleep(0.5)
        leader.start()
        await trial.world.until_ready()
        await trial.comes_level()

    run(scenario, 3)


def test_a_power_cut_in_the_middle_of_a_replacement() -> None:
    async def scenario(trial: Trial) -> None:
        trial.away.start()
        await trial.world.until(trial.replaced, 20, "half replaced", every=0.000_5)
        for node in trial.world.nodes:
            await node.crash()
        trial.world.start_all()
        await trial.world.until_ready()
        await trial.comes_level()

    run(scenario, 4)


def test_a_chunk_that_was_damaged_on_its_way_is_not_taken_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    damaged = 0
    call = SimTransport.call

    async def damaging(
        transport: SimTransport, address: str, method: str, body: bytes, *, timeout: float
    ) -> bytes:
        nonlocal damaged
        if method == "snapshot" and damaged < 2:
            request = decode_request(body)
            if isinstance(request, Chunk) and request.number == 3:
                damaged += 1
                pairs = request.pairs[:-1] + bytes([request.pairs[-1] ^ 1])
                body = encode(msgspec.structs.replace(request, pairs=pairs))
        return await call(transport, address, method, body, timeout=timeout)

    monkeypatch.setattr(SimTransport, "call", damaging)

    async def scenario(trial: Trial) -> None:
        trial.away.start()
        await trial.comes_level()
        assert damaged == 2
        assert trial.installed() == 1

    run(scenario, 5)
