"""What every engine promises, asked of each of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import pairwise

import pytest

from cluster_core.errors import StorageFailed
from cluster_core.ports import DATA, RAFT, Engine
from cluster_core.storage import RocksEngine

Pairs = list[tuple[bytes, bytes]]


def write(engine: Engine, *pairs: tuple[bytes, bytes], family: int = DATA) -> None:
    batch = engine.batch()
    for key, value in pairs:
        batch.put(family, key, value)
    engine.write(batch)


def numbered(count: int, prefix: bytes = b"k") -> Pairs:
    return [(prefix + b"%05d" % n, b"value %d" % n) for n in range(count)]


def flush_to_files(engine: Engine) -> None:
    if isinstance(engine, RocksEngine):
        engine.flush()


def test_a_key_that_was_written_is_read_back(engine: Engine) -> None:
    write(engine, (b"a", b"1"))
    assert engine.get(DATA, b"a") == b"1"
    assert engine.get(DATA, b"b") is None


def test_the_families_are_separate(engine: Engine) -> None:
    write(engine, (b"a", b"log"), family=RAFT)
    assert engine.get(DATA, b"a") is None
    assert engine.first(DATA, b"", b"\xff") is None
    assert list(engine.scan(RAFT, b"", b"\xff")) == [(b"a", b"log")]


def test_any_bytes_are_a_key_and_a_value(engine: Engine) -> None:
    write(engine, (b"\0", b""), (b"\xff" * 40, b"\0"))
    assert engine.get(DATA, b"\0") == b""
    assert engine.get(DATA, b"\xff" * 40) == b"\0"


def test_within_a_batch_the_later_change_wins(engine: Engine) -> None:
    batch = engine.batch()
    batch.put(DATA, b"a", b"1")
    batch.delete(DATA, b"a")
    batch.put(DATA, b"b", b"1")
    batch.delete_range(DATA, b"b", b"c")
    batch.put(DATA, b"b", b"2")
    assert len(batch) == 5
    engine.write(batch)
    assert list(engine.scan(DATA, b"", b"z")) == [(b"b", b"2")]


def test_a_range_delete_ends_before_its_end(engine: Engine) -> None:
    write(engine, (b"a", b""), (b"b", b""), (b"c", b""))
    batch = engine.batch()
    batch.delete_range(DATA, b"a", b"c")
    batch.delete_range(DATA, b"z", b"a")
    engine.write(batch)
    assert list(engine.scan(DATA, b"", b"z")) == [(b"c", b"")]


def test_first_is_the_lowest_key_of_the_range(engine: Engine) -> None:
    write(engine, (b"b", b"1"), (b"d", b"2"))
    assert engine.first(DATA, b"a", b"c") == (b"b", b"1")
    assert engine.first(DATA, b"b", b"c") == (b"b", b"1")
    assert engine.first(DATA, b"c", b"d") is None
    assert engine.first(DATA, b"e", b"a") is None


def test_first_sees_every_write_at_once(engine: Engine) -> None:
    prefix = b"p" * 35
    for n in range(5):
        write(engine, (prefix + bytes((9 - n,)), b"%d" % n))
        assert engine.first(DATA, prefix, prefix + b"\xff") == (
            prefix + bytes((9 - n,)),
            b"%d" % n,
        )
        flush_to_files(engine)


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 63, 64, 65, 80, 300])
@pytest.mark.parametrize("prefix", [b"k", b"p" * 35, b"\xff" * 35])
def test_a_scan_gives_all_pairs_in_order(engine: Engine, count: int, prefix: bytes) -> None:
    pairs = numbered(count, prefix)
    write(engine, (b"a", b"before"), *pairs, (b"\xff" * 36, b"after"))
    flush_to_files(engine)
    end = prefix + b":"
    assert list(engine.scan(DATA, prefix, end)) == pairs
    assert list(engine.scan(DATA, prefix, end, reverse=True)) == pairs[::-1]


def test_a_scan_over_a_vertex_ends_with_its_prefix(engine: Engine) -> None:
    prefixes = [b"p" * 34 + bytes((n,)) for n in range(5)]
    write(engine, *(pair for prefix in prefixes for pair in numbered(40, prefix)))
    flush_to_files(engine)
    for prefix, following in pairwise(prefixes):
        assert list(engine.scan(DATA, prefix, following)) == numbered(40, prefix)
    over_two = list(engine.scan(DATA, prefixes[1], prefixes[3]))
    assert over_two == numbered(40, prefixes[1]) + numbered(40, prefixes[2])


def test_the_end_of_a_scan_is_exclusive_in_both_directions(engine: Engine) -> None:
    write(engine, (b"a", b"1"), (b"b", b"2"), (b"c", b"3"))
    assert list(engine.scan(DATA, b"a", b"c")) == [(b"a", b"1"), (b"b", b"2")]
    assert list(engine.scan(DATA, b"a", b"c", reverse=True)) == [(b"b", b"2"), (b"a", b"1")]
    assert list(engine.scan(DATA, b"c", b"a")) == []
    assert list(engine.scan(DATA, b"c", b"a", reverse=True)) == []


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("taken", [0, 5, 70])
def test_a_scan_shows_the_moment_of_the_call(engine: Engine, reverse: bool, taken: int) -> None:
    pairs = numbered(200)
    write(engine, *pairs)
    scan = engine.scan(DATA, b"k", b"l", reverse=reverse)
    begun = [next(scan) for _ in range(taken)]
    batch = engine.batch()
    batch.delete_range(DATA, b"k00050", b"k00150")
    batch.put(DATA, b"k000005", b"new")
    batch.put(DATA, b"k00180", b"changed")
    engine.write(batch)
    assert begun + list(scan) == (pairs[::-1] if reverse else pairs)


def test_scans_do_not_disturb_each_other(engine: Engine) -> None:
    pairs = numbered(100)
    write(engine, *pairs)
    one, two = engine.scan(DATA, b"k", b"l"), engine.scan(DATA, b"k", b"l")
    seen = [(next(one), next(two), engine.first(DATA, b"k00042", b"l")) for _ in range(100)]
    assert seen == [(pair, pair, pairs[42]) for pair in pairs]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("write_between", [False, True])
@pytest.mark.parametrize("taken", [0, 1, 16, 30, 99, 100])
def test_seek_leaves_out_what_was_not_delivered(
    engine: Engine, reverse: bool, write_between: bool, taken: int
) -> None:
    pairs = numbered(100)
    expected = pairs[::-1] if reverse else pairs
    write(engine, *pairs)
    for target in range(0, 101, 7):
        scan = engine.scan(DATA, b"k", b"l", reverse=reverse)
        begun = [next(scan) for _ in range(taken)]
        if write_between:
            write(engine, (b"x", b"y"))
        scan.seek(b"k%05d" % (99 - target if reverse else target))
        assert begun + list(scan) == expected[:taken] + expected[max(target, taken) :]


def test_fetch_and_next_share_one_position(engine: Engine) -> None:
    pairs = numbered(200)
    write(engine, *pairs)
    scan = engine.scan(DATA, b"k", b"l")
    seen: Pairs = []
    while chunk := scan.fetch():
        seen += chunk
        seen += [pair for _, pair in zip(range(3), scan, strict=False)]
    assert seen == pairs
    assert scan.fetch() == []


def test_large_values_are_read_in_small_portions(engine: Engine) -> None:
    pairs = [(b"%03d" % n, b"x" * 300_000) for n in range(40)]
    write(engine, *pairs)
    scan = engine.scan(DATA, b"", b"z")
    if isinstance(engine, RocksEngine):
        assert len(scan.fetch()) < 8
        assert len(scan.fetch()) < 8
        scan = engine.scan(DATA, b"", b"z")
    assert list(scan) == pairs


async def test_what_was_closed_is_there_when_it_is_opened_again(
    open_engine: Callable[[], Engine],
) -> None:
    engine = open_engine()
    write(engine, (b"a", b"1"))
    await engine.sync()
    write(engine, (b"b", b"2"))
    engine.close()
    engine = open_engine()
    assert list(engine.scan(DATA, b"", b"z")) == [(b"a", b"1"), (b"b", b"2")]
    engine.close()


async def test_syncs_may_overlap(engine: Engine) -> None:
    async def one(n: int) -> None:
        write(engine, (b"%d" % n, b""))
        await engine.sync()

    await asyncio.gather(*(one(n) for n in range(20)))
    assert len(list(engine.scan(DATA, b"", b"z"))) == 20


def test_two_engines_never_share_a_store(open_engine: Callable[[], Engine]) -> None:
    engine = open_engine()
    with pytest.raises(StorageFailed, match=r"another (process|engine) uses"):
        open_engine()
    engine.close()
    open_engine().close()


async def test_a_closed_engine_refuses_everything(open_engine: Callable[[], Engine]) -> None:
    engine = open_engine()
    write(engine, *numbered(200))
    scan = engine.scan(DATA, b"k", b"l")
    next(scan)
    batch = engine.batch()
    batch.put(DATA, b"a", b"")
    engine.close()
    engine.close()
    for refused in (
        lambda: engine.get(DATA, b"a"),
        lambda: engine.first(DATA, b"", b"z"),
        lambda: engine.scan(DATA, b"", b"z"),
        lambda: engine.write(batch),
        lambda: list(scan),
    ):
        with pytest.raises(StorageFailed):
            refused()
    with pytest.raises(StorageFailed):
        await engine.sync()
    open_engine().close()  # the scan that is still referred to holds nothing open


def test_the_size_of_the_store_and_of_the_disk_are_known(engine: Engine) -> None:
    write(engine, *numbered(100))
    assert engine.disk_bytes() > 0
    assert engine.disk_free_bytes() > 0
    assert engine.state == "ok"
