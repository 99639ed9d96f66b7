"""A snapshot between nodes as they are shipped: over HTTP, from RocksDB to RocksDB."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from app.internal.transport import HttpTransport
from cluster_core.cluster import KotobaCluster
from cluster_core.config import ClusterConfig, RaftConfig, ReplicationConfig
from cluster_core.graph.operations import BatchOperation, CreateNode
from cluster_core.query.plan import Get

CONFIG = ClusterConfig(
    partition_count=1,
    raft=RaftConfig(log_keep_entries=4, log_entries_max=8),
    replication=ReplicationConfig(snapshot_chunk_bytes=20_000),
)


def free_addresses(count: int) -> list[str]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    addresses = [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]
    for one in sockets:
        one.close()
    return addresses


def node(number: int, addresses: list[str], folder: Path) -> KotobaCluster:
    config = replace(CONFIG, storage=replace(CONFIG.storage, reserve_bytes=0))
    transport = HttpTransport(secret="s3cret", random=random.Random(number))
    return KotobaCluster(
        f"node{number}",
        config,
        peers=addresses,
        transport=transport,
        data_dir=folder / f"node{number}",
    )


async def until(condition: Callable[[], bool]) -> None:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < 60
        await asyncio.sleep(0.02)


async def write(cluster: KotobaCluster, count: int) -> list[bytes]:
    """In entries of their own, some kilobytes each."""
    made = []
    for _ in range(count):
        operations = [
            BatchOperation(CreateNode(labels=("Thing",), properties={"text": "x" * 500}))
            for _ in range(20)
        ]
        for result in await cluster.execute_batch(operations):
            assert not isinstance(result, Exception)
            made.append(result.digest)
    return made


async def test_a_node_that_was_away_for_too_long_gets_one(tmp_path: Path) -> None:
    addresses = free_addresses(3)
    nodes = [node(number, addresses, tmp_path) for number in (1, 2, 3)]
    await asyncio.gather(*(one.start(at) for one, at in zip(nodes, addresses, strict=True)))
    try:
        for one in nodes:
            await one.ready()
        names = list(nodes[0].node.tables[1].members.values())
        away = int(names[-1].removeprefix("node")) - 1
        other = nodes[away - 1]
        made = await write(other, 10)
        await nodes[away].stop()
        made += await write(other, 40)
        await until(lambda: _truncated(nodes, away))
        back = nodes[away] = node(away + 1, addresses, tmp_path)
        await back.start(addresses[away])
        await until(lambda: back.founded is not None and back.node.incoming.installed > 0)
        made += await write(other, 5)
        for start in range(0, len(made), 500):
            query = Get(cids=tuple(made[start : start + 500]))
            assert len((await back.execute_query(query)).rows) == len(query.cids)
    finally:
        await asyncio.gather(*(one.stop() for one in nodes))


def _truncated(nodes: list[KotobaCluster], away: int) -> bool:
    present = [one for number, one in enumerate(nodes) if number != away]
    return all(one.node.host.replicas[1].raft.first_index > 30 for one in present)
