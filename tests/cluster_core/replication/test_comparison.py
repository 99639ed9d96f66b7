"""The verdict on replicas that differ. What follows is looked at in ``tests/simulation``."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from cluster_core.config import ReplicationConfig
from cluster_core.errors import NoLeader, Refused
from cluster_core.ports import DATA
from cluster_core.raft import Configuration
from cluster_core.replication.comparison import Comparison
from cluster_core.storage import keys
from cluster_core.storage.memory import MemoryEngine
from tests.simulation.loop import SimLoop

GROUP = 3
SAME, OTHER, THIRD = b"same", b"other", b"third"


class FakeMesh:
    def __init__(self) -> None:
        self.handlers: dict[str, Callable[[str, bytes], Awaitable[bytes]]] = {}
        self.asked: list[tuple[str, str, Any]] = []
        self.peers = frozenset({"node2", "node3", "node4"})

    def handle(self, method: str, handler: Callable[[str, bytes], Awaitable[bytes]]) -> None:
        self.handlers[method] = handler

    async def request(self, node: str, method: str, body: bytes, *, timeout: float) -> bytes:
        self.asked.append((node, method, msgspec.msgpack.decode(body)))
        return b""

    def tell(self, node: str, method: str, body: bytes) -> None:
        self.asked.append((node, method, msgspec.msgpack.decode(body)))


class Leader:
    """node1 leads, with the replica 1 of the voters 1 to 3; replica 4, at node4, learns."""

    def __init__(self, *, leads: bool = True) -> None:
        self.engine = MemoryEngine()
        self.mesh = FakeMesh()
        self.replica = SimpleNamespace(
            group=GROUP,
            id=1,
            members={number: f"node{number}" for number in range(1, 5)},
            is_leader=leads,
            leader="node1",
            failed=None,
            comparing=False,
            horizon=0,
            raft=SimpleNamespace(configuration=Configuration.of([1, 2, 3], [4]), voters=(1, 2, 3)),
            require_intact=lambda: None,
        )
        self.host = SimpleNamespace(node_id="node1", replicas={GROUP: self.replica})
        self.comparison = Comparison(
            cast("Any", self.host),
            cast("Any", self.mesh),
            self.engine,
            ReplicationConfig(),
            random.Random(1),
            lambda replica, target: None,
            lambda type_, node, group: None,
        )

    async def report(self, replica: int, digest: bytes, *, index: int = 7) -> None:
        body = msgspec.msgpack.encode((GROUP, replica, index, digest))
        await self.mesh.handlers["compare.report"](f"node{replica}", body)
        await asyncio.sleep(0.001)

    @property
    def convicted(self) -> list[str]:
        return sorted({node for node, method, _ in self.mesh.asked if method == "compare.verdict"})


def run(scenario: Awaitable[None]) -> None:
    with asyncio.Runner(loop_factory=SimLoop) as runner:
        runner.run(cast("Any", scenario))


@pytest.mark.parametrize(
    ("digests", "convicted"),
    [
        ({1: SAME, 2: SAME, 3: SAME}, []),
        ({1: SAME, 2: SAME, 3: OTHER}, ["node3"]),
        ({1: SAME, 2: SAME, 4: OTHER}, ["node4"]),
        ({1: SAME, 2: OTHER}, []),
        ({1: SAME, 2: OTHER, 3: THIRD}, []),
        ({1: SAME, 4: SAME, 2: OTHER}, []),
        ({4: OTHER, 3: OTHER, 2: SAME, 1: SAME}, ["node3", "node4"]),
    ],
)
def test_whoever_differs_from_a_quorum_of_voters(
    digests: dict[int, bytes], convicted: list[str]
) -> None:
    async def scenario() -> None:
        leader = Leader()
        for replica, digest in digests.items():
            await leader.report(replica, digest)
        assert leader.convicted == convicted

    run(scenario())


def test_only_digests_of_one_checkpoint_are_compared() -> None:
    async def scenario() -> None:
        leader = Leader()
        await leader.report(1, SAME, index=7)
        await leader.report(2, SAME, index=7)
        await leader.report(3, OTHER, index=8)
        await leader.report(3, OTHER, index=7)
        assert leader.convicted == []

    run(scenario())


def test_reports_are_taken_by_a_leader_and_from_who_has_the_replica() -> None:
    async def scenario() -> None:
        with pytest.raises(NoLeader):
            await Leader(leads=False).report(2, SAME)
        body = msgspec.msgpack.encode((GROUP, 2, 7, SAME))
        with pytest.raises(Refused):
            await Leader().mesh.handlers["compare.report"]("node3", body)

    run(scenario())


def test_a_reading_is_of_the_moment_of_the_checkpoint_and_takes_its_share() -> None:
    async def scenario() -> None:
        leader, loop = Leader(), asyncio.get_running_loop()
        batch = leader.engine.batch()
        for number in range(10_000):
            batch.put(DATA, keys.dedupe(GROUP, number.to_bytes(4, "big")), b"value")
        leader.engine.write(batch)
        reading = asyncio.ensure_future(leader.comparison.run())
        host, seen = cast("Any", leader.host), []
        host.storage_error = None
        leader.replica.evaluation = None
        for number in (1, 2):
            host.on_checkpoint(leader.replica, number)
            batch = leader.engine.batch()
            batch.put(DATA, keys.dedupe(GROUP, b"later%d" % number), b"value")
            leader.engine.write(batch)
            began = loop.time()
            while leader.comparison.compared < number:  # noqa: ASYNC110 (it has no event)
                await asyncio.sleep(0.1)
            seen.append(leader.comparison._digests[GROUP][1][1])
            assert 1.5 < loop.time() - began < 3, "10,000 pairs at 1 % of a core"
        reading.cancel()
        assert seen[0] != seen[1]

    run(scenario())
