"""The simulated network keeps its promises, and breaks what it may break."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from cluster_core.errors import Refused, Unreachable
from cluster_core.replication.mesh import RAFT, REQUEST
from tests.simulation.loop import Process, SimLoop
from tests.simulation.network import NetworkFaults, SimNetwork, SimTransport


class Node:
    """A receiver that writes down what it is told."""

    def __init__(self, world: Mesh, name: str):
        self.name = name
        self.process = Process(name, world.loop)
        self.transport = SimTransport(world.network, self.process, name)
        self.frames: list[tuple[str, bytes]] = []
        self.chunks: list[int] = []
        self.ups: list[str] = []
        self.downs: list[str] = []
        self.calls = 0

    async def start(self, peers: list[str], cluster_id: str = "c") -> None:
        await self.transport.listen(self.name, self)
        self.transport.identify(cluster_id=cluster_id, node_id=self.name, store_id="s")
        self.transport.set_peers({peer: peer for peer in peers})

    async def crash(self) -> None:
        self.transport.vanish()
        await self.process.kill()

    def on_frames(self, peer: str, frames: list[bytes]) -> None:
        self.frames += [(peer, frame) for frame in frames]
        self.chunks.append(len(frames))

    def on_peer_up(self, peer: str) -> None:
        self.ups.append(peer)

    def on_peer_down(self, peer: str) -> None:
        self.downs.append(peer)

    async def on_call(self, method: str, body: bytes) -> bytes:
        self.calls += 1
        if method == "refuse":
            raise Refused("another cluster", why="test")
        if method == "hang":
            await asyncio.sleep(1000)
        return method.encode() + b":" + body


class Mesh:
    def __init__(self, loop: SimLoop, faults: NetworkFaults | None = None, seed: int = 1):
        self.loop = loop
        self.network = SimNetwork(loop, random.Random(seed), faults)
        self.trace: list[str] = []
        self.nodes: list[Node] = []
        self.network.trace = lambda text: self.trace.append(f"{loop.time():.6f} {text}")

    def node(self, name: str) -> Node:
        node = Node(self, name)
        self.nodes.append(node)
        return node

    async def pair(self) -> tuple[Node, Node]:
        a, b = self.node("a"), self.node("b")
        await a.start(["a", "b"])
        await b.start(["a", "b"])
        await asyncio.sleep(1)
        return a, b


def simulate(
    main: Callable[[Mesh], Coroutine[Any, Any, None]],
    faults: NetworkFaults | None = None,
    seed: int = 1,
) -> Mesh:
    loop = SimLoop()
    mesh = Mesh(loop, faults, seed)

    async def run() -> None:
        await main(mesh)
        for node in mesh.nodes:
            await node.crash()

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(run())
    assert loop.failures == []
    return mesh


def test_frames_arrive_in_order_and_those_of_one_turn_in_one_chunk() -> None:
    async def main(mesh: Mesh) -> None:
        a, b = await mesh.pair()
        assert a.ups == ["b"]
        assert b.ups == ["a"]
        for number in range(50):
            a.transport.send("b", b"%d" % number)
            a.transport.send("b", b"%d again" % number)
            await asyncio.sleep(0)
        await asyncio.sleep(1)
        expected = [frame for n in range(50) for frame in (b"%d" % n, b"%d again" % n)]
        assert b.frames == [("a", frame) for frame in expected]
        assert b.chunks == [2] * 50

    simulate(main)


def test_frames_are_dropped_before_the_stream_stands_and_to_strangers() -> None:
    async def main(mesh: Mesh) -> None:
        a, b = mesh.node("a"), mesh.node("b")
        await a.start(["b"])
        a.transport.send("b", b"too early")
        a.transport.send("stranger", b"?")
        await asyncio.sleep(1)
        assert a.ups == []
        await b.start(["a"])
        await asyncio.sleep(1)
        a.transport.send("b", b"in time")
        await asyncio.sleep(1)
        assert b.frames == [("a", b"in time")]

    simulate(main)


def test_nodes_of_different_clusters_do_not_connect() -> None:
    async def main(mesh: Mesh) -> None:
        a, b = mesh.node("a"), mesh.node("b")
        await a.start(["b"], cluster_id="one")
        await b.start(["a"], cluster_id="two")
        await asyncio.sleep(10)
        assert a.ups == b.ups == []

    simulate(main)


def test_a_crash_is_heard_within_milliseconds_and_a_new_process_is_connected() -> None:
    async def main(mesh: Mesh) -> None:
        a, b = await mesh.pair()
        a.transport.send("b", b"last words")
        await asyncio.sleep(0)
        await a.crash()
        await asyncio.sleep(0.01)
        assert set(b.downs) == {"a"}
        a.transport.send("b", b"from the dead")
        reborn = mesh.node("a")
        await reborn.start(["b"])
        await asyncio.sleep(2)
        assert reborn.ups == ["b"]
        assert b.ups == ["a", "a"]
        reborn.transport.send("b", b"hello again")
        await asyncio.sleep(1)
        assert b.frames[-1] == ("a", b"hello again")
        assert ("a", b"from the dead") not in b.frames
        assert a.downs == []

    simulate(main)


def test_a_broken_stream_loses_a_suffix_and_both_ends_hear_of_it() -> None:
    async def main(mesh: Mesh) -> None:
        a, b = await mesh.pair()
        for number in range(2000):
            a.transport.send("b", number.to_bytes(2, "big"))
            await asyncio.sleep(0.001)
        await asyncio.sleep(5)
        numbers = [int.from_bytes(frame, "big") for _, frame in b.frames]
        assert numbers == sorted(set(numbers))
        assert 100 < len(numbers) < 2000
        assert "b" in a.downs
        assert "a" in b.downs
        assert len(a.ups) >= 2

    simulate(main, NetworkFaults(break_rate=0.01))


def test_single_frames_vanish_without_notice() -> None:
    async def main(mesh: Mesh) -> None:
        a, b = await mesh.pair()
        for number in range(1000):
            a.transport.send("b", number.to_bytes(2, "big"))
            await asyncio.sleep(0.001)
        await asyncio.sleep(1)
        assert 800 < len(b.frames) < 1000
        assert a.downs == b.downs == []

    simulate(main, NetworkFaults(frame_loss_rate=0.05))


@pytest.mark.parametrize("way", [("a", "b"), ("b", "a")])
def test_a_one_way_cut_takes_both_streams_down_after_the_watchdog(way: tuple[str, str]) -> None:
    async def main(mesh: Mesh) -> None:
        a, b = await mesh.pair()
        mesh.network.cut(*way)
        for source, target in ((a, "b"), (b, "a")):
            source.transport.send(target, b"hello")
        await asyncio.sleep(1)
        blind, seeing = (b, a) if way == ("a", "b") else (a, b)
        assert blind.frames == []
        assert len(seeing.frames) == 1
        assert a.downs == b.downs == []
        await asyncio.sleep(2)
        assert set(a.downs) == {"b"}
        assert set(b.downs) == {"a"}
        await asyncio.sleep(10)
        assert len(a.ups) == len(b.ups) == 1
        mesh.network.heal_all()
        await asyncio.sleep(2)
        assert len(a.ups) == len(b.ups) == 2
        assert blind.frames == []

    simulate(main)


def test_a_short_cut_that_holds_delivers_late_and_in_order() -> None:
    async def main(mesh: Mesh) -> None:
        a, b = await mesh.pair()
        mesh.network.cut("a", "b", hold=True)
        for number in range(3):
            a.transport.send("b", b"%d" % number)
            await asyncio.sleep(0.1)
        assert b.frames == []
        mesh.network.heal("a", "b")
        a.transport.send("b", b"3")
        await asyncio.sleep(1)
        assert [frame for _, frame in b.frames] == [b"0", b"1", b"2", b"3"]
        assert a.downs == b.downs == []

    simulate(main)


def test_a_peer_that_is_taken_off_the_list_is_disconnected() -> None:
    async def main(mesh: Mesh) -> None:
        a, b = await mesh.pair()
        a.transport.set_peers({})
        await asyncio.sleep(1)
        a.transport.send("b", b"?")
        await asyncio.sleep(1)
        assert b.frames == []
        assert len(a.ups) == 1

    simulate(main)


def test_calls_answer_refuse_and_fail() -> None:
    async def main(mesh: Mesh) -> None:
        a, b = mesh.node("a"), mesh.node("b")
        await b.transport.listen("b", b)
        assert await a.transport.call("b", "echo", b"x", timeout=1) == b"echo:x"
        with pytest.raises(Refused) as refusal:
            await a.transport.call("b", "refuse", b"", timeout=1)
        assert refusal.value.extra == {"why": "test"}
        with pytest.raises(Unreachable):
            await a.transport.call("nowhere", "echo", b"", timeout=1)
        started = mesh.loop.time()
        with pytest.raises(Unreachable):
            await a.transport.call("b", "hang", b"", timeout=2)
        assert mesh.loop.time() == pytest.approx(started + 2)
        for way in (("a", "b"), ("b", "a")):
            mesh.network.cut(*way)
            with pytest.raises(Unreachable):
                await a.transport.call("b", "echo", b"", timeout=2)
            mesh.network.heal(*way)
        # refused, echoed and hung, and the call whose answer was lost was executed as well
        assert b.calls == 4

    simulate(main)


def test_a_call_to_a_node_that_crashes_is_unreachable() -> None:
    async def main(mesh: Mesh) -> None:
        a, b = mesh.node("a"), mesh.node("b")
        await b.transport.listen("b", b)
        asking = asyncio.create_task(a.transport.call("b", "hang", b"", timeout=9))
        await asyncio.sleep(1)
        await b.crash()
        with pytest.raises(Unreachable):
            await asking

    simulate(main)


def test_the_same_seed_gives_the_same_run() -> None:
    async def main(mesh: Mesh) -> None:
        nodes = [mesh.node(name) for name in "abc"]
        for node in nodes:
            await node.start(list("abc"))
        for number in range(300):
            for node in nodes:
                for peer in "abc":
                    node.transport.send(peer, b"%d" % number)
            await asyncio.sleep(0.001)
            if number == 100:
                mesh.network.cut("a", "b")
            if number == 200:
                mesh.network.heal_all()
        for node in nodes:
            mesh.network.trace(f"{node.name} {node.frames} {node.ups} {node.downs}")

    faults = {"frame_loss_rate": 0.1, "break_rate": 0.02, "slow_rate": 0.1}
    first, again, other = (
        simulate(main, NetworkFaults(**faults), seed=seed).trace for seed in (5, 5, 6)
    )
    assert first == again
    assert first != other


def test_raft_messages_may_stray_and_requests_may_not() -> None:
    async def main(mesh: Mesh) -> None:
        a, b = await mesh.pair()
        mesh.network.faults.stray_rate = 0.5
        messages = [bytes((0x94, RAFT, number)) for number in range(100)]
        requests = [bytes((0x94, REQUEST, number)) for number in range(100)]
        for message, request in zip(messages, requests, strict=True):
            a.transport.send("b", message)
            a.transport.send("b", request)
            await asyncio.sleep(0.001)
        await asyncio.sleep(2)
        arrived = [frame for _, frame in b.frames]
        assert [frame for frame in arrived if frame[1] == REQUEST] == requests
        strayed = [frame for frame in arrived if frame[1] == RAFT]
        assert set(strayed) == set(messages)
        assert len(strayed) > len(messages)
        assert list(dict.fromkeys(strayed)) != messages

    simulate(main)
