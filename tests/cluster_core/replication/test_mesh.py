"""Requests between two nodes, over a transport that delivers at once."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from cluster_core.errors import NoLeader, NotFound, OutcomeUnknown
from cluster_core.hlc import HybridClock
from cluster_core.ports import Transport
from cluster_core.replication.mesh import RAFT_FRAME_BYTES, Mesh
from cluster_core.replication.pace import Pace
from cluster_core.types import NodeId
from cluster_core.wire.messages import Append, Entry, Heartbeat, Message


class StoppedClock:
    def wall_ms(self) -> int:
        return 1_000

    def steady_s(self) -> float:
        return 0.0


class Wire:
    """The transport of one node, with a wire to the mesh of the other."""

    def __init__(self, node_id: NodeId) -> None:
        self.node_id = node_id
        self.other: Mesh | None = None

    def send(self, peer: NodeId, frame: bytes) -> None:
        if self.other is not None:
            asyncio.get_running_loop().call_soon(self.other.on_frames, self.node_id, [frame])


def pair(heard: list[Any] | None = None) -> tuple[Mesh, Mesh]:
    """``heard``: where Raft messages go; by default there may be none."""
    wires = Wire("a"), Wire("b")
    meshes = [_mesh(wire, heard) for wire in wires]
    wires[0].other, wires[1].other = meshes[1], meshes[0]
    meshes[0].on_peer_up("b")
    meshes[1].on_peer_up("a")
    return meshes[0], meshes[1]


def _mesh(wire: Wire, heard: list[Any] | None) -> Mesh:
    def on_messages(_peer: NodeId, messages: list[Any]) -> None:
        assert heard is not None
        heard.extend(messages)

    clock = HybridClock(StoppedClock())
    return Mesh(wire.node_id, clock, cast("Transport", wire), Pace(), on_messages)


class Slow:
    """A handler that waits until it is told to go on, and notes how it ended."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.go_on = asyncio.Event()
        self.cancelled = False

    async def __call__(self, _peer: NodeId, body: bytes) -> bytes:
        self.began.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return body


async def test_an_answer_or_an_error_comes_back() -> None:
    a, b = pair()

    async def echo(peer: NodeId, body: bytes) -> bytes:
        if not body:
            raise NotFound("nothing was said", cid="x")
        return peer.encode() + body

    b.handle("echo", echo)
    assert await a.request("b", "echo", b"1", timeout=5) == b"a1"
    with pytest.raises(NotFound, match="nothing was said"):
        await a.request("b", "echo", b"", timeout=5)


async def test_a_lost_peer_leaves_requests_unknown_and_refuses_new_ones() -> None:
    a, b = pair()
    slow = Slow()
    b.handle("slow", slow)
    asking = asyncio.ensure_future(a.request("b", "slow", b"", timeout=5))
    await slow.began.wait()
    a.on_peer_down("b")
    with pytest.raises(OutcomeUnknown):
        await asking
    with pytest.raises(NoLeader):
        await a.request("b", "slow", b"", timeout=5)
    await b.close()


async def _asked(cancellable: bool) -> tuple[Mesh, Mesh, Slow, asyncio.Task[bytes]]:
    a, b = pair()
    slow = Slow()
    a.handle("slow", slow, cancellable=cancellable)
    b.handle("slow", slow, cancellable=cancellable)
    asking = asyncio.ensure_future(a.request("b", "slow", b"", timeout=5))
    await slow.began.wait()
    return a, b, slow, asking


async def _turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_who_gives_up_waiting_ends_the_work_at_the_other_node() -> None:
    _, _, slow, asking = await _asked(cancellable=True)
    asking.cancel()
    await _turns()
    assert slow.cancelled


async def test_work_for_a_lost_peer_is_given_up() -> None:
    _, b, slow, asking = await _asked(cancellable=True)
    b.on_peer_down("a")
    await _turns()
    assert slow.cancelled
    asking.cancel()


async def test_what_must_not_end_half_way_goes_on() -> None:
    _, b, slow, asking = await _asked(cancellable=False)
    asking.cancel()
    await _turns()
    b.on_peer_down("a")
    await _turns()
    assert not slow.cancelled
    await b.close()


async def test_what_a_broken_stream_still_delivers_is_no_raft_message() -> None:
    """A late heartbeat would make a leader again of one that is being replaced."""
    heard: list[Any] = []
    a, b = pair(heard)
    beat = Heartbeat(1, 1, 2, 1, 0, 0)
    b.on_peer_down("a")
    a.send_messages("b", [beat])
    await asyncio.sleep(0.01)
    assert heard == []
    b.on_peer_up("a")
    a.send_messages("b", [beat])
    await asyncio.sleep(0.01)
    assert heard == [beat]


async def test_a_node_that_lacks_much_in_every_group_gets_frames_of_a_moderate_size() -> None:
    heard: list[Any] = []
    a, _ = pair(heard)
    sizes: list[int] = []
    send = a._transport.send

    def weigh(peer: str, frame: bytes) -> None:
        sizes.append(len(frame))
        send(peer, frame)

    a._transport.send = weigh  # type: ignore[method-assign]
    entry = Entry(1, 1, bytes(1 << 20))
    messages: list[Message] = [Append(group, 1, 2, 1, 0, 0, 0, (entry,)) for group in range(1, 65)]
    a.send_messages("b", messages)
    await asyncio.sleep(0.01)
    assert max(sizes) <= RAFT_FRAME_BYTES
    assert heard == messages
