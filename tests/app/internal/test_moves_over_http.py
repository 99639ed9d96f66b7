"""Replicas that move between nodes as they are shipped: over HTTP, from RocksDB to RocksDB."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

from app.internal.transport import HttpTransport
from cluster_core.cluster import KotobaCluster
from cluster_core.config import ClusterConfig
from cluster_core.errors import OutcomeUnknown, RetryError, StorageFull
from cluster_core.graph.operations import CreateNode
from cluster_core.node.residence import read_resident
from cluster_core.ports import DATA, RAFT
from cluster_core.query.plan import Count
from cluster_core.query.results import CountRow
from cluster_core.storage import keys
from cluster_core.types import META_GROUP, GroupId
from tests.app.internal.test_snapshots_over_http import free_addresses

CONFIG = ClusterConfig(partition_count=6)


def node(number: int, addresses: list[str], folder: Path) -> KotobaCluster:
    return KotobaCluster(
        f"node{number}",
        CONFIG,
        peers=addresses,
        transport=HttpTransport(secret="s3cret", random=random.Random(number)),
        data_dir=folder / f"node{number}",
    )


async def moves_ended(nodes: list[KotobaCluster]) -> None:
    async with asyncio.timeout(60):
        while sum([(await one.get_status()).partitions.moving for one in nodes]):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def write_until(stopped: asyncio.Event, at: KotobaCluster) -> int:
    """How many writes were made, each once."""
    written = 0
    while not stopped.is_set():
        await write(at, written)
        written += 1
    return written


async def write(at: KotobaCluster, number: int) -> None:
    """Until it is acknowledged: on a slow machine there may be elections."""
    thing = CreateNode(labels=("Thing",), properties={"n": number})
    while True:
        try:
            await at.execute_operation(thing, idempotency_key=f"{at.node_id}-{number}")
            return
        except StorageFull:
            raise
        except (RetryError, OutcomeUnknown):
            continue


async def count(at: KotobaCluster) -> int:
    (row,) = (await at.execute_query(Count(of="nodes", labels=("Thing",)))).rows
    assert isinstance(row, CountRow)
    return row.count


def keys_of(one: KotobaCluster, group: GroupId) -> list[bytes]:
    """What the store has of ``group``, but for the record of who was there."""
    assert one.engine is not None
    prefix = keys.group_prefix(group)
    found = [
        key
        for family in (DATA, RAFT)
        for key, _ in one.engine.scan(family, prefix, keys.after(prefix))
    ]
    return [key for key in found if key != keys.resident(group)]


async def test_a_node_is_emptied_under_writes_and_stays_empty(tmp_path: Path) -> None:
    addresses = free_addresses(4)
    nodes = [node(number, addresses, tmp_path) for number in (1, 2, 3, 4)]
    await asyncio.gather(*(one.start(at) for one, at in zip(nodes, addresses, strict=True)))
    try:
        for one in nodes:
            await one.ready()
        stopped = asyncio.Event()
        writers = [asyncio.create_task(write_until(stopped, one)) for one in nodes[1:]]
        emptied = []
        for status in await nodes[1].partitions():
            here = [replica.node_id for replica in status.replicas]
            if "node1" in here:
                (other,) = {one.node_id for one in nodes} - set(here)
                await nodes[1].move_partition(status.partition, "node1", other)
                emptied.append(status.partition + 1)
        await moves_ended(nodes)
        stopped.set()
        written = sum(await asyncio.gather(*writers))
        assert await count(nodes[0]) == written
        assert len(emptied) > 1
        await nodes[0].stop()
        nodes[0] = node(1, addresses, tmp_path)
        await nodes[0].start(addresses[0])
        await nodes[0].ready()
        assert list(nodes[0].node.host.replicas) == [META_GROUP]
        assert not any(keys_of(nodes[0], group) for group in emptied)
        assert nodes[0].engine is not None
        resident = read_resident(nodes[0].engine, emptied[0])
        assert resident is not None
        assert (resident.here, resident.removed > 0) == (0, True)
        assert await count(nodes[0]) == written
    finally:
        await asyncio.gather(*(one.stop() for one in nodes))
