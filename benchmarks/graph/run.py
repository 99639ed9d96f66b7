"""Load the graph with ``kotoba import``, then ask one question after the other, one at a time."""

from __future__ import annotations

import http.client
import itertools
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

from app.bulk.ledger import Ledger
from app.dev_cluster import LocalCluster
from benchmarks.graph.model import SEED, Graph, name_of
from cluster_core.graph.cid import cid_text

__all__ = ["Asked", "Loaded", "Plan", "Results", "run"]

_READY_S: Final = 60.0
_INDEX_S: Final = 60.0
_SHORTEST_CHECKED: Final = 50
"""Paths that are checked: each costs a walk over much of the graph here."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How large, and for how long each question is asked."""

    vertices: int = 100_000
    edges: int = 500_000
    seconds: float = 10.0
    asked_max: int = 1_000
    load_s_max: float = 1_800.0


@dataclass(slots=True)
class Loaded:
    rows: int
    seconds: float

    @property
    def per_second(self) -> float:
        return self.rows / max(self.seconds, 1e-9)


@dataclass(slots=True)
class Asked:
    """One kind of question: how long each answer took, and how many were looked at and wrong."""

    name: str
    latencies_ms: list[float] = field(default_factory=list)
    rows: int = 0
    checked: int = 0
    wrong: int = 0
    note: str = ""

    def percentile_ms(self, percent: float) -> float:
        ordered = sorted(self.latencies_ms)
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else 0.0


@dataclass(slots=True)
class Results:
    nodes: Loaded
    edges: Loaded
    client_peak_mib: float
    node_peaks_mib: list[float]
    disk_bytes: int
    asked: list[Asked]


def run(plan: Plan, folder: Path, say: Callable[[str], None]) -> Results:
    """Measure; the cluster and its data are gone afterwards."""
    say(f"growing {plan.vertices:,} vertices and {plan.edges:,} edges")
    graph = Graph.grow(plan.vertices, plan.edges)
    nodes, edges = graph.write(folder)
    with LocalCluster(3) as cluster:
        cluster.wait_ready(_READY_S)
        state = folder / "state"
        loaded = [
            _load(cluster.urls[0], kind, path, state, plan.load_s_max, say)
            for kind, path in (("nodes", f"Person={nodes}"), ("edges", f"FOLLOWS={edges}"))
        ]
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        with closing(Ledger(state)) as ledger:
            cids = {int(key[1]): cid_text(digest) for key, digest in ledger.keyed_nodes()}
        assert len(cids) == plan.vertices, "every vertex was loaded"
        asking = _Asking(cluster.urls, graph, cids, plan)
        asked = []
        for question in asking.questions():
            say(question.name)
            asked.append(question)
        return Results(
            nodes=loaded[0],
            edges=loaded[1],
            client_peak_mib=peak,
            node_peaks_mib=_peaks_mib(cluster),
            disk_bytes=sum(one.stat().st_size for one in cluster.folder.rglob("*.sst"))
            + sum(one.stat().st_size for one in cluster.folder.rglob("*.log")),
            asked=asked,
        )


def _load(
    url: str, kind: str, what: str, state: Path, seconds_max: float, say: Callable[[str], None]
) -> Loaded:
    say(f"loading {kind}")
    command = "from app.cli import client; client()"
    ended = subprocess.run(
        [
            *(sys.executable, "-c", command, "--url", url),
            *("import", f"--{kind}", what, "--state", str(state), "--json"),
        ],
        stdout=subprocess.PIPE,
        timeout=seconds_max,
        check=True,
    )
    summary = orjson.loads(ended.stdout)
    assert summary["errors"] == 0
    return Loaded(summary["files"][0]["written"], summary["seconds"])


def _peaks_mib(cluster: LocalCluster) -> list[float]:
    """The largest resident memory of each node, where the system tells it."""
    peaks = []
    for node in cluster.nodes.values():
        assert node.process is not None
        status = Path(f"/proc/{node.process.pid}/status")
        if status.exists():
            lines = status.read_text().splitlines()
            peaks += [int(one.split()[1]) / 1024 for one in lines if one.startswith("VmHWM")]
    return peaks


class _Asking:
    """The questions, each to the next node."""

    def __init__(self, urls: list[str], graph: Graph, cids: dict[int, str], plan: Plan) -> None:
        self._connections = itertools.cycle(
            [http.client.HTTPConnection(url.removeprefix("http://"), timeout=60) for url in urls]
        )
        self._graph = graph
        self._cids = cids
        self._plan = plan

    def questions(self) -> Iterator[Asked]:
        yield self._ask("point read", self._point_read)
        for depth in (1, 2, 3):
            yield self._ask(f"{depth}-hop neighbourhood", self._neighbourhood(depth))
        yield self._ask("shortest path", self._shortest_path)
        scanned = self._ask("find by property", self._find, note="scan of the label")
        yield scanned
        if self._declare_index():
            yield self._ask("find by property", self._find, note="index Person.name")

    def _ask(
        self, name: str, once: Callable[[Asked, random.Random], None], note: str = ""
    ) -> Asked:
        asked = Asked(name, note=note)
        draw = random.Random(SEED)
        once(Asked("warm up"), draw)
        ends = time.monotonic() + self._plan.seconds
        while time.monotonic() < ends and len(asked.latencies_ms) < self._plan.asked_max:
            once(asked, draw)
        return asked

    def _send(self, method: str, path: str, body: Any = None) -> tuple[int, Any, float]:
        connection = next(self._connections)
        content = None if body is None else orjson.dumps(body)
        headers = {} if body is None else {"Content-Type": "application/json"}
        began = time.perf_counter()
        connection.request(method, path, content, headers)
        answer = connection.getresponse()
        received = answer.read()
        took_ms = (time.perf_counter() - began) * 1000
        return answer.status, orjson.loads(received), took_ms

    def _query(self, asked: Asked, query: dict[str, Any]) -> list[Any]:
        status, document, took_ms = self._send(
            "POST", "/v1/query", {"query": query, "timeout_ms": 60_000}
        )
        if status != 200:
            raise RuntimeError(f"{asked.name}: {document}")
        asked.latencies_ms.append(took_ms)
        rows: list[Any] = document["rows"]
        asked.rows += len(rows)
        return rows

    def _vertex(self, draw: random.Random) -> int:
        return draw.randrange(self._graph.vertices)

    def _point_read(self, asked: Asked, draw: random.Random) -> None:
        vertex = self._vertex(draw)
        status, document, took_ms = self._send("GET", f"/v1/nodes/{self._cids[vertex]}")
        asked.latencies_ms.append(took_ms)
        asked.rows += 1
        _check(asked, status == 200 and document["properties"]["name"] == name_of(vertex))

    def _neighbourhood(self, depth: int) -> Callable[[Asked, random.Random], None]:
        def once(asked: Asked, draw: random.Random) -> None:
            vertex = self._vertex(draw)
            start = [self._cids[vertex]]
            rows = self._query(
                asked, {"kind": "traverse", "start": start, "max_depth": depth, "limit": 10_000}
            )
            _check(asked, len(rows) == self._graph.reached(vertex, depth))

        return once

    def _shortest_path(self, asked: Asked, draw: random.Random) -> None:
        source, target = self._vertex(draw), self._vertex(draw)
        rows = self._query(
            asked,
            {
                "kind": "shortest_path",
                "source": self._cids[source],
                "target": self._cids[target],
                "direction": "both",
            },
        )
        if asked.checked < _SHORTEST_CHECKED:
            length = rows[0]["length"] if rows else None
            _check(asked, length == self._graph.distance(source, target))

    def _find(self, asked: Asked, draw: random.Random) -> None:
        vertex = self._vertex(draw)
        where = {"property": "name", "op": "eq", "value": name_of(vertex)}
        rows = self._query(asked, {"kind": "find_nodes", "labels": ["Person"], "where": where})
        _check(asked, [row["cid"] for row in rows] == [self._cids[vertex]])

    def _declare_index(self) -> bool:
        """Whether there is an index now, built and used."""
        status, _, _ = self._send("POST", "/v1/indexes", {"label": "Person", "property": "name"})
        if status >= 300:
            return False
        where = {"property": "name", "op": "eq", "value": name_of(0)}
        query = {"kind": "find_nodes", "labels": ["Person"], "where": where}
        deadline = time.monotonic() + _INDEX_S
        while time.monotonic() < deadline:
            _, answer, _ = self._send("POST", "/v1/query", {"query": query, "timeout_ms": 60_000})
            if answer.get("statistics", {}).get("index") == "Person.name":
                return True
            time.sleep(0.2)
        return False


def _check(asked: Asked, holds: bool) -> None:
    asked.checked += 1
    asked.wrong += not holds
