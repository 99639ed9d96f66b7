from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster_core.ports import DATA, Engine, Scan
from cluster_core.storage import MemoryEngine, RocksEngine, keys, mvcc

GROUP = 1
SOURCE = b"s" * 32
Versions = dict[bytes, dict[int, bytes]]


def edge(label: str, number: int) -> bytes:
    return keys.out_edge(GROUP, SOURCE, label, number.to_bytes(32, "big"))


def write(engine: Engine, versions: Versions) -> None:
    batch = engine.batch()
    for user_key, values in versions.items():
        for timestamp, value in values.items():
            batch.put(DATA, keys.versioned(user_key, timestamp), value)
    engine.write(batch)


BEGIN = keys.out_prefix(GROUP, SOURCE)
END = keys.after(BEGIN)

timestamps = st.one_of(st.integers(0, 40), st.integers(0, keys.TIMESTAMP_MAX))
user_keys = st.builds(edge, st.sampled_from(["A", "AB", "B"]), st.integers(0, 3))
histories = st.dictionaries(
    user_keys,
    st.dictionaries(timestamps, st.sampled_from([b"", b"x", b"yy"]), max_size=30),
    max_size=8,
)


def visible(values: dict[int, bytes], timestamp: int) -> tuple[int, bytes] | None:
    return max(((at, value) for at, value in values.items() if at <= timestamp), default=None)


@settings(max_examples=200)
@given(histories, timestamps)
def test_reads_agree_with_a_model(versions: Versions, timestamp: int) -> None:
    engine = MemoryEngine()
    write(engine, versions)
    expected = []
    for user_key, values in sorted(versions.items()):
        seen = visible(values, timestamp)
        assert mvcc.read_at(engine, user_key, timestamp) == seen
        assert mvcc.newest(engine, user_key) == visible(values, keys.TIMESTAMP_MAX)
        assert list(mvcc.versions(engine, user_key)) == sorted(values.items(), reverse=True)
        if seen is not None and seen[1]:
            expected.append((user_key, *seen))
    assert list(mvcc.scan_at(engine, BEGIN, END, timestamp)) == expected


def test_a_tombstone_is_told_by_a_read_and_left_out_by_a_scan(engine: Engine) -> None:
    gone, here = edge("A", 1), edge("A", 2)
    write(engine, {gone: {1: b"x", 5: b""}, here: {2: b"y"}})
    assert mvcc.newest(engine, gone) == (5, b"")
    assert mvcc.read_at(engine, gone, 9) == (5, b"")
    assert mvcc.read_at(engine, gone, 4) == (1, b"x")
    assert mvcc.read_at(engine, gone, 0) is None
    assert list(mvcc.scan_newest(engine, BEGIN, END)) == [(here, 2, b"y")]
    assert list(mvcc.scan_at(engine, BEGIN, END, 4)) == [(gone, 1, b"x"), (here, 2, b"y")]
    assert list(mvcc.scan_at(engine, BEGIN, END, 1)) == [(gone, 1, b"x")]


def test_a_label_that_begins_another_is_kept_apart(engine: Engine) -> None:
    write(engine, {edge("A", 1): {1: b"a"}, edge("AB", 1): {1: b"ab"}})
    prefix = keys.out_prefix(GROUP, SOURCE, "A")
    assert list(mvcc.scan_newest(engine, prefix, keys.after(prefix))) == [(edge("A", 1), 1, b"a")]


@pytest.mark.parametrize("timestamp", [0, 1, 500, 1999, 2000, 5000])
def test_a_key_with_very_many_versions_hides_no_other(engine: Engine, timestamp: int) -> None:
    history = {n: b"%d" % n for n in range(1, 2001)}
    versions: Versions = {
        edge("A", 1): {1: b"first"},
        edge("B", 1): history,
        edge("C", 1): {1: b"last"},
    }
    write(engine, versions)
    expected = [
        (user_key, *seen)
        for user_key, values in versions.items()
        if (seen := visible(values, timestamp))
    ]
    assert list(mvcc.scan_at(engine, BEGIN, END, timestamp)) == expected


@pytest.mark.parametrize("timestamp", [1, 1000, 2000])
def test_very_many_versions_are_jumped_over(
    engine: Engine, timestamp: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(engine, {edge("A", n): dict.fromkeys(range(1, 2001), b"x") for n in range(20)})
    scan = engine.scan(DATA, BEGIN, END)
    fetch, read = type(scan).fetch, 0

    def counted(scan: Scan) -> list[tuple[bytes, bytes]]:
        nonlocal read
        pairs: list[tuple[bytes, bytes]] = fetch(scan)
        read += len(pairs)
        return pairs

    monkeypatch.setattr(type(scan), "fetch", counted)
    assert len(list(mvcc.scan_at(engine, BEGIN, END, timestamp))) == 20
    assert 20 <= read < 4_000  # of 40,000


def test_a_scan_shows_the_moment_of_the_call(engine: Engine) -> None:
    write(engine, {edge("A", n): {1: b"old"} for n in range(100)})
    scan = mvcc.scan_newest(engine, BEGIN, END)
    write(engine, {edge("A", n): {2: b"new"} for n in range(200)})
    assert [value for _, _, value in scan] == [b"old"] * 100


def test_rocks_reads_from_files_as_from_memory(engine: Engine) -> None:
    versions: Versions = {edge("A", n): {t: b"%d" % t for t in (1, 3, 5)} for n in range(300)}
    write(engine, versions)
    before = list(mvcc.scan_at(engine, BEGIN, END, 4))
    if isinstance(engine, RocksEngine):
        engine.flush()
    assert list(mvcc.scan_at(engine, BEGIN, END, 4)) == before
    assert [mvcc.read_at(engine, user_key, 2) for user_key in versions] == [(1, b"1")] * 300
    assert mvcc.newest(engine, edge("A", 301)) is None
