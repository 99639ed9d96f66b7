from __future__ import annotations

import asyncio
import gc
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import uvloop

from cluster_core.errors import StorageFailed, StorageFull
from cluster_core.ports import DATA, RAFT
from cluster_core.storage import RocksEngine

ROOT = Path(__file__).parents[3]

WRITER = """
import asyncio, sys
from cluster_core.ports import DATA, RAFT
from cluster_core.storage import RocksEngine

async def main():
    engine = RocksEngine(sys.argv[1])
    for n in range(1_000_000):
        batch = engine.batch()
        batch.put(RAFT, b"%08d" % n, b"log" * 20)
        batch.put(DATA, b"%08d" % n, b"data" * 20)
        engine.write(batch)
        await engine.sync()
        print(n, flush=True)

asyncio.run(main())
"""


class FailingDatabase:
    """Stands in for the database, with the errors that RocksDB gives in text only."""

    def __init__(self, text: str) -> None:
        self.text = text

    def write(self, batch: object) -> None:
        raise Exception(self.text)

    def flush_wal(self, sync: bool) -> None:
        raise Exception(self.text)

    def close(self) -> None: ...


@pytest.fixture
def engine(tmp_path: Path) -> RocksEngine:
    return RocksEngine(tmp_path / "store", write_buffer_bytes=1 << 20)


def put(engine: RocksEngine, key: bytes, value: bytes = b"v") -> None:
    batch = engine.batch()
    batch.put(DATA, key, value)
    engine.write(batch)


async def write_async(engine: RocksEngine) -> None:
    put(engine, b"b")


@pytest.mark.process
def test_kill_9_loses_nothing_that_was_synced(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, store],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    with process, process.stdout as lines:
        acknowledged = -1
        while acknowledged < 300:
            acknowledged = int(lines.readline())
        process.send_signal(signal.SIGKILL)
        acknowledged = max([acknowledged, *(int(line) for line in lines if line.endswith(b"\n"))])
    engine = RocksEngine(store)
    log = [int(key) for key, _ in engine.scan(RAFT, b"", b"\xff")]
    data = [int(key) for key, _ in engine.scan(DATA, b"", b"\xff")]
    assert log == data == list(range(len(log)))
    assert len(log) > acknowledged
    engine.close()


DISK_FILLER = """
import asyncio, os, resource, signal, sys
from cluster_core.errors import KotobaError
from cluster_core.ports import DATA
from cluster_core.storage import RocksEngine

async def fill(engine):
    n = 0
    while True:
        batch = engine.batch()
        batch.put(DATA, b"%08d" % n, os.urandom(20_000))
        engine.write(batch)
        await engine.sync()
        n += 1
        print(n)

engine = RocksEngine(sys.argv[1], write_buffer_bytes=1 << 20)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, resource.RLIM_INFINITY))
try:
    asyncio.run(fill(engine))
except KotobaError as error:
    print(type(error).__name__)
print(len(list(engine.scan(DATA, b"", b"z"))))
engine.close()
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
engine = RocksEngine(sys.argv[1])
print(len(list(engine.scan(DATA, b"", b"z"))))
engine.close()
"""


@pytest.mark.process
@pytest.mark.parametrize("torn_bytes", [1, 7, 300])
async def test_a_torn_last_record_is_no_record(
    engine: RocksEngine, tmp_path: Path, torn_bytes: int
) -> None:
    """The power failed while it was written: its batch is not there at all, those before it are."""
    for number in range(10):
        batch = engine.batch()
        batch.put(RAFT, b"%d" % number, b"log" * 100)
        batch.put(DATA, b"%d" % number, b"data" * 100)
        engine.write(batch)
        await engine.sync()
    shutil.copytree(tmp_path / "store", tmp_path / "torn", ignore=shutil.ignore_patterns("LOCK"))
    engine.close()
    log = max((tmp_path / "torn").glob("*.log"), key=lambda path: path.stat().st_size)
    os.truncate(log, log.stat().st_size - torn_bytes)
    torn = RocksEngine(tmp_path / "torn")
    for family in (RAFT, DATA):
        kept = [key for key, _ in torn.scan(family, b"0", b":")]
        assert kept == [b"%d" % number for number in range(9)]
    torn.close()


def test_a_disk_that_takes_no_more_loses_nothing_that_was_synced(tmp_path: Path) -> None:
    command = [sys.executable, "-c", DISK_FILLER, str(tmp_path / "store")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, done.stderr.decode()
    *_, acknowledged, error, readable, reopened = done.stdout.decode().split()
    assert error == "StorageFailed"  # a limit on the size of a file is no full disk
    assert int(readable) >= int(acknowledged) > 10
    assert int(reopened) >= int(acknowledged)


@pytest.mark.process
def test_a_folder_that_another_process_uses_is_refused_clearly(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, store],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    with process, process.stdout as lines:
        lines.readline()
        with pytest.raises(StorageFailed, match=f"another process uses .*{store}"):
            RocksEngine(store)
        process.kill()


def test_a_folder_that_cannot_be_made_is_refused_clearly(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageFailed, match="cannot be opened"):
        RocksEngine(tmp_path / "file" / "store")


def test_sync_works_under_uvloop(engine: RocksEngine) -> None:
    async def run() -> None:
        put(engine, b"a")
        await asyncio.gather(engine.sync(), engine.sync())

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
    engine.close()


async def test_the_loop_goes_on_during_a_sync(engine: RocksEngine) -> None:
    put(engine, b"a", b"x" * 1_000_000)
    syncing = asyncio.create_task(engine.sync())
    turns = 0
    while not syncing.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns > 1
    engine.close()


@pytest.mark.parametrize(
    ("text", "error", "state"),
    [
        ("IO error: No space left on device: While appending to file", StorageFull, "full"),
        ("IO error: Input/output error: While fdatasync", StorageFailed, "failed"),
    ],
)
async def test_the_first_failed_write_is_final_and_reads_go_on(
    engine: RocksEngine, text: str, error: type[Exception], state: str
) -> None:
    put(engine, b"a")
    healthy, engine._db = engine._db, FailingDatabase(text)  # type: ignore[assignment]
    with pytest.raises(error):
        await write_async(engine)
    engine._db = healthy
    with pytest.raises(error):
        put(engine, b"c")
    with pytest.raises(error):
        await engine.sync()
    assert engine.state == state
    assert engine.get(DATA, b"a") == b"v"
    assert list(engine.scan(DATA, b"", b"z")) == [(b"a", b"v")]
    engine.close()


@pytest.mark.parametrize("text", ["No space left on device", "Input/output error"])
async def test_a_failed_sync_is_final_whatever_its_reason(engine: RocksEngine, text: str) -> None:
    put(engine, b"a")
    healthy, engine._db = engine._db, FailingDatabase(text)  # type: ignore[assignment]
    with pytest.raises(StorageFailed, match=text):
        await engine.sync()
    engine._db = healthy
    with pytest.raises(StorageFailed, match="restart the node"):
        put(engine, b"c")
    assert engine.state == "failed"
    engine.close()


def free_bytes_are(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr("cluster_core.storage.rocks._free_bytes", lambda _: free)


def test_the_reserve_is_a_file_that_shrinks_when_it_is_needed_and_grows_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserve, size = tmp_path / "store" / "RESERVE", 1 << 20
    engine = RocksEngine(tmp_path / "store", reserve_bytes=size)
    assert reserve.stat().st_blocks * 512 >= size
    for free, room, held in (
        (size // 2, True, 4),
        (size // 2 - 1, False, 4),
        (size // 4 - 1, False, 3),
        (0, False, 2),
        (0, False, 1),
        (size // 4, False, 1),
        (0, False, 0),
        (0, False, 0),
        (2 * size - 1, False, 0),
        (2 * size, False, 4),
        (size - 1, False, 4),
        (size, True, 4),
    ):
        free_bytes_are(monkeypatch, free)
        assert engine.has_room() is room
        assert engine.state == ("ok" if room else "full")
        assert (reserve.stat().st_size if held else reserve.exists()) == held * size // 4
        assert engine.room_bytes() == free + held * size // 4
    put(engine, b"a")
    engine.close()


def test_a_store_on_a_full_disk_gives_up_its_reserve_before_it_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    RocksEngine(tmp_path / "store", reserve_bytes=1 << 20).close()
    free_bytes_are(monkeypatch, 0)
    engine = RocksEngine(tmp_path / "store", reserve_bytes=1 << 20)
    assert engine.state == "full"
    assert (tmp_path / "store" / "RESERVE").stat().st_size < 1 << 19
    put(engine, b"a")
    engine.close()


def test_a_small_disk_has_a_small_reserve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = os.statvfs(tmp_path)
    free_bytes_are(monkeypatch, 0)
    engine = RocksEngine(tmp_path / "store", reserve_bytes=1 << 62)
    try:
        assert engine.reserve_bytes == disk.f_blocks * disk.f_frsize // 16
    finally:
        engine.close()


def test_closing_lets_go_of_everything(tmp_path: Path) -> None:
    for _ in range(3):
        engine = RocksEngine(tmp_path / "store")
        for n in range(100):
            put(engine, b"%03d" % n)
        kept = [engine.scan(DATA, b"", b"z"), engine.scan(DATA, b"", b"z", reverse=True)]
        batch = engine.batch()
        engine.first(DATA, b"", b"z")
        engine.close()
        del kept, batch
        gc.collect()


def test_a_range_delete_is_respected_by_reads_within_a_prefix(engine: RocksEngine) -> None:
    prefix = b"p" * 35
    for n in range(50):
        put(engine, prefix + b"%02d" % n)
    engine.flush()
    batch = engine.batch()
    batch.delete_range(DATA, prefix, prefix + b"40")
    engine.write(batch)
    assert engine.first(DATA, prefix, prefix + b"\xff") == (prefix + b"40", b"v")
    assert len(list(engine.scan(DATA, prefix, prefix + b"\xff"))) == 10
    engine.close()


def test_sizes_are_those_of_the_folder_and_its_disk(engine: RocksEngine) -> None:
    put(engine, b"a", os.urandom(500_000))
    assert 500_000 <= engine.disk_bytes() < 50_000_000
    assert engine.disk_free_bytes() > 0
    engine.close()
