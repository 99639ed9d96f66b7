from __future__ import annotations

import asyncio
from random import Random

import async_solipsism
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_core.errors import StorageFailed, StorageFull
from cluster_core.ports import DATA
from cluster_core.storage import MemoryDisk, MemoryEngine


def put(engine: MemoryEngine, key: bytes, value: bytes = b"") -> None:
    batch = engine.batch()
    batch.put(DATA, key, value)
    engine.write(batch)


def contents(engine: MemoryEngine) -> list[tuple[bytes, bytes]]:
    return list(engine.scan(DATA, b"", b"\xff" * 8))


keys = st.binary(min_size=1, max_size=2)
change = st.one_of(
    st.tuples(st.just("put"), keys, st.binary(max_size=2)),
    st.tuples(st.just("delete"), keys, st.just(b"")),
    st.tuples(st.just("delete_range"), keys, keys),
)
step = st.one_of(st.just("sync"), st.just("crash"), st.lists(change, max_size=4))


@given(st.lists(step, max_size=30), st.integers(0, 2**32))
def test_a_crash_keeps_what_was_synced_and_a_prefix_of_the_rest(
    steps: list[str | list[tuple[str, bytes, bytes]]], seed: int
) -> None:
    async def run() -> None:
        random, engine = Random(seed), MemoryEngine()
        states = [contents(engine)]  # after each batch since the last sync, and at the sync
        for each in [*steps, "crash"]:
            if each == "sync":
                await engine.sync()
                del states[:-1]
            elif isinstance(each, str):
                engine = MemoryEngine(engine.crash(random))
                survived = contents(engine)
                assert survived in states
                states = [survived]
            else:
                batch = engine.batch()
                for act, key, value in each:
                    arguments = (key,) if act == "delete" else (key, value)
                    getattr(batch, act)(DATA, *arguments)
                engine.write(batch)
                states.append(contents(engine))

    asyncio.run(run())


def test_every_length_of_the_prefix_occurs() -> None:
    lengths = set()
    for seed in range(100):
        engine = MemoryEngine()
        for n in range(4):
            put(engine, b"%d" % n)
        lengths.add(len(contents(MemoryEngine(engine.crash(Random(seed))))))
    assert lengths == {0, 1, 2, 3, 4}


async def test_a_sync_covers_what_was_written_before_the_call_only() -> None:
    engine = MemoryEngine()
    put(engine, b"a")
    syncing = asyncio.create_task(engine.sync())
    await asyncio.sleep(0)
    put(engine, b"b")
    await syncing
    assert engine.unsynced == 1


async def test_a_sync_yields_even_without_delay() -> None:
    engine = MemoryEngine()
    put(engine, b"a")
    syncing = asyncio.create_task(engine.sync())
    await asyncio.sleep(0)
    assert engine.unsynced == 1
    await syncing
    assert engine.unsynced == 0


def test_a_slow_disk_takes_virtual_time() -> None:
    async def run() -> float:
        engine = MemoryEngine(MemoryDisk(sync_delay=lambda: 3600.0))
        await engine.sync()
        return asyncio.get_running_loop().time()

    loop = async_solipsism.EventLoop()
    try:
        assert loop.run_until_complete(run()) >= 3600
    finally:
        loop.close()


async def test_a_crash_during_a_sync_is_seen_by_its_caller() -> None:
    engine = MemoryEngine()
    put(engine, b"a")
    syncing = asyncio.create_task(engine.sync())
    await asyncio.sleep(0)
    engine.crash(Random(1))
    with pytest.raises(StorageFailed, match="crashed"):
        await syncing


async def test_after_a_crash_nothing_works() -> None:
    engine = MemoryEngine()
    batch = engine.batch()
    engine.crash(Random(1))
    for refused in (
        lambda: engine.get(DATA, b"a"),
        lambda: engine.first(DATA, b"a", b"b"),
        lambda: engine.scan(DATA, b"a", b"b"),
        lambda: engine.write(batch),
        lambda: engine.crash(Random(1)),
    ):
        with pytest.raises(StorageFailed, match="crashed"):
            refused()
    with pytest.raises(StorageFailed, match="crashed"):
        await engine.sync()


@pytest.mark.parametrize(("fault", "state"), [(StorageFull, "full"), (StorageFailed, "failed")])
async def test_the_first_failed_write_is_final_and_reads_go_on(
    fault: type[StorageFull] | type[StorageFailed], state: str
) -> None:
    engine = MemoryEngine()
    put(engine, b"a")
    engine.disk.fail_writes = fault
    with pytest.raises(fault):
        put(engine, b"b")
    engine.disk.fail_writes = None
    with pytest.raises(fault):
        put(engine, b"c")
    with pytest.raises(fault):
        await engine.sync()
    assert engine.state == state
    assert contents(engine) == [(b"a", b"")]


async def test_the_first_failed_sync_is_final() -> None:
    engine = MemoryEngine()
    put(engine, b"a")
    engine.disk.fail_writes = StorageFailed
    with pytest.raises(StorageFailed):
        await engine.sync()
    with pytest.raises(StorageFailed, match="restart"):
        put(engine, b"b")
    assert engine.unsynced == 1


def test_a_failed_write_may_be_on_disk_or_not() -> None:
    outcomes = set()
    for seed in range(20):
        engine = MemoryEngine()
        engine.disk.fail_writes = StorageFailed
        with pytest.raises(StorageFailed):
            put(engine, b"a")
        outcomes.add(len(contents(MemoryEngine(engine.crash(Random(seed))))))
    assert outcomes == {0, 1}


def test_a_full_disk_fails_no_sync() -> None:
    engine = MemoryEngine()
    put(engine, b"a")
    engine.disk.fail_writes = StorageFull
    asyncio.run(engine.sync())
    assert engine.unsynced == 0


def test_the_reserve_takes_room_until_it_is_given_up() -> None:
    disk = MemoryDisk(capacity_bytes=100, reserve_bytes=40)
    engine = MemoryEngine(disk)
    put(engine, b"a", b"x" * 39)
    assert engine.has_room()
    assert (engine.disk_free_bytes(), engine.room_bytes(), engine.state) == (20, 60, "ok")
    put(engine, b"b", b"x" * 10)
    assert not engine.has_room()
    assert (engine.disk_free_bytes(), engine.room_bytes(), engine.state) == (19, 49, "full")


def test_a_disk_without_a_byte_opens_no_engine() -> None:
    disk = MemoryDisk(capacity_bytes=10, reserve_bytes=4)
    engine = MemoryEngine(disk)
    put(engine, b"a", b"1234")
    engine.close()
    disk.capacity_bytes = 5
    with pytest.raises(StorageFull):
        MemoryEngine(disk)
    disk.capacity_bytes = 6
    MemoryEngine(disk).close()


def test_a_disk_has_an_end() -> None:
    engine = MemoryEngine(MemoryDisk(capacity_bytes=10))
    put(engine, b"a", b"1234")
    assert (engine.disk_bytes(), engine.disk_free_bytes()) == (5, 5)
    with pytest.raises(StorageFull):
        put(engine, b"b", b"12345")
