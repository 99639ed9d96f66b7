from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from hashlib import sha256

import pytest

from cluster_core.ports import DATA, RAFT, Batch
from cluster_core.replication.log_store import LogStore
from cluster_core.replication.snapshots.messages import encode_pairs
from cluster_core.replication.snapshots.staging import Manifest, Staging
from cluster_core.storage import keys
from cluster_core.storage.memory import MemoryDisk, MemoryEngine
from cluster_core.wire.messages import Entry, SnapshotOffer

GROUP = 3
OFFER = SnapshotOffer(GROUP, 1, 2, 7, 40, 6)

OLD = {keys.group_prefix(GROUP) + b"old%d" % n: b"before" for n in range(3)}
NEW = {keys.group_prefix(GROUP) + b"new%d" % n: b"after" for n in range(6)}
FOREIGN = {keys.group_prefix(GROUP + 1) + b"foreign": b"untouched"}

CHUNKS = [
    encode_pairs([part for pair in list(NEW.items())[start : start + 2] for part in pair])
    for start in (0, 2, 4)
]


class PowerCut(Exception):
    pass


class Node:
    """An engine with an old replica on it; the power may be cut at the n-th write from now."""

    def __init__(self, disk: MemoryDisk | None = None) -> None:
        self.engine = MemoryEngine(disk)
        self.writes_left = 1_000
        self.writes = 0
        if disk is None:
            batch = self.engine.batch()
            for key, value in (OLD | FOREIGN).items():
                batch.put(DATA, key, value)
            LogStore(self.engine, GROUP).append(batch, (Entry(1, 1, b"a"), Entry(1, 2, b"b")))
            batch.put(RAFT, keys.collected(GROUP), b"\0" * 8)
            self.engine.write(batch)

    def write(self, batch: Batch) -> None:
        if self.writes == self.writes_left:
            raise PowerCut
        self.writes += 1
        self.engine.write(batch)

    def staging(self, transfer: bytes = b"one") -> Staging:
        manifest = Manifest(transfer, OFFER, b"configuration")
        return Staging(self.engine, self.write, self.engine.sync, manifest)

    def load(self) -> Staging | None:
        return Staging.load(self.engine, GROUP, self.write, self.engine.sync)

    def log(self) -> LogStore:
        return LogStore(self.engine, GROUP)

    def crash(self, seed: int) -> Node:
        """What is not synced is lost, but for a prefix."""
        return Node(self.engine.crash(random.Random(seed)))

    def data(self) -> dict[bytes, bytes]:
        return dict(self.engine.scan(DATA, b"", b"\xff" * 64))

    def staged(self) -> list[bytes]:
        prefix = keys.staged(GROUP)
        return [key for key, _ in self.engine.scan(RAFT, prefix, keys.after(prefix))]


def stage(staging: Staging) -> None:
    staging.begin()
    for chunk in CHUNKS:
        staging.add(sha256(chunk).digest(), chunk)


def digest() -> bytes:
    return sha256(b"".join(sha256(chunk).digest() for chunk in CHUNKS)).digest()


def is_old(node: Node) -> bool:
    log = node.log()
    return node.data() == OLD | FOREIGN and (log.first_index(), log.last_index()) == (1, 2)


def is_new(node: Node) -> bool:
    log = node.log()
    return (
        node.data() == NEW | FOREIGN
        and (log.first_index(), log.last_index(), log.term(40)) == (41, 40, 6)
        and node.engine.get(RAFT, keys.collected(GROUP)) is None
        and not node.staged()
    )


def test_nothing_of_the_replica_changes_while_chunks_arrive() -> None:
    node = Node()
    stage(node.staging())
    assert is_old(node)


def test_it_becomes_the_replica_and_leaves_nothing_behind() -> None:
    node = Node()
    staging = node.staging()
    stage(staging)
    asyncio.run(staging.replace(node.log()))
    assert is_new(node)


def test_another_process_knows_how_far_it_was() -> None:
    node = Node()
    assert node.load() is None
    staging = node.staging()
    staging.begin()
    staging.add(sha256(CHUNKS[0]).digest(), CHUNKS[0])
    found = node.load()
    assert found is not None
    assert (found.next, found.manifest) == (1, staging.manifest)
    assert not found.manifest.replacing


def test_another_transfer_begins_with_nothing() -> None:
    node = Node()
    stage(node.staging())
    node.staging(b"two").begin()
    found = node.load()
    assert found is not None
    assert (found.next, found.manifest.transfer) == (0, b"two")


def test_one_that_is_dropped_leaves_the_replica_alone() -> None:
    node = Node()
    staging = node.staging()
    stage(staging)
    staging.drop()
    assert is_old(node)
    assert node.load() is None


def verify(staging: Staging, chunks: int, digest: bytes) -> bool:
    return asyncio.run(staging.verify(chunks, digest))


def test_what_was_sent_is_verified_chunk_by_chunk_and_as_a_whole() -> None:
    staging = Node().staging()
    stage(staging)
    assert verify(staging, 3, digest())
    assert not verify(staging, 4, digest())
    assert not verify(staging, 3, bytes(32))


@pytest.mark.parametrize("number", [0, 2])
def test_what_the_disk_has_changed_is_noticed(number: int) -> None:
    node = Node()
    staging = node.staging()
    stage(staging)
    key = keys.staged_chunk(GROUP, number)
    value = node.engine.get(RAFT, key)
    assert value is not None
    batch = node.engine.batch()
    batch.put(RAFT, key, value[:-1] + bytes([value[-1] ^ 1]))
    node.engine.write(batch)
    assert not verify(staging, 3, digest())


def test_a_log_that_goes_on_from_the_snapshot_may_stay() -> None:
    node = Node()
    batch = node.engine.batch()
    batch.put(RAFT, keys.distrusted(GROUP), b"mark")
    node.engine.write(batch)
    staging = node.staging()
    stage(staging)
    asyncio.run(staging.replace(node.log(), keeps_log=True))
    assert node.data() == NEW | FOREIGN
    assert (node.log().first_index(), node.log().last_index()) == (1, 2)
    assert node.engine.get(RAFT, keys.distrusted(GROUP)) is None


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("writes", range(6))
def test_a_crash_at_any_write_leaves_the_old_one_or_the_new_one(writes: int, seed: int) -> None:
    """Or the mark: then it is made the new one, also if that is interrupted again."""
    node = Node()
    staging = node.staging()
    stage(staging)
    asyncio.run(node.engine.sync())
    for attempt in (0, 1, 2):
        node.writes, node.writes_left = 0, writes + attempt
        with suppress(PowerCut):
            asyncio.run(staging.replace(node.log()))
        node = node.crash(seed + attempt)
        found = node.load()
        if found is None:
            break
        if not found.manifest.replacing:
            assert is_old(node)
            assert found.next == 3
        staging = found
    else:
        asyncio.run(staging.replace(node.log()))
    assert is_new(node)
