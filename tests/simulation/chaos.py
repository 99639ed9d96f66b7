"""What goes wrong in a run, chosen by its seed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Coroutine
from contextlib import suppress
from typing import Any, Final

from cluster_core.cluster import KotobaCluster
from cluster_core.errors import KotobaError, StorageFailed
from tests.simulation.loop import ProcessDied
from tests.simulation.world import RESERVE_BYTES, SimNode, World

__all__ = ["FAR_MS", "Chaos"]

FAR_MS: Final = 3_600_000
"""A clock that is wrong is so by up to an hour."""


class Chaos:
    """Begins one fault after the other, several at a time, and ends all of them in the end.

    Any number of nodes may be down and any link cut at the same time: that costs availability,
    and nothing else may be lost by it.
    """

    def __init__(self, world: World, *, pace: float = 1.0, only: Collection[str] = ()):
        """``only`` restricts it to some kinds of faults, for looking at those closely."""
        self.world = world
        self.pace = pace
        self.random = random.Random(f"{world.seed}/chaos")
        self._under_way: set[asyncio.Task[None]] = set()
        self._wrong: SimNode | None = None
        """Whose clock is far off."""
        self._faults: list[Callable[[], Coroutine[Any, Any, None]]] = [
            self._crash,
            self._crash,
            self._crash_all,
            self._stop_gracefully,
            self._pause,
            self._pause,
            self._isolate,
            self._strand,
            self._cut_one_way,
            self._cut_one_way,
            self._lose_frames,
            self._mute,
            self._stray_frames,
            self._break_streams,
            self._slow_network,
            self._slow_disk,
            self._fill_disk,
            self._break_disk,
            self._jump_clock,
            self._wrong_clock,
            self._transfer_leaderships,
            self._depose_leaders,
        ]
        if len(world.nodes) > world.config.replication_factor:
            self._faults += [*[self._move_replicas] * 4, self._prefer_leader]
        if only:
            known = {fault.__name__[1:] for fault in self._faults}
            assert known.issuperset(only), f"no such fault: {sorted(set(only) - known)}"
            self._faults = [fault for fault in self._faults if fault.__name__[1:] in only]

    async def run(self, until: float) -> None:
        while True:
            await asyncio.sleep(self.random.expovariate(1 / self.pace))
            if self.world.loop.time() >= until:
                return
            fault = self.random.choice(self._faults)
            task = asyncio.ensure_future(fault())
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

    async def end(self) -> None:
        """Let what is under way end, then put everything right."""
        if self._under_way:
            await asyncio.wait(self._under_way)
        self.world.note("all faults end")
        self.world.network.heal_all()
        self.world.network.faults.calm()
        for node in self.world.nodes:
            node.disk.sync_delay = node.normal_sync_delay
            node.empty_disk()
            self._set_clock(node, 0)
        self.world.start_all()

    def _some_node(self) -> SimNode:
        return self.random.choice(self.world.nodes)

    def _some_time(self, longest: float) -> float:
        """Mostly short, sometimes long: both sides of every time-out."""
        return longest * self.random.random() ** 2

    async def _crash(self) -> None:
        node = self._some_node()
        if node.alive:
            await node.crash()
            await asyncio.sleep(self._some_time(6))
            if not node.alive:
                node.start()

    async def _crash_all(self) -> None:
        """The power fails everywhere, sometimes while the disks have fallen behind."""
        if self.random.random() < 0.5:
            source = self.random
            for node in self.world.nodes:
                node.disk.sync_delay = lambda: source.uniform(0.05, 0.5)
            await asyncio.sleep(self._some_time(2))
        for node in self.world.nodes:
            if node.alive:
                await node.crash()
        await asyncio.sleep(self._some_time(1))
        for node in self.world.nodes:
            node.disk.sync_delay = node.normal_sync_delay
            await asyncio.sleep(self._some_time(1))
            if not node.alive:
                node.start()

    async def _stop_gracefully(self) -> None:
        node = self._some_node()
        if node.alive:
            await node.stop()
            await asyncio.sleep(self._some_time(3))
            if not node.alive:
                node.start()

    async def _pause(self) -> None:
        node = self._some_node()
        if node.alive:
            await node.pause(self._some_time(5))

    async def _isolate(self) -> None:
        ways = self._ways_of(self._some_node())
        await self._cut(ways, self._some_time(6), hold=self.random.random() < 0.5)

    async def _strand(self) -> None:
        """Cut off from all or some for as long as it takes to elect others, and no longer: who
        asked the old leaders in between is still waiting when they come back."""
        ways = self._ways_of(self._some_node())
        some = [ways[at : at + 2] for at in range(0, len(ways), 2) if self.random.random() < 0.8]
        ways = [way for both in some for way in both] or ways
        await self._cut(ways, self.random.uniform(0.8, 2.6), hold=False)

    async def _cut_one_way(self) -> None:
        source, target = self.random.sample(self.world.addresses, 2)
        hold = self.random.random() < 0.5
        await self._cut([(source, target)], self._some_time(6), hold=hold)

    def _ways_of(self, node: SimNode) -> list[tuple[str, str]]:
        """All that leads to a node or away from it."""
        others = [other for other in self.world.addresses if other != node.address]
        return [way for other in others for way in ((node.address, other), (other, node.address))]

    async def _cut(self, ways: list[tuple[str, str]], seconds: float, *, hold: bool) -> None:
        network = self.world.network
        for way in ways:
            network.cut(*way, hold=hold)
        await asyncio.sleep(seconds)
        for way in ways:
            network.heal(*way)

    async def _lose_frames(self) -> None:
        faults = self.world.network.faults
        faults.frame_loss_rate = faults.call_loss_rate = self.random.uniform(0.01, 0.3)
        await asyncio.sleep(self._some_time(4))
        faults.frame_loss_rate = faults.call_loss_rate = 0.0

    async def _mute(self) -> None:
        """What a node says as a member of Raft groups is lost until others lead, and what it asks
        and answers is not: it prepares transactions that nobody will ever have prepared."""
        node, network = self._some_node(), self.world.network
        if node.address in network.mute:
            return
        self.world.note(f"{node.name}: its Raft messages are lost")
        network.mute.add(node.address)
        await asyncio.sleep(self.random.uniform(1.5, 3.5))
        network.mute.discard(node.address)

    async def _stray_frames(self) -> None:
        """Raft messages come late, in another order, and twice."""
        faults = self.world.network.faults
        faults.stray_rate = self.random.uniform(0.02, 0.4)
        await asyncio.sleep(self._some_time(4))
        faults.stray_rate = 0.0

    async def _break_streams(self) -> None:
        faults = self.world.network.faults
        faults.break_rate = self.random.uniform(0.001, 0.03)
        await asyncio.sleep(self._some_time(4))
        faults.break_rate = 0.0

    async def _slow_network(self) -> None:
        faults = self.world.network.faults
        faults.slow_rate, faults.slow = self.random.uniform(0.05, 1.0), self.random.uniform(5, 200)
        await asyncio.sleep(self._some_time(4))
        faults.slow_rate = 0.0

    async def _slow_disk(self) -> None:
        node = self._some_node()
        slowest = self.random.choice([0.02, 0.2, 3.0])
        source = self.random
        node.disk.sync_delay = lambda: source.uniform(0, slowest)
        self.world.note(f"{node.name}: syncs take up to {slowest} s")
        await asyncio.sleep(self._some_time(5))
        node.disk.sync_delay = node.normal_sync_delay

    async def _fill_disk(self) -> None:
        """Of one node or of all, to the last byte or not quite, with what it held in reserve or
        without: writes are refused, then fail, and the node opens its store again at the end."""
        everywhere, with_reserve = self.random.random() < 0.2, self.random.random() < 0.4
        nodes = self.world.nodes if everywhere else [self._some_node()]
        free = self.random.choice([0, 300, RESERVE_BYTES // 3])
        for node in nodes:
            node.fill_disk(free, with_reserve=with_reserve)
            self.world.note(f"{node.name}: the disk has {free} bytes left")
        await asyncio.sleep(self._some_time(6))
        for node in nodes:
            node.empty_disk()
            self.world.note(f"{node.name}: the disk has room")

    async def _break_disk(self) -> None:
        """Writes and syncs fail, which is the end of the process; the disk is well after it."""
        node = self._some_node()
        node.disk.fail_writes, node.may_complain = StorageFailed, True
        self.world.note(f"{node.name}: the disk fails")
        await asyncio.sleep(self._some_time(3))
        node.disk.fail_writes = None
        if node.alive:
            await node.crash()
        node.may_complain = False
        await asyncio.sleep(self._some_time(1))
        if not node.alive:
            node.start()

    async def _move_replicas(self) -> None:
        """One partition, a few times: also back, and elsewhere before it has arrived."""
        partition = self.random.randrange(self.world.config.partition_count)
        for _ in range(self.random.randint(1, 4)):

            async def move(cluster: KotobaCluster) -> None:
                here = [one.node_id for one in (await cluster.partition(partition)).replicas]
                others = [node.name for node in self.world.nodes if node.name not in here]
                if not others:
                    return  # it moves already
                source, target = self.random.choice(here), self.random.choice(others)
                await cluster.move_partition(partition, source, target, timeout_ms=1_000)
                self.world.note(f"partition {partition} is to move from {source} to {target}")

            await self._ask(self._some_node(), move)
            await asyncio.sleep(self._some_time(2))

    async def _prefer_leader(self) -> None:
        """Somebody wants another node to lead a partition."""
        partition = self.random.randrange(self.world.config.partition_count)
        node = self._some_node().name

        async def transfer(cluster: KotobaCluster) -> None:
            await cluster.transfer_leadership(partition, node, timeout_ms=1_000)

        await self._ask(self._some_node(), transfer)

    async def _jump_clock(self) -> None:
        """As NTP or an operator sets it, within what nodes take for usual."""
        node = self._some_node()
        milliseconds = self.random.choice([-1, 1]) * self._some_time(400)
        self._set_clock(node, milliseconds)

    async def _wrong_clock(self) -> None:
        """Of one node, far ahead or behind. Two at a time would be a majority."""
        if self._wrong is not None:
            return
        node = self._wrong = self._some_node()
        self._set_clock(node, self.random.choice([-1, 1]) * FAR_MS * self.random.random())
        await asyncio.sleep(self._some_time(6))
        self._set_clock(node, 0)
        self._wrong = None

    def _set_clock(self, node: SimNode, milliseconds: float) -> None:
        self.world.note(f"{node.name}: clock {milliseconds:+.0f} ms")
        node.clock.offset_ms = node.usual_offset_ms + milliseconds

    async def _transfer_leaderships(self) -> None:
        """Of one node, each to some other one, wanted there or not."""
        others = [node.name for node in self.world.nodes]
        targets = {group: self.random.choice(others) for group in self.world.groups}

        async def transfer(cluster: KotobaCluster) -> None:
            host = cluster.node.host
            for group, replica in sorted(host.replicas.items()):
                host.transfer(replica, targets[group])

        await self._ask(self._some_node(), transfer)

    async def _depose_leaders(self) -> None:
        """Again and again some leader steps down, in the middle of whatever it is about."""
        until = self.world.loop.time() + self._some_time(4)
        while self.world.loop.time() < until:
            group = self.random.choice(self.world.groups)

            async def depose(cluster: KotobaCluster, group: int = group) -> None:
                replica = cluster.node.host.replicas.get(group)
                if replica is not None and replica.is_leader:
                    replica.raft.step_down()
                    cluster.node.host.mark(replica)

            for node in self.world.nodes:
                await self._ask(node, depose)
            await asyncio.sleep(self._some_time(0.6))

    async def _ask(
        self, node: SimNode, request: Callable[[KotobaCluster], Coroutine[Any, Any, None]]
    ) -> None:
        if node.alive and node.founded is not None:
            with suppress(ProcessDied, KotobaError):
                await node.ask(request)
