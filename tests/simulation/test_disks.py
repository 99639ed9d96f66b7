"""Disks that are full, slow or broken: what the node does, and that it comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

import pytest

from cluster_core.cluster import KotobaCluster
from cluster_core.errors import KotobaError, NoLeader, OutcomeUnknown, StorageFailed, StorageFull
from cluster_core.events import ClusterEvent
from cluster_core.graph.operations import CreateNode, OperationResult
from cluster_core.query.plan import Get
from tests.simulation.watch import Watch
from tests.simulation.workload import History
from tests.simulation.world import RESERVE_BYTES, SimNode, World, simulate

pytestmark = pytest.mark.simulation

LOOK_S: Final = 0.6
"""In which a node looks at its disk and tells the others."""

Scenario = Callable[[World], Coroutine[Any, Any, None]]


async def create(node: SimNode, timeout_ms: int = 2_000) -> OperationResult:
    operation = CreateNode(labels=("Thing",), properties={})
    return await node.ask(
        lambda cluster: cluster.execute_operation(operation, timeout_ms=timeout_ms)
    )


async def is_there(node: SimNode, digest: bytes) -> bool:
    query = Get(cids=(digest,))
    result = await node.ask(lambda cluster: cluster.execute_query(query, timeout_ms=2_000))
    return len(result.rows) == 1


async def create_until(node: SimNode, wanted: type[KotobaError], count_max: int = 500) -> int:
    """Create until it is refused with ``wanted``; how many were."""
    for count in range(count_max):
        try:
            await create(node)
        except wanted:
            return count
        except OutcomeUnknown:
            pass
    raise AssertionError(f"{count_max} writes were taken by a disk without room")


async def eventually_creates(node: SimNode, within: float) -> OperationResult:
    deadline = node.world.loop.time() + within
    while True:
        try:
            return await create(node)
        except KotobaError:
            assert node.world.loop.time() < deadline, f"no write within {within} s"
            await asyncio.sleep(0.05)


def leads(node: SimNode) -> int:
    return sum(replica.is_leader for replica in node.cluster.node.host.replicas.values())


def storage_state(node: SimNode) -> str:
    return node.cluster.observed.storage_state


class Events:
    """The types and nodes of the storage events that a node publishes."""

    def __init__(self, cluster: KotobaCluster) -> None:
        self._subscription = cluster.subscribe_events({"StorageFull", "StorageRecovered"})
        self.seen: list[tuple[str, str]] = []
        self._task = asyncio.ensure_future(self._gather())

    async def _gather(self) -> None:
        async for event in self._subscription:
            assert isinstance(event, ClusterEvent)
            self.seen.append((event.type, event.node_id))


def run(scenario: Scenario, seed: int, *, complaint: str = "") -> None:
    """The scenario among three nodes; every invariant is looked at, on the way and at its end.
    ``complaint``: what nodes should log as an error."""

    async def whole(world: World) -> None:
        watch = Watch(world)
        world.start_all()
        await world.until_ready()
        await scenario(world)
        await world.until_ready()
        await world.until(watch.is_level, 30.0, "replicas level, no intent left")
        watch.at_rest(History())

    world = simulate(seed, whole)
    if complaint:
        assert world.failures
        world.failures = [one for one in world.failures if complaint not in one]
    assert not world.failures, "\n".join(world.failures)


@pytest.mark.parametrize("seed", [1, 2])
def test_full_disks_refuse_writes_keep_reads_and_clear_themselves(seed: int) -> None:
    async def scenario(world: World) -> None:
        nodes = world.nodes
        made = await create(nodes[0])
        events = Events(nodes[1].cluster)
        for node in nodes:
            node.fill_disk(RESERVE_BYTES // 2 - 1, with_reserve=False)
        await asyncio.sleep(LOOK_S)
        for node in nodes:
            assert storage_state(node) == "full"
            assert node.cluster.observed.has_replicas
            with pytest.raises(StorageFull):
                await create(node)
            assert await is_there(node, made.digest)
        await asyncio.sleep(10)  # the cluster lives from its reserve
        assert all([await is_there(node, made.digest) for node in nodes])
        for node in nodes:
            node.empty_disk()
        await asyncio.sleep(LOOK_S)
        for node in nodes:
            await create(node)
        names = [node.name for node in nodes]
        assert sorted(events.seen[:3]) == [("StorageFull", name) for name in names]
        assert sorted(events.seen[3:]) == [("StorageRecovered", name) for name in names]

    run(scenario, seed)


def test_leaderships_leave_a_full_disk_and_no_write_is_refused() -> None:
    async def scenario(world: World) -> None:
        full = world.nodes[0]
        await world.until(lambda: leads(full) > 0, 5, "it leads something")
        full.fill_disk(RESERVE_BYTES // 2 - 1, with_reserve=False)
        await asyncio.sleep(LOOK_S)
        await world.until(lambda: leads(full) == 0, 5, "it leads nothing")
        for node in world.nodes:
            for _ in range(8):
                await create(node)
        full.empty_disk()
        await world.until(lambda: leads(full) > 0, 10, "its leaderships are back")

    run(scenario, 3)


@pytest.mark.parametrize("seed", [4, 5, 6, 7])
def test_a_node_that_could_not_write_rebuilds_itself_from_its_disk(seed: int) -> None:
    """What failed is undetermined, and only what the disk shows counts afterwards."""

    async def scenario(world: World) -> None:
        full, other = world.nodes[0], world.nodes[1]
        events = Events(full.cluster)
        made = [await create(other) for _ in range(10)]
        composition = full.cluster.node
        full.fill_disk(0, with_reserve=True)
        await world.until(lambda: not full.cluster.observed.has_replicas, 10, "a write fails")
        assert storage_state(full) == "full"
        made.append(await eventually_creates(other, within=2.5))
        made.append(await eventually_creates(full, within=2.5))  # through the others
        assert await is_there(full, made[-1].digest)
        assert not (await full.ask(lambda cluster: cluster.readiness())).is_ready
        await asyncio.sleep(7)
        full.empty_disk()
        await world.until(lambda: full.cluster.observed.has_replicas, 10, "it is rebuilt")
        assert full.cluster.node is not composition
        assert full.alive
        for result in made:
            assert await is_there(full, result.digest)
        await asyncio.sleep(LOOK_S)
        assert events.seen == [("StorageFull", full.name), ("StorageRecovered", full.name)]
        await world.until(lambda: leads(full) > 0, 10, "its leaderships are back")

    run(scenario, seed)


def test_all_disks_filled_to_the_last_byte_lose_nothing() -> None:
    async def scenario(world: World) -> None:
        made = [await create(node) for node in world.nodes]
        for node in world.nodes:
            node.fill_disk(0, with_reserve=True)
        await asyncio.sleep(8)
        for node in world.nodes:
            assert storage_state(node) == "full"
            with pytest.raises((NoLeader, OutcomeUnknown, StorageFull)):
                await create(node, timeout_ms=200)
        for node in world.nodes:
            node.empty_disk()
        await world.until_ready()
        for node in world.nodes:
            for result in made:
                assert await is_there(node, result.digest)
            await create(node)

    run(scenario, 8)


@pytest.mark.parametrize("free_bytes", [0, RESERVE_BYTES // 4])
def test_a_node_that_starts_on_a_full_disk_waits_and_comes_back(free_bytes: int) -> None:
    async def scenario(world: World) -> None:
        full, other = world.nodes[2], world.nodes[0]
        made = await create(other)
        await full.crash()
        full.fill_disk(free_bytes, with_reserve=True)
        full.start()
        await asyncio.sleep(5)
        assert storage_state(full) == "full"
        assert (await full.ask(lambda cluster: cluster.get_status())).storage.state == "full"
        if free_bytes:
            assert await is_there(full, made.digest)
        else:
            with pytest.raises(KotobaError, match="no space"):
                await is_there(full, made.digest)
        await create(other)
        full.empty_disk()
        await world.until(lambda: storage_state(full) == "ok", 10, "it is back")

    run(scenario, 9)


def test_a_new_node_on_a_full_disk_founds_its_cluster_when_there_is_room() -> None:
    async def scenario(world: World) -> None:
        for node in world.nodes:
            node.fill_disk(0, with_reserve=True)
        world.start_all()
        await asyncio.sleep(5)
        assert all(node.cluster.founded is None for node in world.nodes)
        for node in world.nodes:
            node.empty_disk()
        await world.until_ready()
        await create(world.nodes[0])

    world = simulate(10, scenario)
    assert not world.failures, "\n".join(world.failures)


def test_a_disk_that_stands_still_costs_its_node_the_leaderships_and_no_write() -> None:
    async def scenario(world: World) -> None:
        slow, other = world.nodes[0], world.nodes[1]
        await world.until(lambda: leads(slow) > 0, 5, "it leads something")
        raft = world.config.raft
        election_s = raft.tick_ms * raft.election_ticks / 1000
        slow.disk.sync_delay = lambda: 20.0
        began = world.loop.time()
        made = [await eventually_creates(other, within=3 * election_s) for _ in range(20)]
        await world.until(lambda: leads(slow) == 0, 2 * election_s, "it gives up what it leads")
        assert world.loop.time() - began < 4 * election_s
        slow.disk.sync_delay = slow.normal_sync_delay
        await asyncio.sleep(21)
        for result in made:
            assert await is_there(slow, result.digest)
        await world.until(lambda: leads(slow) > 0, 10, "its leaderships are back")

    run(scenario, 11)


def test_a_failed_sync_is_final_for_the_process_which_passes_requests_on() -> None:
    async def scenario(world: World) -> None:
        broken, other = world.nodes[0], world.nodes[1]
        made = await create(other)
        broken.disk.fail_writes = StorageFailed
        await world.until(lambda: not broken.cluster.observed.has_replicas, 10, "a sync fails")
        broken.disk.fail_writes = None
        await eventually_creates(other, within=2.5)
        await asyncio.sleep(20)
        assert storage_state(broken) == "failed"
        assert await is_there(broken, made.digest)
        await create(broken)
        health = await broken.ask(lambda cluster: cluster.check_health())
        assert health.reasons == [f"the disk of {broken.name} failed"]
        assert not health.can_serve
        elsewhere = await other.ask(lambda cluster: cluster.check_health())
        assert elsewhere.reasons == health.reasons
        assert elsewhere.can_serve
        await broken.stop()
        broken.start()

    run(scenario, 12, complaint="the disk of this node takes nothing: the disk failed")
