"""What this node counts, in the text format of Prometheus.

The hot routes count with two dictionary look-ups (0.5 µs a request); the histogram of
prometheus-client takes locks for threads that we do not have. It still writes the text.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from cluster_core.status import ClusterStatus

__all__ = ["Metrics"]

BUCKETS_S: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""From an in-memory answer to the default time-out of a write."""


class _Durations:
    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS_S) + 1)
        self.sum_s = 0.0


class Metrics:
    """Requests by route, method and status; durations by route; the rest comes from the status."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, str, int]] = Counter()
        self._durations: dict[str, _Durations] = {}
        self._process: CollectorRegistry = CollectorRegistry()
        ProcessCollector(registry=self._process)

    def observe(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one answered request. ``route`` is a template, never a path with a CID in it."""
        self._requests[route, method, status] += 1
        durations = self._durations.get(route)
        if durations is None:
            durations = self._durations[route] = _Durations()
        durations.counts[bisect_left(BUCKETS_S, seconds)] += 1
        durations.sum_s += seconds

    def text(self, status: ClusterStatus | None) -> bytes:
        """The page for Prometheus; without ``status`` (it could not be had) only our own counts."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Families([*self._of_gateway(), *_of_cluster(status)]))
        return generate_latest(registry) + generate_latest(self._process)

    def _of_gateway(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "kotoba_http_requests",
            "Requests answered by this node.",
            labels=("route", "method", "status"),
        )
        for (route, method, status), count in sorted(self._requests.items()):
            requests.add_metric((route, method, str(status)), count)
        yield requests
        durations = HistogramMetricFamily(
            "kotoba_http_request_duration_seconds",
            "Time from the first byte of a request to the last of its answer.",
            labels=("route",),
        )
        for route, measured in sorted(self._durations.items()):
            durations.add_metric((route,), _cumulative(measured.counts), measured.sum_s)
        yield durations


class _Families:
    """Families that are computed already, as a collector."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        return iter(self._families)


def _cumulative(counts: list[int]) -> list[tuple[str, float]]:
    buckets: list[tuple[str, float]] = []
    total = 0
    for bound, count in zip((*map(str, BUCKETS_S), "+Inf"), counts, strict=True):
        total += count
        buckets.append((bound, total))
    return buckets


def _of_cluster(status: ClusterStatus | None) -> Iterator[Metric]:
    if status is None:
        return
    replication, members = status.replication, status.membership
    yield CounterMetricFamily(
        "kotoba_operations_processed",
        "Operations that this node led to success.",
        value=replication.operations_processed,
    )
    yield CounterMetricFamily(
        "kotoba_operations_failed",
        "Operations that failed at this node.",
        value=replication.operations_failed,
    )
    yield _gauge(
        "kotoba_operations_queued",
        "Operations that wait for their outcome.",
        replication.total_queued_operations,
    )
    own = next((node for node in members.nodes if node.node_id == status.node_id), None)
    yield _gauge("kotoba_partitions_led", "Partitions led here.", own.leads if own else 0)
    yield _gauge("kotoba_partition_replicas", "Replicas here.", own.replicas if own else 0)
    yield _gauge(
        "kotoba_partitions_without_leader",
        "Partitions that this node knows no leader of.",
        status.partitions.without_leader,
    )
    yield _gauge(
        "kotoba_meta_leader",
        "1 at the leader of the meta group, else 0.",
        int(status.leader == status.node_id),
    )
    nodes = GaugeMetricFamily("kotoba_cluster_nodes", "Members by state.", labels=("state",))
    nodes.add_metric(("active",), members.active_nodes)
    nodes.add_metric(("suspected",), members.suspected_nodes)
    nodes.add_metric(("failed",), members.failed_nodes)
    yield nodes
    lag = GaugeMetricFamily(
        "kotoba_replication_lag_seconds",
        "How long ago the slowest replica of a peer was level with what is led here.",
        labels=("peer",),
    )
    for peer, lag_ms in sorted(replication.replication_lag_ms.items()):
        lag.add_metric((peer,), lag_ms / 1_000)
    yield lag
    yield _gauge("kotoba_storage_bytes", "Bytes on disk.", status.storage.disk_bytes)
    yield _gauge("kotoba_storage_free_bytes", "Bytes left.", status.storage.disk_free_bytes)


def _gauge(name: str, documentation: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, documentation, value=value)
