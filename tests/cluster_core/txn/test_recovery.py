"""What a sweep recovers, on a node of its own: each group for itself, and not too much at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from cluster_core.cluster import KotobaCluster
from cluster_core.config import ClusterConfig, ReplicationConfig
from cluster_core.errors import NoLeader, NotFound
from cluster_core.graph.operations import BatchOperation, CreateNode, DeleteNode
from cluster_core.replication.intents import Intent
from cluster_core.replication.replica import Replica
from cluster_core.replication.router import Router
from cluster_core.storage import keys
from cluster_core.txn.recovery import RECOVER_AT_ONCE, RECOVERIES_MAX, Recovery
from cluster_core.types import Digest, GroupId, NodeId, partition_of
from tests.cluster_core.single_node import count, single_node

PARTITIONS = 8
STUCK: GroupId = 3
DEADLINE_S = 30.0


@pytest.fixture
async def cluster() -> AsyncIterator[KotobaCluster]:
    replication = ReplicationConfig(sweep_interval_ms=5)
    config = ClusterConfig(partition_count=PARTITIONS, replication=replication)
    async with single_node(config) as node:
        yield node


def partitions(cluster: KotobaCluster) -> list[Replica]:
    return [replica for group, replica in cluster.node.host.replicas.items() if group]


def recovery(cluster: KotobaCluster) -> Recovery:
    return cluster.node._sweep._recovery


def intents(number: int, home: GroupId) -> list[Intent]:
    return [
        Intent(bytes((home, one)) * 8, 1, 1, home, [], [], [], [], b"") for one in range(number)
    ]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 (a table has no event)
            await asyncio.sleep(0.001)


async def test_no_group_waits_for_another(
    cluster: KotobaCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept = dict.fromkeys(cluster.node.host.replicas, 0)

    async def recover(self: Recovery, replica: Replica, silent_since: float) -> None:
        swept[replica.group] += 1
        if replica.group == STUCK:
            await asyncio.Event().wait()

    monkeypatch.setattr(Recovery, "recover_intents", recover)
    await until(lambda: all(times > 3 for group, times in swept.items() if group != STUCK))
    assert swept[STUCK] <= 2  # once with what was there before, once for good


async def test_of_all_groups_a_bounded_number_is_under_way(
    cluster: KotobaCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way: dict[GroupId, int] = {}
    seen: list[tuple[int, int]] = []
    done: list[bytes] = []

    async def recover(self: Recovery, replica: Replica, intent: Intent) -> None:
        group = replica.group
        under_way[group] = under_way.get(group, 0) + 1
        seen.append((under_way[group], sum(under_way.values())))
        await asyncio.sleep(0)
        under_way[group] -= 1
        done.append(intent.transaction)

    monkeypatch.setattr(Recovery, "_recover_intent", recover)
    found = {replica: intents(50, replica.group) for replica in partitions(cluster)}
    for replica, ones in found.items():
        monkeypatch.setattr(replica.intents, "seen_before", lambda _, ones=ones: ones)
    await asyncio.gather(*(recovery(cluster).recover_intents(one, 0.0) for one in found))
    assert {one.transaction for ones in found.values() for one in ones} <= set(done)
    assert max(of_group for of_group, _ in seen) <= 2 * RECOVER_AT_ONCE  # and the sweep's own
    assert max(of_all for _, of_all in seen) == RECOVERIES_MAX


async def test_what_needs_a_home_without_leader_stands_in_nobodys_way(
    cluster: KotobaCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_leader = Router.find_leader
    done: list[GroupId] = []

    async def find(self: Router, group: GroupId, deadline: float) -> NodeId:
        if group == STUCK:
            raise NoLeader("on purpose")
        return await find_leader(self, group, deadline)

    async def recover(self: Recovery, replica: Replica, intent: Intent) -> None:
        done.append(intent.record_group)

    monkeypatch.setattr(Router, "find_leader", find)
    monkeypatch.setattr(Recovery, "_recover_intent", recover)
    replica = partitions(cluster)[0]
    mixed = [*intents(250, STUCK), *intents(1, 5)]
    monkeypatch.setattr(replica.intents, "seen_before", lambda _: mixed)
    await recovery(cluster).recover_intents(replica, 0.0)
    assert set(done) == {5}


async def test_a_participant_that_refused_for_certain_is_left_alone(
    cluster: KotobaCluster,
) -> None:
    """It has no intent to take away, and no refusal that had to be forgotten again."""
    missing: Digest = b"m" * 32
    held = partition_of(missing, PARTITIONS)
    operations = [BatchOperation(CreateNode()) for _ in range(20)]
    with pytest.raises(NotFound):
        await cluster.execute_transaction([*operations, BatchOperation(DeleteNode(missing))])
    await until(lambda: not any(replica.intents for replica in partitions(cluster)))
    await until(lambda: not cluster.node._settlement._tasks)
    assert not cluster.node.host.replicas[held + 1].table(keys.REFUSAL)
    assert await count(cluster, "nodes") == 0
