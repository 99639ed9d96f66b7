"""A world of whole cluster nodes under virtual time, and the things that happen to them.

The nodes are the shipped composition, with the ports replaced: their disks, clocks, network and
randomness belong to the world, and all of it hangs on one seed.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import logging
import random
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final, TypeVar

from cluster_core.cluster import KotobaCluster
from cluster_core.config import ClusterConfig, MembershipConfig, RaftConfig, ReplicationConfig
from cluster_core.node.node import ClusterNode
from cluster_core.node.observe import readiness_of
from cluster_core.storage.memory import MemoryDisk, MemoryEngine
from tests.simulation.clock import SimClock
from tests.simulation.loop import Process, ProcessDied, SimLoop
from tests.simulation.network import NetworkFaults, SimNetwork, SimTransport

__all__ = ["RESERVE_BYTES", "SIM_CONFIG", "SimNode", "World", "simulate"]

T = TypeVar("T")

SIM_CONFIG: Final = ClusterConfig(
    partition_count=4,
    raft=RaftConfig(log_keep_entries=8, log_entries_max=60),
    membership=MembershipConfig(),
    replication=ReplicationConfig(snapshot_chunk_bytes=4_000, full_sync_interval_ms=3_000),
)
"""Few partitions: what goes wrong with 64 goes wrong with 4, sixteen times faster."""

_START_TIMEOUT_S: Final = 60.0

RESERVE_BYTES: Final = 20_000
"""Of each disk: some seconds of a cluster's own bookkeeping."""


class SimNode:
    """A machine: its disk and its clock outlive the processes that run on it."""

    def __init__(self, world: World, name: str, address: str):
        self.world = world
        self.name = name
        self.address = address
        self.disk = self._new_disk()
        self.usual_offset_ms = world.random.uniform(-100, 100)
        self.clock = SimClock(world.loop, offset_ms=self.usual_offset_ms)
        self.incarnation = 0
        self.may_complain = False
        """Whether its errors in the log are to be expected: its disk was broken on purpose."""
        self._process: Process | None = None
        self._cluster: KotobaCluster | None = None
        self._engine: MemoryEngine | None = None
        self._transport: SimTransport | None = None
        self._starting: asyncio.Future[None] | None = None

    def normal_sync_delay(self) -> float:
        """Seconds, as of a good disk; long enough for a crash to come in between."""
        return self.world.random.uniform(0.000_2, 0.003)

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.alive

    @property
    def cluster(self) -> KotobaCluster:
        assert self._cluster is not None, f"{self.name} does not run"
        return self._cluster

    @property
    def founded(self) -> ClusterNode | None:
        """The composition inside, once this node belongs to a cluster and while it runs."""
        return None if self._cluster is None else self._cluster.founded

    @property
    def engine(self) -> MemoryEngine:
        assert self._engine is not None, f"{self.name} does not run"
        return self._engine

    def start(self) -> None:
        """Power on: the node begins to form, join or recover."""
        assert not self.alive
        world = self.world
        self.incarnation += 1
        world.note(f"{self.name} starts ({self.incarnation})")
        self._process = Process(f"{self.name}/{self.incarnation}", world.loop)
        self._transport = SimTransport(world.network, self._process, self.address)
        self._cluster = self._process.call(self._compose)
        self._starting = self._process.run(self._cluster.start(self.address))
        self._starting.add_done_callback(self._note_start)

    def _compose(self) -> KotobaCluster:
        world = self.world
        return KotobaCluster(
            self.name,
            world.config,
            peers=world.addresses,
            transport=self._transport,
            clock=self.clock,
            open_engine=self._open_engine,
            random=random.Random(f"{world.seed}/{self.name}/{self.incarnation}"),
        )

    def _open_engine(self) -> MemoryEngine:
        """At the start, and again after the disk was full."""
        self._engine = MemoryEngine(self.disk)
        return self._engine

    def _note_start(self, starting: asyncio.Future[None]) -> None:
        error = None if starting.cancelled() else starting.exception()
        if error is not None and not isinstance(error, ProcessDied):
            self.world.failures.append(f"{self.name} did not start: {error!r}")

    async def crash(self, *, and_all_unsynced: bool = False) -> None:
        """Power off: the process is gone at once, and with it a part of what was not synced, or all
        of it."""
        process, transport = self._running()
        engine = self.disk.owner
        unsynced = "its store closed" if engine is None else f"{engine.unsynced} batches unsynced"
        self.world.note(f"{self.name} crashes, {unsynced}")
        transport.vanish()
        if engine is not None:
            engine.crash(None if and_all_unsynced else self.world.random)
        await self._end(process)

    async def pause(self, seconds: float) -> None:
        """Stop the process for a while, as SIGSTOP does; its peers give up on it in time."""
        process, transport = self._running()
        network, loop = self.world.network, self.world.loop
        self.world.note(f"{self.name} stands still")
        process.freeze()
        silence = network.faults.watchdog * self.world.random.uniform(1.0, 1.2)
        await asyncio.sleep(min(seconds, silence))
        if seconds > silence and process.alive:
            network.give_up_on(self.address)
            await asyncio.sleep(seconds - silence)
        if process.alive:
            self.world.note(f"{self.name} goes on")
            transport.deaf_until = loop.time() + self.world.random.uniform(0, 0.02)
            loop.thaw(process)

    async def stop(self) -> None:
        """A graceful stop, as by SIGTERM."""
        process, transport = self._running()
        self.world.note(f"{self.name} stops")
        try:
            await process.run(self.cluster.stop())
        except ProcessDied:
            return
        transport.vanish()
        await self._end(process)

    def _running(self) -> tuple[Process, SimTransport]:
        assert self._process is not None
        assert self._transport is not None
        return self._process, self._transport

    def fill_disk(self, free_bytes: int, *, with_reserve: bool) -> None:
        """Somebody else takes what room there is, and leaves ``free_bytes``: beside what the node
        holds in reserve, or of that."""
        engine, disk = self.disk.owner, self.disk
        used = disk.families.size if engine is None else engine.disk_bytes()
        held = 0 if with_reserve else disk.reserve.held
        disk.capacity_bytes = used + held + free_bytes

    def empty_disk(self) -> None:
        self.disk.capacity_bytes = 1 << 40

    def replace_disk(self) -> None:
        """The machine gets a new disk, with nothing on it."""
        assert not self.alive
        self.world.note(f"{self.name} gets a new disk")
        self.disk = self._new_disk()

    def _new_disk(self) -> MemoryDisk:
        return MemoryDisk(sync_delay=self.normal_sync_delay, reserve_bytes=RESERVE_BYTES)

    async def _end(self, process: Process) -> None:
        self._cluster = self._engine = self._transport = None
        await process.kill()

    async def ask(self, request: Callable[[KotobaCluster], Coroutine[Any, Any, T]]) -> T:
        """Run a request inside the node. Raises ProcessDied when it is, or gets, down."""
        if not self.alive:
            raise ProcessDied(self.name)
        assert self._process is not None
        return await self._process.run(request(self.cluster))


class World:
    """Nodes, network, and what is written down about a run."""

    def __init__(
        self,
        loop: SimLoop,
        seed: int,
        *,
        nodes: int = 3,
        config: ClusterConfig = SIM_CONFIG,
        faults: NetworkFaults | None = None,
    ):
        self.loop = loop
        self.seed = seed
        self.config = config
        self.random = random.Random(seed)
        self.trace: list[str] = []
        self.failures: list[str] = []
        self.network = SimNetwork(loop, random.Random(f"{seed}/network"), faults, self.note)
        self.addresses = [f"node{number}:1" for number in range(1, nodes + 1)]
        self.nodes = [
            SimNode(self, f"node{number}", address)
            for number, address in enumerate(self.addresses, start=1)
        ]

    @property
    def groups(self) -> range:
        """The numbers of all Raft groups: the meta group's, and one for each partition."""
        return range(self.config.partition_count + 1)

    def note(self, text: str) -> None:
        self.trace.append(f"{self.loop.time():10.6f} {text}")

    def fingerprint(self) -> str:
        """Two runs of one seed have the same; a difference means that something is not under it."""
        return hashlib.sha256("\n".join(self.trace).encode()).hexdigest()

    def start_all(self) -> None:
        for node in self.nodes:
            if not node.alive:
                node.start()

    async def until_ready(self, timeout: float = _START_TIMEOUT_S) -> None:
        """Every node runs and says that it is ready."""
        for node in self.nodes:
            await self.until(partial(_is_ready, node), timeout, f"{node.name} ready")

    async def until(
        self, condition: Callable[[], bool], timeout: float, what: str, every: float = 0.05
    ) -> None:
        deadline = self.loop.time() + timeout
        while not condition():
            assert self.loop.time() < deadline, f"not within {timeout} s of virtual time: {what}"
            await asyncio.sleep(every)

    async def close(self) -> None:
        for node in self.nodes:
            if node.alive:
                await node.crash()


class _Complaints(logging.Handler):
    """What a node logs as an error while its disk is well is a bug, and fails the run."""

    def __init__(self, world: World):
        super().__init__(logging.ERROR)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        process = Process.current()
        if process is None or not process.alive:
            return
        node = next(one for one in self._world.nodes if process.name.startswith(f"{one.name}/"))
        if not node.may_complain:
            trace = logging.Formatter().format(record)
            self._world.failures.append(f"{process.name} logs: {trace}")


def _is_ready(node: SimNode) -> bool:
    return node.alive and readiness_of(node.cluster.observed).is_ready


def simulate(
    seed: int,
    scenario: Callable[[World], Coroutine[Any, Any, None]],
    *,
    nodes: int = 3,
    config: ClusterConfig = SIM_CONFIG,
    faults: NetworkFaults | None = None,
) -> World:
    """Run ``scenario`` in a new world; its end, and whatever failed silently, is checked here."""
    loop = SimLoop()
    world = World(loop, seed, nodes=nodes, config=config, faults=faults)

    async def run() -> None:
        try:
            await scenario(world)
        finally:
            await world.close()

    complaints = _Complaints(world)
    logging.getLogger().addHandler(complaints)
    try:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(run())
        gc.collect()
    finally:
        logging.getLogger().removeHandler(complaints)
    world.failures += loop.failures
    return world
