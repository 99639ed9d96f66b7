"""Requests between whole nodes: what becomes of an answer when the one who asked has restarted."""

from __future__ import annotations

import asyncio

import pytest

from cluster_core.cluster import KotobaCluster
from cluster_core.types import NodeId
from tests.simulation.world import World, simulate

pytestmark = pytest.mark.simulation


class Waiting:
    """A handler that answers when it is told to."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.began = asyncio.Event()
        self.go_on = asyncio.Event()

    async def __call__(self, _peer: NodeId, _body: bytes) -> bytes:
        self.began.set()
        await self.go_on.wait()
        return self.answer


def test_an_answer_to_a_process_that_is_gone_is_not_taken_for_another_one() -> None:
    """Such as that a prepare is applied: a transaction would be taken for committed."""

    async def scenario(world: World) -> None:
        world.start_all()
        await world.until_ready()
        asker, server = world.nodes[0], world.nodes[1]
        early, late = Waiting(b"early"), Waiting(b"late")
        server.cluster.node.mesh.handle("early", early)
        server.cluster.node.mesh.handle("late", late)

        async def ask_early(cluster: KotobaCluster) -> bytes:
            return await cluster.node.mesh.request(server.name, "early", b"", timeout=60)

        async def ask_late(cluster: KotobaCluster) -> bytes:
            mesh = cluster.node.mesh
            while mesh.last_request < number - 1:
                mesh.expect(server.name, timeout=60)  # as other requests would
            return await mesh.request(server.name, "late", b"", timeout=60)

        await asyncio.sleep(3)
        asked = asyncio.ensure_future(asker.ask(ask_early))
        await early.began.wait()
        number = asker.cluster.node.mesh.last_request
        await asker.crash()
        await asyncio.gather(asked, return_exceptions=True)
        asker.start()
        await world.until_ready()
        asked = asyncio.ensure_future(asker.ask(ask_late))
        await late.began.wait()
        early.go_on.set()
        await asyncio.sleep(0.1)
        late.go_on.set()
        assert await asked == b"late"

    world = simulate(1, scenario)
    assert not world.failures, "\n".join(world.failures)
