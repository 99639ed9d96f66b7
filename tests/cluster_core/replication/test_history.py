from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster_core.graph.records import VERTEX, encode_record
from cluster_core.ports import DATA, RAFT
from cluster_core.replication import history
from cluster_core.replication.history import Collection, Sieve, kept_pairs
from cluster_core.storage import keys, mvcc
from cluster_core.storage.memory import MemoryEngine
from cluster_core.types import Timestamp

GROUP = 3

Versions = dict[tuple[int, Timestamp], bool]
"""(which user key, timestamp) -> whether it is a live version, else a tombstone."""

versions = st.dictionaries(
    st.tuples(st.integers(0, 4), st.integers(1, 30)), st.booleans(), max_size=40
)


def digest(number: int) -> bytes:
    return bytes([number]) * 32


def version_of(number: int, timestamp: Timestamp) -> bytes:
    return b"version" + digest(number)[:23] + timestamp.to_bytes(2, "big")


def engine_with(written: Versions) -> MemoryEngine:
    """Vertices, their pointers and changes, and an adjacency entry with the same life."""
    engine = MemoryEngine()
    batch = engine.batch()
    for (number, timestamp), alive in written.items():
        version = version_of(number, timestamp)
        record = encode_record(VERTEX, version, 0, b"block") if alive else b""
        batch.put(DATA, keys.versioned(keys.entity(GROUP, digest(number)), timestamp), record)
        adjacency = keys.in_edge(GROUP, digest(7), "KNOWS", digest(number))
        batch.put(DATA, keys.versioned(adjacency, timestamp), b"far" if alive else b"")
        batch.put(DATA, keys.change(GROUP, timestamp, digest(number)), b"change")
        if alive:
            batch.put(DATA, keys.version(GROUP, version), digest(number))
    batch.put(DATA, keys.entity(GROUP + 1, digest(1)) + b"\0" * 8, b"of another group")
    engine.write(batch)
    return engine


def seen_at(engine: MemoryEngine, timestamp: Timestamp) -> list[tuple[bytes, Timestamp, bytes]]:
    prefix = keys.group_prefix(GROUP)
    begin, end = keys.table_prefix(GROUP, keys.ENTITY), keys.table_prefix(GROUP, keys.LABEL)
    assert prefix < begin
    return list(mvcc.scan_at(engine, begin, end, timestamp))


def everything(engine: MemoryEngine) -> list[tuple[bytes, bytes]]:
    prefix = keys.group_prefix(GROUP)
    return list(engine.scan(DATA, prefix, keys.after(prefix)))


@settings(max_examples=300, deadline=None)
@given(written=versions, horizon=st.integers(1, 31), step=st.sampled_from([1, 3, 1_000]))
def test_reads_at_the_horizon_and_later_see_the_same_before_during_and_after(
    written: Versions, horizon: Timestamp, step: int
) -> None:
    engine = engine_with(written)
    before = {timestamp: seen_at(engine, timestamp) for timestamp in range(horizon, 32)}
    comparable = list(kept_pairs(engine, GROUP, horizon))
    collection = Collection(engine, GROUP, horizon)
    history_step, history.STEP_PAIRS = history.STEP_PAIRS, step  # type: ignore[misc]
    try:
        for _ in range(1_000):
            more = collection.step()
            assert {timestamp: seen_at(engine, timestamp) for timestamp in before} == before
            assert list(kept_pairs(engine, GROUP, horizon)) == comparable
            if not more:
                break
        else:
            raise AssertionError("the collection does not end")
    finally:
        history.STEP_PAIRS = history_step  # type: ignore[misc]
    assert everything(engine) == comparable
    assert engine.get(RAFT, keys.collected(GROUP)) == horizon.to_bytes(8, "big")
    assert engine.get(DATA, keys.entity(GROUP + 1, digest(1)) + b"\0" * 8) == b"of another group"


def test_kept_are_the_newest_version_below_the_horizon_and_all_above() -> None:
    engine = engine_with({(1, 2): True, (1, 4): True, (1, 9): True, (2, 3): True, (2, 5): False})
    while_collecting = Collection(engine, GROUP, 5)
    while while_collecting.step():
        pass
    entity = keys.entity(GROUP, digest(1))
    assert [timestamp for timestamp, _ in mvcc.versions(engine, entity)] == [9, 4]
    assert mvcc.newest(engine, keys.entity(GROUP, digest(2))) is None
    assert engine.get(DATA, keys.version(GROUP, version_of(1, 2))) is None
    assert engine.get(DATA, keys.version(GROUP, version_of(1, 4))) == digest(1)
    changes = keys.table_prefix(GROUP, keys.CHANGE)
    left = [key[3:11] for key, _ in engine.scan(DATA, changes, keys.after(changes))]
    assert left == [(9).to_bytes(8, "big")]


def test_a_key_with_more_versions_than_a_step_looks_at_is_collected_all_the_same() -> None:
    written: Versions = {(1, timestamp): True for timestamp in range(1, 3_000)}
    written[1, 3_000] = False
    engine = engine_with(written)
    collection = Collection(engine, GROUP, 3_000)
    steps = 0
    while collection.step():
        steps += 1
        assert mvcc.scan_newest(engine, keys.group_prefix(GROUP), keys.group_prefix(GROUP + 1))
        assert seen_at(engine, 3_000) == []
    assert steps > 10
    assert everything(engine) == []


def test_a_sieve_keeps_a_tombstone_above_the_horizon() -> None:
    sieve = Sieve(5)
    assert sieve.keeps(keys.versioned(b"key", 6), b"")
    assert not sieve.keeps(keys.versioned(b"key", 5), b"")
    assert not sieve.keeps(keys.versioned(b"key", 4), b"alive")
