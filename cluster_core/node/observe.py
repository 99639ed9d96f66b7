"""Status, health and readiness: what a node tells of itself and of the cluster as it sees it."""

from __future__ import annotations

import asyncio
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

from cluster_core.config import ClusterConfig
from cluster_core.errors import NotFound
from cluster_core.node.node import ClusterNode
from cluster_core.placement.table import GroupTable
from cluster_core.ports import Engine, StorageState
from cluster_core.status import (
    ClusterStatus,
    HealthStatus,
    MembershipStatus,
    MemberStatus,
    PartitionsStatus,
    PartitionStatus,
    ReadyStatus,
    ReplicaStatus,
    ReplicationStatus,
    StorageStatus,
)
from cluster_core.types import META_GROUP, GroupId, NodeId, ReplicaId, group_of

__all__ = ["Observed", "health_of", "partition_status", "readiness_of", "status_of"]

try:
    VERSION = version("kotoba-db-cluster")
except PackageNotFoundError:  # imported from a source tree that was never installed
    VERSION = "0"


class Observed(NamedTuple):
    """What there is to look at: ``founded`` is None until there is a cluster, and ``trouble`` then
    says why, as far as it is known. ``engine`` is None before the store is open, and while there is
    no room to open it (``waits_for_room``)."""

    node_id: NodeId
    config: ClusterConfig
    engine: Engine | None
    founded: ClusterNode | None
    trouble: str | None
    waits_for_room: bool = False

    @property
    def storage_state(self) -> StorageState:
        if self.founded is not None:
            return self.founded.storage.state
        if self.engine is not None:
            return self.engine.state
        return "full" if self.waits_for_room else "failed"

    @property
    def has_replicas(self) -> bool:
        """False once the disk failed, or was filled to the last byte."""
        return self.founded is not None and self.founded.host.storage_error is None


def status_of(cluster: Observed) -> ClusterStatus:
    node = cluster.founded
    if node is None:
        return _status_before_founding(cluster)
    meta = node.host.replicas.get(META_GROUP)
    return ClusterStatus(
        cluster_id=node.founding.cluster_id,
        node_id=node.node_id,
        version=VERSION,
        leader=node.router.leader(META_GROUP),
        term=0 if meta is None else meta.raft.term,
        membership=_membership(node),
        partitions=_partitions(node),
        replication=_replication(node),
        storage=_storage(cluster),
    )


def _status_before_founding(cluster: Observed) -> ClusterStatus:
    return ClusterStatus(
        cluster_id=None,
        node_id=cluster.node_id,
        version=VERSION,
        leader=None,
        term=0,
        membership=MembershipStatus(
            total_nodes=0,
            active_nodes=0,
            suspected_nodes=0,
            failed_nodes=0,
            has_quorum=False,
            health_score=0.0,
            nodes=[],
        ),
        partitions=PartitionsStatus(
            partition_count=cluster.config.partition_count,
            replication_factor=cluster.config.replication_factor,
            without_leader=cluster.config.partition_count,
            under_replicated=0,
            moving=0,
            variance=0.0,
        ),
        replication=ReplicationStatus(
            is_healthy=False,
            replication_lag_ms={},
            total_queued_operations=0,
            operations_processed=0,
            operations_failed=0,
        ),
        storage=_storage(cluster),
    )


def _state_of(node: ClusterNode, name: NodeId) -> str:
    return "active" if name == node.node_id else node.detector.state(name)


def _leaders(node: ClusterNode) -> dict[int, NodeId | None]:
    """The leader of each partition's group. A leader that is known to be gone leads nothing."""
    count = node.founding.partition_count
    leaders = {group_of(p): node.router.leader(group_of(p)) for p in range(count)}
    return {
        group: leader if leader is None or _state_of(node, leader) != "failed" else None
        for group, leader in leaders.items()
    }


def _membership(node: ClusterNode) -> MembershipStatus:
    leaders = list(_leaders(node).values())
    meta = node.tables[META_GROUP]
    voters = meta.voter_nodes
    members = [
        MemberStatus(
            node_id=member.node_id,
            address=member.address,
            state=_state_of(node, member.node_id),
            role=member.role,
            zone=member.zone,
            leads=leaders.count(member.node_id),
            replicas=sum(
                member.node_id in table.nodes
                for group, table in node.tables.items()
                if group != META_GROUP
            ),
        )
        for member in node.founding.members
    ]
    states = [member.state for member in members]
    active = states.count("active")
    alive = sum(_state_of(node, voter) == "active" for voter in voters)
    return MembershipStatus(
        total_nodes=len(members),
        active_nodes=active,
        suspected_nodes=states.count("suspected"),
        failed_nodes=states.count("failed"),
        has_quorum=alive > len(voters) // 2,
        health_score=round(active / len(members), 3),
        nodes=members,
    )


def _partitions(node: ClusterNode) -> PartitionsStatus:
    counts: dict[NodeId, int] = dict.fromkeys(node.addresses, 0)
    under = 0
    for group, table in node.tables.items():
        if group == META_GROUP:
            continue
        for name in table.nodes:
            counts[name] += 1
        under += any(_state_of(node, name) != "active" for name in table.nodes)
    mean = sum(counts.values()) / len(counts)
    return PartitionsStatus(
        partition_count=node.founding.partition_count,
        replication_factor=node.founding.replication_factor,
        without_leader=sum(leader is None for leader in _leaders(node).values()),
        under_replicated=under,
        moving=sum(not table.settled for table in node.tables.values()),
        variance=round(sum((count - mean) ** 2 for count in counts.values()) / len(counts), 3),
    )


def _replication(node: ClusterNode) -> ReplicationStatus:
    lags = replication_lag_ms(node)
    bound_ms = node.config.membership.fail_after_ms
    return ReplicationStatus(
        is_healthy=all(lag < bound_ms for lag in lags.values()),
        replication_lag_ms=lags,
        total_queued_operations=sum(replica.queued for replica in node.host.replicas.values()),
        operations_processed=node.writes.processed,
        operations_failed=node.writes.failed,
    )


def replication_lag_ms(node: ClusterNode) -> dict[NodeId, float]:
    """For each peer that follows a group led here: since when its slowest replica is not level."""
    now = asyncio.get_running_loop().time()
    lags: dict[NodeId, float] = {}
    for replica in node.host.replicas.values():
        if not replica.is_leader:
            continue
        for other in replica.raft.configuration.members:
            name = replica.members.get(other)
            if other != replica.id and name is not None:
                lag = (now - replica.level_since(other, now)) * 1000
                lags[name] = round(max(lag, lags.get(name, 0.0)), 1)
    return lags


def _storage(cluster: Observed) -> StorageStatus:
    engine = cluster.engine
    if engine is None:
        return StorageStatus(state=cluster.storage_state, disk_bytes=0, disk_free_bytes=0)
    return StorageStatus(
        state=cluster.storage_state,
        disk_bytes=engine.disk_bytes(),
        disk_free_bytes=engine.disk_free_bytes(),
    )


def health_of(cluster: Observed) -> HealthStatus:
    """Of the cluster; ``can_serve`` is of this node alone, so that one dead peer does not take all
    nodes out of a load balancer."""
    status = status_of(cluster)
    if cluster.founded is None:
        reason = cluster.trouble or "this node has not joined a cluster yet"
        return HealthStatus(
            is_healthy=False, failed_nodes_count=0, reasons=[reason], can_serve=False
        )
    reasons = [
        f"{member.node_id} is {member.state}"
        for member in status.membership.nodes
        if member.state != "active"
    ]
    if not status.membership.has_quorum:
        reasons.append("fewer than half of the nodes are reachable")
    if status.partitions.without_leader:
        reasons.append(f"{status.partitions.without_leader} partitions have no leader")
    reasons += [
        f"the disk of {name} {'is full' if state == 'full' else 'failed'}"
        for name, state in cluster.founded.storage.states().items()
        if state != "ok"
    ]
    reasons += [
        f"the clock of {name} is {ahead_ms / 1000:.1f} s ahead of its peers'"
        for name, ahead_ms in cluster.founded.clocks.ahead_ms().items()
    ]
    reasons += [
        f"the replica of {_name_of(group)} at {name} differs from the others, and is made anew"
        for name, groups in cluster.founded.comparison.distrusted().items()
        for group in sorted(groups)
    ]
    return HealthStatus(
        is_healthy=not reasons,
        failed_nodes_count=status.membership.failed_nodes,
        reasons=reasons,
        can_serve=cluster.has_replicas and status.membership.has_quorum,
    )


def _name_of(group: GroupId) -> str:
    return "the meta group" if group == META_GROUP else f"partition {group - 1}"


def readiness_of(cluster: Observed) -> ReadyStatus:
    node = cluster.founded
    storage_ok = cluster.storage_state == "ok"
    if node is None:
        return ReadyStatus(
            is_ready=False,
            joined=False,
            storage_ok=storage_ok,
            partitions_with_leader=0,
            partition_count=cluster.config.partition_count,
            missing=[cluster.trouble or "waiting for the other founding nodes"],
        )
    count = node.founding.partition_count
    reachable = sum(_is_reachable(node, leader) for leader in _leaders(node).values())
    missing = []
    if not cluster.has_replicas:
        state = cluster.storage_state
        missing.append(f"the disk of this node {'is full' if state == 'full' else 'failed'}")
    if ahead_ms := node.clocks.own_ahead_ms:
        missing.append(f"the clock of this node is {ahead_ms / 1000:.1f} s ahead of its peers'")
    if reachable * 10 < count * 9:
        missing.append(f"{count - reachable} of {count} partitions have no leader within reach")
    return ReadyStatus(
        is_ready=not missing,
        joined=True,
        storage_ok=storage_ok,
        partitions_with_leader=reachable,
        partition_count=count,
        missing=missing,
    )


def _is_reachable(node: ClusterNode, leader: NodeId | None) -> bool:
    return leader is not None and (leader == node.node_id or leader in node.peers_up)


def partition_status(node: ClusterNode, partition: int) -> PartitionStatus:
    """Raises NotFound."""
    table = node.tables.get(group_of(partition)) if partition >= 0 else None
    if table is None:
        raise NotFound(f"there is no partition {partition}")
    replica = node.host.replicas.get(group_of(partition))
    diverged = node.comparison.at(group_of(partition))
    leads = replica is not None and replica.is_leader
    return PartitionStatus(
        partition=partition,
        leader=node.router.leader(group_of(partition)),
        term=0 if replica is None else replica.raft.term,
        commit_index=0 if replica is None else replica.raft.commit,
        applied_index=0 if replica is None else replica.applied,
        replicas=[
            ReplicaStatus(
                node_id=name,
                replica_id=other,
                role=_role_of(table, other),
                match_index=replica.raft.match_index(other) if leads and replica else None,
                state="diverged" if name in diverged else "ok",
            )
            for other, name in table.members.items()
        ],
        preferred=table.nodes,
    )


def _role_of(table: GroupTable, replica: ReplicaId) -> str:
    if replica in table.voters:
        return "voter"
    return "learner" if replica in table.learners else "leaving"
