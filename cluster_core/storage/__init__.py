"""Storage: engines behind one protocol, where everything lives, and reads at a timestamp.

:class:`MemoryEngine` serves the simulator, :class:`RocksEngine` everybody else. Keys are built by
``storage.keys``; versions are read through ``storage.mvcc``.
"""

from __future__ import annotations

from cluster_core.storage.memory import MemoryDisk, MemoryEngine
from cluster_core.storage.mvcc import newest, read_at, scan_at, scan_newest, versions
from cluster_core.storage.rocks import RocksEngine

__all__ = [
    "MemoryDisk",
    "MemoryEngine",
    "RocksEngine",
    "newest",
    "read_at",
    "scan_at",
    "scan_newest",
    "versions",
]
