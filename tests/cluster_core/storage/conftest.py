"""The two engines, each of which must keep the whole contract."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster_core.ports import Engine
from cluster_core.storage import MemoryDisk, MemoryEngine, RocksEngine

OpenEngine = Callable[[], Engine]


@pytest.fixture(params=["memory", "rocks"])
def open_engine(request: pytest.FixtureRequest, tmp_path: Path) -> OpenEngine:
    """Opens the same store again at every call."""
    if request.param == "memory":
        disk = MemoryDisk()
        return lambda: MemoryEngine(disk)
    return lambda: RocksEngine(tmp_path / "store", write_buffer_bytes=1 << 20)


@pytest.fixture
def engine(open_engine: OpenEngine) -> Iterator[Engine]:
    opened = open_engine()
    yield opened
    opened.close()
