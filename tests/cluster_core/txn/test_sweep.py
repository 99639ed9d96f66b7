"""What is forgotten of old requests and transactions, on a node of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from cluster_core.cluster import KotobaCluster
from cluster_core.config import ClusterConfig, ReplicationConfig
from cluster_core.replication.command import decode_command
from cluster_core.replication.replica import Replica
from cluster_core.storage import keys
from cluster_core.txn.items import DedupeEntry, encode_dedupe
from cluster_core.txn.participant import read_horizon
from cluster_core.txn.records import RecordState, TransactionRecord, encode_record
from cluster_core.txn.recovery import PAUSE_AFTER
from cluster_core.txn.sweep import FORGET_MAX
from cluster_core.types import Timestamp
from tests.cluster_core.single_node import single_node

ENTRIES = 900
DEADLINE_S = 10.0
OLD: Timestamp = 1 << 16


@pytest.fixture
async def cluster() -> AsyncIterator[KotobaCluster]:
    config = ClusterConfig(
        partition_count=1,
        replication=ReplicationConfig(sweep_interval_ms=3_600_000, dedupe_entries_max=ENTRIES),
    )
    async with single_node(config) as node:
        yield node


def partition(cluster: KotobaCluster) -> Replica:
    return cluster.node.host.replicas[1]


async def put(cluster: KotobaCluster, pairs: dict[bytes, bytes]) -> None:
    replica = partition(cluster)
    draft = replica.draft()
    draft.advance(cluster.now())
    for key, value in pairs.items():
        draft.put(key, value)
    await replica.propose(draft, asyncio.get_running_loop().time() + DEADLINE_S)


def entry(timestamp: Timestamp) -> bytes:
    return encode_dedupe(DedupeEntry(b"fingerprint", [], timestamp))


def dedupe_key(number: int) -> bytes:
    return keys.dedupe(1, number.to_bytes(16, "big"))


async def forget(cluster: KotobaCluster) -> None:
    await cluster.node._sweep._forget(partition(cluster))


async def test_what_has_expired_goes_and_the_rest_stays(cluster: KotobaCluster) -> None:
    now = cluster.now()
    await put(cluster, {dedupe_key(number): entry(OLD) for number in range(10)})
    await put(cluster, {dedupe_key(number): entry(now) for number in range(10, 15)})
    await forget(cluster)
    replica = partition(cluster)
    kept = [key for key, _ in replica.table(keys.DEDUPE)]
    assert kept == [number.to_bytes(16, "big") for number in range(10, 15)]
    assert not replica.dedupe_full


async def test_traces_of_aborts_go_behind_a_horizon(cluster: KotobaCluster) -> None:
    now = cluster.now()
    aborted, staged = RecordState.ABORTED, RecordState.STAGING
    records = {
        b"old": TransactionRecord(aborted, OLD, 0, []),
        b"new": TransactionRecord(aborted, now, 0, []),
        b"undecided": TransactionRecord(staged, OLD, OLD, []),
    }
    await put(cluster, {keys.record(1, key): encode_record(one) for key, one in records.items()})
    await put(cluster, {keys.refusal(1, b"refused"): OLD.to_bytes(8, "big")})
    await forget(cluster)
    replica = partition(cluster)
    assert [key for key, _ in replica.table(keys.RECORD)] == [b"new", b"undecided"]
    assert not replica.table(keys.REFUSAL)
    assert replica.evaluation is not None
    assert OLD <= read_horizon(replica.evaluation) < now


async def test_more_than_one_command_may_remove_goes_in_one_look(cluster: KotobaCluster) -> None:
    count = 2 * FORGET_MAX + 1
    refusals = {
        keys.refusal(1, number.to_bytes(16, "big")): OLD.to_bytes(8, "big")
        for number in range(count)
    }
    await put(cluster, refusals | {dedupe_key(number): entry(OLD) for number in range(count)})
    replica = partition(cluster)
    first = replica.log.last_index() + 1
    await forget(cluster)
    assert not replica.table(keys.REFUSAL)
    assert not replica.table(keys.DEDUPE)
    commands = replica.log.entries(first, replica.log.last_index() + 1, 1 << 30)
    deleted = [len(decode_command(one.data).deletes) for one in commands if one.data]
    assert [number for number in deleted if number] == [FORGET_MAX, FORGET_MAX, 1] * 2


async def test_a_look_at_very_many_requests_holds_nobody_up(cluster: KotobaCluster) -> None:
    await put(cluster, {dedupe_key(number): entry(cluster.now()) for number in range(ENTRIES)})
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.ensure_future(count_turns())
    await forget(cluster)
    counting.cancel()
    assert turns >= ENTRIES // PAUSE_AFTER - 1  # it begins with the first pause
    assert partition(cluster).dedupe_full


async def test_what_was_remembered_anew_during_a_look_stays(cluster: KotobaCluster) -> None:
    await put(cluster, {dedupe_key(number): entry(OLD) for number in range(ENTRIES)})
    forgetting = asyncio.ensure_future(forget(cluster))
    await asyncio.sleep(0)
    anew = entry(cluster.now())
    remembering = asyncio.ensure_future(put(cluster, {dedupe_key(0): anew}))
    await asyncio.gather(forgetting, remembering)
    assert partition(cluster).table(keys.DEDUPE) == [(bytes(16), anew)]
