"""Whom a receiver admits. What becomes of a transfer is looked at in ``tests/simulation``."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from hashlib import sha256
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cluster_core.config import ReplicationConfig
from cluster_core.errors import (
    Conflict,
    InvalidRequest,
    KotobaError,
    Overloaded,
    Refused,
    StorageFull,
)
from cluster_core.hlc import HybridClock
from cluster_core.ports import RAFT, Batch
from cluster_core.replication.snapshots.messages import (
    Begin,
    Chunk,
    Header,
    Position,
    Request,
    decode_position,
    encode,
    encode_pairs,
)
from cluster_core.replication.snapshots.receiving import IDLE_S, STALLED_S, Receiver
from cluster_core.storage import keys
from cluster_core.storage.memory import MemoryDisk, MemoryEngine
from cluster_core.types import GroupId
from cluster_core.wire.messages import SnapshotOffer
from tests.simulation.loop import SimLoop

CONFIG = ReplicationConfig(snapshots_incoming_max=2, snapshot_bytes_per_s=1_000)
PAIRS = encode_pairs([b"key", b"v" * 500])


@dataclass
class FakeRaft:
    """A follower of the term 5 that lacks everything."""

    term: int = 5
    commit: int = 0
    distrusted: bool = False
    stepped: list[SnapshotOffer] = field(default_factory=list)

    def step(self, offer: SnapshotOffer) -> None:
        self.stepped.append(offer)

    def wants(self, offer: SnapshotOffer) -> bool:
        return True


class FakeHost:
    """Replica 2 of each of the groups 1 to 4 is here, replica 1 at node1."""

    def __init__(self, engine: MemoryEngine) -> None:
        self.engine = engine
        self.replicas: dict[GroupId, Any] = {
            group: SimpleNamespace(
                group=group, id=2, members={1: "node1", 2: "node2"}, raft=FakeRaft()
            )
            for group in range(1, 5)
        }

    def find(self, group: GroupId) -> Any:
        return self.replicas.get(group)

    def mark(self, replica: object) -> None:
        pass

    def write(self, batch: Batch) -> None:
        self.engine.write(batch)

    async def synced(self) -> None:
        await self.engine.sync()


class Here:
    """The receiving node."""

    def __init__(self, disk: MemoryDisk | None = None) -> None:
        self.engine = MemoryEngine(disk)
        self.host = FakeHost(self.engine)
        self.clock = HybridClock(SimpleNamespace(wall_ms=lambda: 1), ceiling=1 << 60, ahead_ms=1)
        self.receiver = Receiver(
            cast("Any", self.host), self.engine, self.clock, CONFIG, "c1", lambda group: None
        )

    async def ask(self, request: Request) -> Position:
        return decode_position(await self.receiver.serve(encode(request)))


def header(group: GroupId = 1, transfer: bytes = b"one", **other: Any) -> Header:
    offer = SnapshotOffer(group, 1, other.pop("target", 2), other.pop("term", 5), 9, 4)
    said = {"cluster_id": "c1", "sender": "node1", "clock": 0, **other}
    return Header(transfer=transfer, offer=offer, **said)


def begin(group: GroupId = 1, transfer: bytes = b"one", **other: Any) -> Begin:
    return Begin(header(group, transfer, **other), b"configuration")


def chunk(number: int, transfer: bytes = b"one", pairs: bytes = PAIRS) -> Chunk:
    return Chunk(header(transfer=transfer), number, sha256(PAIRS).digest(), pairs)


def run(scenario: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=SimLoop) as runner:
        runner.run(scenario)


def test_chunks_are_taken_in_order_and_each_may_come_twice() -> None:
    async def scenario() -> None:
        here = Here()
        assert await here.ask(begin()) == Position(0)
        assert await here.ask(chunk(0)) == Position(1)
        assert await here.ask(chunk(0)) == Position(1)
        assert await here.ask(chunk(1)) == Position(2)
        assert await here.ask(begin()) == Position(2)
        with pytest.raises(Conflict, match="missing"):
            await here.ask(chunk(3))

    run(scenario())


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (begin(cluster_id="c2"), Refused),
        (begin(sender="node3"), Refused),
        (begin(target=3), Conflict),
        (begin(group=9), Conflict),
        (begin(term=4), Conflict),
        (chunk(0), Conflict),
    ],
)
def test_who_is_refused(request_: Request, error: type[KotobaError]) -> None:
    """Another cluster, a stranger, the wrong replica, an old leader, an unknown transfer."""

    async def scenario() -> None:
        with pytest.raises(error):
            await Here().ask(request_)

    run(scenario())


def test_what_is_no_request_is_refused() -> None:
    async def scenario() -> None:
        with pytest.raises(InvalidRequest):
            await Here().receiver.serve(b"\xc1")

    run(scenario())


def test_a_damaged_chunk_is_refused_and_comes_again() -> None:
    async def scenario() -> None:
        here = Here()
        await here.ask(begin())
        with pytest.raises(Conflict, match="checksum"):
            await here.ask(chunk(0, pairs=PAIRS[:-1] + b"!"))
        assert await here.ask(chunk(0)) == Position(1)

    run(scenario())


def test_who_has_everything_says_so() -> None:
    async def scenario() -> None:
        here = Here()
        here.host.replicas[1].raft.commit = 9
        assert (await here.ask(begin())).installed

    run(scenario())


def test_the_offer_is_stepped_and_the_senders_clock_is_merged() -> None:
    async def scenario() -> None:
        here = Here()
        await here.ask(begin(clock=77 << 16))
        assert here.host.replicas[1].raft.stepped == [header().offer]
        assert here.clock.latest >= 77 << 16

    run(scenario())


def test_a_few_at_a_time_the_others_come_again() -> None:
    async def scenario() -> None:
        here = Here()
        await here.ask(begin(1))
        await here.ask(begin(2))
        with pytest.raises(Overloaded):
            await here.ask(begin(3))
        await here.ask(begin(2, b"another"))
        await asyncio.sleep(STALLED_S)
        await here.ask(begin(3))

    run(scenario())


def test_chunks_are_answered_no_faster_than_the_rate() -> None:
    async def scenario() -> None:
        here, loop = Here(), asyncio.get_running_loop()
        await here.ask(begin())
        began = loop.time()
        for number in range(10):
            await here.ask(chunk(number))
        assert loop.time() - began == pytest.approx(10 * len(PAIRS) / 1_000, rel=0.01)

    run(scenario())


def test_without_room_nothing_is_taken_in() -> None:
    async def scenario() -> None:
        here = Here()
        here.engine.disk.capacity_bytes = 100_000
        with pytest.raises(StorageFull):
            await here.ask(begin())

    run(scenario())


def test_it_goes_on_in_another_process() -> None:
    async def scenario() -> None:
        here = Here()
        await here.ask(begin())
        await here.ask(chunk(0))
        here.engine.close()
        again = Here(here.engine.disk)
        assert not again.receiver.load(1)
        assert await again.ask(chunk(1)) == Position(2)

    run(scenario())


def test_what_nobody_continues_is_removed() -> None:
    async def scenario() -> None:
        here = Here()
        await here.ask(begin())
        await here.ask(chunk(0))
        await asyncio.sleep(IDLE_S - 1)
        here.receiver.tidy()
        prefix = keys.staged(1)
        assert here.engine.first(RAFT, prefix, keys.after(prefix)) is not None
        await asyncio.sleep(2)
        here.receiver.tidy()
        assert here.engine.first(RAFT, prefix, keys.after(prefix)) is None
        with pytest.raises(Conflict):
            await here.ask(chunk(1))

    run(scenario())
