"""A wall clock is believed while it agrees with those of the peers, and no longer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from cluster_core.errors import NoLeader
from cluster_core.node.clock_watch import ROUND_EVERY_S, BelievedWall, ClockWatch

MINUTE_MS = 60_000


class Wall:
    def __init__(self, offset_ms: int = 0) -> None:
        self.offset_ms = offset_ms
        self.passed_s = 0.0

    def wall_ms(self) -> int:
        return 1_000_000 + self.offset_ms

    def steady_s(self) -> float:
        return self.passed_s


class FakeMesh:
    """Asks the handlers of the other nodes directly; ``lost``: names that do not answer."""

    def __init__(self, node_id: str) -> None:
        self.node_id = node_id
        self.peers: frozenset[str] = frozenset()
        self.nodes: dict[str, FakeMesh] = {}
        self.lost: set[str] = set()
        self.told: list[str] = []
        self.handlers: dict[str, Callable[[str, bytes], Awaitable[bytes]]] = {}

    def handle(self, method: str, handler: Callable[[str, bytes], Awaitable[bytes]]) -> None:
        self.handlers[method] = handler

    async def request(self, peer: str, method: str, body: bytes, *, timeout: float) -> bytes:
        if peer in self.lost:
            raise NoLeader("no connection")
        return await self.nodes[peer].handlers[method](self.node_id, body)

    def tell(self, peer: str, method: str, body: bytes) -> None:
        self.told.append(peer)


class Node:
    def __init__(self, name: str, size: int, offset_ms: int) -> None:
        self.name = name
        self.real = Wall(offset_ms)
        self.wall = BelievedWall(self.real)
        self.mesh = FakeMesh(name)
        self.believed = 0
        self.watch = ClockWatch(
            self.wall,
            self.mesh,  # type: ignore[arg-type]
            size=size,
            offset_ms_max=500,
            on_believed=self._note,
        )
        self.looks = 0

    def _note(self) -> None:
        self.believed += 1

    async def look(self) -> None:
        self.looks += 1
        self.watch.look(self.looks * ROUND_EVERY_S)
        await asyncio.gather(*self.watch._rounds)


def cluster(*offsets_ms: int) -> list[Node]:
    nodes = [Node(f"n{number}", len(offsets_ms), ms) for number, ms in enumerate(offsets_ms)]
    meshes = {node.name: node.mesh for node in nodes}
    for node in nodes:
        node.mesh.nodes = meshes
        node.mesh.peers = frozenset(meshes) - {node.name}
    return nodes


async def test_clocks_that_agree_are_believed() -> None:
    nodes = cluster(0, 300, -200)
    for node in nodes:
        assert node.wall.wall_ms() == 0
        await node.look()
        assert node.wall.wall_ms() == node.real.wall_ms()
        assert node.watch.ahead_ms() == {}
        assert node.believed == 1


async def test_a_node_without_peers_believes_itself() -> None:
    (node,) = cluster(MINUTE_MS)
    assert node.wall.wall_ms() == node.real.wall_ms()


async def test_a_clock_that_starts_far_ahead_gives_no_time_and_says_so() -> None:
    wrong, *others = cluster(MINUTE_MS, 0, 0)
    for node in (wrong, *others):
        await node.look()
    assert wrong.mesh.told == ["n1", "n2"]
    await wrong.look()
    assert wrong.wall.wall_ms() == 0
    assert wrong.watch.own_ahead_ms == MINUTE_MS
    for node in others:
        assert node.wall.is_believed
        assert node.watch.own_ahead_ms == 0
        assert node.watch.ahead_ms() == {"n0": MINUTE_MS}
    wrong.real.offset_ms = 0
    await wrong.look()
    await wrong.look()
    assert wrong.wall.wall_ms() == wrong.real.wall_ms()
    assert others[0].watch.ahead_ms() == {}


async def test_a_clock_that_is_set_ahead_is_not_followed() -> None:
    wrong, *_ = cluster(0, 0, 0)
    await wrong.look()
    wrong.real.offset_ms = MINUTE_MS
    wrong.real.passed_s = 2.5
    assert wrong.wall.wall_ms() == 1_002_500
    await wrong.look()
    assert wrong.watch.own_ahead_ms == MINUTE_MS
    assert wrong.wall.wall_ms() == 1_002_500


async def test_a_clock_that_is_behind_is_believed() -> None:
    behind, *_ = cluster(-MINUTE_MS, 0, 0)
    await behind.look()
    assert behind.wall.wall_ms() == 1_000_000 - MINUTE_MS


@pytest.mark.parametrize("offsets", [(0, -MINUTE_MS, 0), (0, -MINUTE_MS, 0, -MINUTE_MS, 0)])
async def test_peers_that_are_behind_do_not_make_us_wrong(offsets: tuple[int, ...]) -> None:
    node, *_ = cluster(*offsets)
    await node.look()
    assert node.watch.own_ahead_ms == 0


async def test_nothing_is_believed_before_a_majority_was_heard() -> None:
    node, *_ = cluster(0, 0, 0, 0, 0)
    node.mesh.lost = {"n2", "n3", "n4"}
    await node.look()
    assert not node.wall.is_believed
    node.mesh.lost = {"n3", "n4"}
    await node.look()
    assert node.wall.is_believed


async def test_what_a_lost_peer_said_counts_no_more() -> None:
    wrong, other, _ = cluster(MINUTE_MS, 0, 0)
    await wrong.look()
    await wrong.look()
    other.watch.on_peer_down("n0")
    assert other.watch.ahead_ms() == {}
