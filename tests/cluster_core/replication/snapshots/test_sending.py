"""What a snapshot is cut into. How it travels is looked at in ``tests/simulation``."""

from __future__ import annotations

from cluster_core.ports import DATA
from cluster_core.replication.snapshots.messages import decode_pairs
from cluster_core.replication.snapshots.sending import _chunks
from cluster_core.storage.memory import MemoryEngine

CHUNK_BYTES = 1_000


def engine_with(sizes: list[int]) -> MemoryEngine:
    engine = MemoryEngine()
    batch = engine.batch()
    for number, size in enumerate(sizes):
        batch.put(DATA, b"%04d" % number, b"v" * size)
    engine.write(batch)
    return engine


def pairs_of(encoded: bytes) -> list[tuple[bytes, bytes]]:
    parts = iter(decode_pairs(encoded))
    return list(zip(parts, parts, strict=True))


def test_chunks_hold_everything_in_order_and_little_more_than_they_may() -> None:
    engine = engine_with([100] * 500)
    chunks = [pairs_of(one) for one in _chunks(engine.scan(DATA, b"", b"\xff"), CHUNK_BYTES)]
    assert [pair for chunk in chunks for pair in chunk] == list(engine.scan(DATA, b"", b"\xff"))
    for chunk in chunks:
        assert sum(len(key) + len(value) for key, value in chunk) < CHUNK_BYTES + 104
    assert len(chunks) == 50


def test_a_pair_that_is_larger_than_a_chunk_is_one() -> None:
    engine = engine_with([5_000, 10, 10])
    chunks = [pairs_of(one) for one in _chunks(engine.scan(DATA, b"", b"\xff"), CHUNK_BYTES)]
    assert [len(chunk) for chunk in chunks] == [1, 2]


def test_a_partition_without_data_has_no_chunk() -> None:
    assert list(_chunks(MemoryEngine().scan(DATA, b"", b"\xff"), CHUNK_BYTES)) == []


def test_what_is_written_meanwhile_is_in_none() -> None:
    engine = engine_with([600] * 4)
    chunks = _chunks(engine.scan(DATA, b"", b"\xff"), CHUNK_BYTES)
    seen = pairs_of(next(chunks))
    batch = engine.batch()
    batch.put(DATA, b"0003x", b"later")
    batch.delete(DATA, b"0003")
    engine.write(batch)
    seen += [pair for chunk in chunks for pair in pairs_of(chunk)]
    assert [key for key, _ in seen] == [b"0000", b"0001", b"0002", b"0003"]
