"""The demo from its first line to its last: form, load, ask, kill, recover, leave nothing."""

from __future__ import annotations

import asyncio
import platform
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from types import FrameType
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from app.demo.api import Api, DemoFailed, Json
from app.demo.code_graph import CodeGraph, read_code_graph, standard_library
from app.demo.failover import Outage, Writers, measure_outage, missing_cids, partitions_led
from app.demo.load import Cids, load_edges, load_vertices
from app.demo.questions import Asked, ask_all
from app.demo.watch import EventWatch
from app.dev_cluster import ClusterFailed, LocalCluster

__all__ = ["demo"]

_WRITE_BEFORE_S: Final = 2.0
_WRITE_AFTER_S: Final = 4.0
_CATCH_UP_S: Final = 30.0
_PLAIN_WIDTH: Final = 100
_EVENT_S: Final = 15.0
"""How long an event about the killed node may take: longer than a node is silent before it is
called failed."""


def demo() -> int:
    """Run the demo; the exit code: 0 when everything that it promises happened."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_PLAIN_WIDTH)
    began = time.monotonic()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        with LocalCluster(3) as cluster:
            try:
                asyncio.run(_Story(console, cluster).tell())
            except (DemoFailed, ClusterFailed):
                cluster.keep()
                raise
    except (DemoFailed, ClusterFailed) as error:
        console.print(f"\n[bold red]The demo failed:[/] {escape(str(error))}")
        console.print(f"The nodes are stopped; their logs and data are in {cluster.folder}.")
        return 1
    console.print(
        f"\nAll nodes are stopped and the temporary folder is gone, after {_seconds(began)} in all."
        "\nA cluster to play with: [bold]kotoba-cluster dev[/]"
    )
    return 0


def _terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


class _Story:
    """Its chapters, in order; each prints what it does and raises DemoFailed when it cannot."""

    def __init__(self, console: Console, cluster: LocalCluster) -> None:
        self.console = console
        self.cluster = cluster
        self.chapters = 0

    async def tell(self) -> None:
        async with Api(self.cluster.urls) as api:
            status = await self._form(api)
            # Listens at a node that will live on.
            listener = next(name for name in self.cluster.nodes if name != status["leader"])
            async with EventWatch(self.cluster.nodes[listener].url) as watch:
                graph = await self._read()
                cids = await self._load(api, graph)
                await self._ask(api, cids)
                await self._kill(api, graph, cids, listener, watch)
                self._events(listener, watch)

    # Chapters

    async def _form(self, api: Api) -> Json:
        self._chapter("Three nodes form a cluster")
        began = time.monotonic()
        await asyncio.to_thread(self.cluster.wait_ready)
        self._say(f"ready in {_seconds(began)}, from three empty folders")
        status = await api.get(api.urls[0], "/v1/status")
        partitions = status["partitions"]
        for node in status["membership"]["nodes"]:
            role = ", leads the cluster" if node["node_id"] == status["leader"] else ""
            self._say(f"{node['node_id']}  http://{node['address']}/docs{role}")
        self._say(
            f"{partitions['partition_count']} partitions, each replicated by a Raft group of "
            f"{partitions['replication_factor']}"
        )
        return status

    async def _read(self) -> CodeGraph:
        self._chapter(f"The standard library of Python {platform.python_version()} as a graph")
        began = time.monotonic()
        graph = await asyncio.to_thread(read_code_graph, standard_library())
        skipped = f", {len(graph.skipped)} of them no valid Python" if graph.skipped else ""
        self._say(
            f"{graph.files:,} files, {graph.lines:,} lines{skipped}, read in {_seconds(began)}"
        )
        vertices: Counter[str] = Counter(vertex.label for vertex in graph.vertices)
        edges = Counter(edge.label for edge in graph.edges)
        self._say(f"{len(graph.vertices):,} nodes: {_counts(vertices)}")
        self._say(f"{len(graph.edges):,} edges: {_counts(edges)}")
        return graph

    async def _load(self, api: Api, graph: CodeGraph) -> Cids:
        self._chapter("Loading it through the public API, six connections to all nodes")
        with self._progress("nodes", len(graph.vertices)) as advance:
            cids = await load_vertices(api, graph, advance)
        with self._progress("edges", len(graph.edges)) as advance:
            await load_edges(api, graph, cids, advance)
        self._say(
            "each operation durable on a majority before it counts; an edge between two "
            "partitions is a transaction"
        )
        return cids

    async def _ask(self, api: Api, cids: Cids) -> None:
        self._chapter("Questions")
        for answer in await ask_all(Asked(api, cids)):
            self._print(Text(answer.question, "bold"), 2)
            for line in answer.lines:
                self._print(Text(line), 4)
            self._print(Text(f"({answer.seconds * 1000:,.0f} ms: {answer.how})", "dim"), 4)

    async def _kill(
        self, api: Api, graph: CodeGraph, cids: Cids, listener: str, watch: EventWatch
    ) -> None:
        self._chapter("kill -9, while 48 clients write")
        url = self.cluster.nodes[listener].url
        writers = Writers(api.urls)
        writers.start()
        await asyncio.sleep(_WRITE_BEFORE_S)
        victim = await self._choose_victim(api, url, listener)
        orphaned = await partitions_led(api, url, victim)
        before = len(writers.acknowledged)
        killed_at = time.monotonic()
        self.cluster.kill(victim)
        self._say(
            f"[bold red]{victim}[/] killed: it led {len(orphaned)} partitions; "
            f"{before:,} writes were acknowledged until now"
        )
        await asyncio.sleep(_WRITE_AFTER_S)
        await writers.stop()
        acknowledged = writers.acknowledged
        self._report_outage(measure_outage(acknowledged, killed_at, orphaned), victim, orphaned)
        self._say(
            f"{len(acknowledged) - before:,} more acknowledged by the two others, "
            f"{writers.retries:,} tries repeated under their Idempotency-Key"
        )
        written = [item.cid for item in acknowledged]
        await self._check_nothing_missing(api, graph, cids, written, url)
        await watch.wait_for("NodeFailed", victim, after=killed_at, timeout_s=_EVENT_S)
        await self._bring_back(api, victim, written)
        await watch.wait_for("NodeRecovered", victim, after=killed_at, timeout_s=_EVENT_S)

    async def _choose_victim(self, api: Api, url: str, listener: str) -> str:
        """The leader of the cluster, or if that is where we listen, who leads most partitions."""
        status = await api.get(url, "/v1/status")
        if status["leader"] not in (None, listener):
            return str(status["leader"])
        others = [n for n in status["membership"]["nodes"] if n["node_id"] != listener]
        return str(max(others, key=lambda node: node["leads"])["node_id"])

    def _report_outage(self, outage: Outage, victim: str, orphaned: list[int]) -> None:
        if outage.first is None:
            raise DemoFailed(f"no write was acknowledged after {victim} was killed")
        self._say(f"first write acknowledged [bold]{_ms(outage.first)}[/] after the kill")
        if outage.first_orphaned is not None:
            self._say(
                f"first in a partition that {victim} led: [bold]{_ms(outage.first_orphaned)}[/]"
            )
        if outage.all_orphaned is not None:
            self._say(
                f"all {len(orphaned)} of them written again after "
                f"[bold]{_ms(outage.all_orphaned)}[/]"
            )
        self._say(f"longest time without any acknowledgement: {_ms(outage.longest_gap)}")

    async def _check_nothing_missing(
        self, api: Api, graph: CodeGraph, cids: Cids, written: list[str], url: str
    ) -> None:
        began = time.monotonic()
        everything = [*cids.values(), *written]
        missing = await missing_cids(api, everything, url=url)
        vertices, edges = await Asked(api, cids).counts()
        if missing:
            raise DemoFailed(f"{len(missing):,} acknowledged nodes are missing: {missing[:3]} …")
        if vertices < len(everything) or edges != len(graph.edges):
            raise DemoFailed(
                f"{len(everything):,} nodes and {len(graph.edges):,} edges were acknowledged, "
                f"{vertices:,} and {edges:,} are there"
            )
        self._good(
            f"nothing acknowledged is missing: {vertices:,} nodes and {edges:,} edges are there, "
            f"by strong reads ({_seconds(began)})"
        )

    async def _bring_back(self, api: Api, victim: str, written: list[str]) -> None:
        began = time.monotonic()
        self.cluster.start(victim)
        await asyncio.to_thread(self.cluster.wait_ready, _CATCH_UP_S, victim)
        self._say(f"{victim} started again on its disk: ready after {_seconds(began)}")
        url = self.cluster.nodes[victim].url
        while missing := await missing_cids(api, written, url=url, consistency="eventual"):
            if time.monotonic() - began > _CATCH_UP_S:
                raise DemoFailed(f"{victim} does not catch up: {len(missing):,} writes missing")
            await asyncio.sleep(0.05)
        self._good(
            f"{victim} has caught up after {_seconds(began)}: its own replicas have all "
            f"{len(written):,} writes"
        )

    def _events(self, listener: str, watch: EventWatch) -> None:
        self._chapter(f"What {listener} said meanwhile on ws /v1/events")
        elections: Counter[str] = Counter()
        for _, event in watch.seen:
            if event["type"] == "LeaderElected" and event.get("partition") is not None:
                elections[event["node_id"]] += 1
                continue
            self._flush_elections(elections)
            detail = f"  {escape(event['detail'])}" if event.get("detail") else ""
            self._say(f"{_clock(event['at'])}  {event['type']:<14} {event['node_id']}{detail}")
        self._flush_elections(elections)

    def _flush_elections(self, elections: Counter[str]) -> None:
        """One line for a run of elections: a node has dozens of groups."""
        if elections:
            counted = ", ".join(f"{node} {count}" for node, count in sorted(elections.items()))
            self._say(f"{'':12}  LeaderElected  of partitions: {counted}")
            elections.clear()

    # Lines

    def _chapter(self, title: str) -> None:
        self.chapters += 1
        self.console.print(f"\n[bold cyan]{self.chapters}[/]  [bold]{title}[/]")

    def _say(self, text: str) -> None:
        self._print(Text.from_markup(text), 2)

    def _print(self, text: Text, indent: int) -> None:
        for line in text.wrap(self.console, self.console.width - indent):
            line.rstrip()
            self.console.print(Text(" " * indent) + line)

    def _good(self, text: str) -> None:
        self._say(f"[green]✓[/] {text}")

    @contextmanager
    def _progress(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        began = time.monotonic()
        bar = Progress(
            TextColumn("  {task.description}"),
            BarColumn(30),
            TextColumn("{task.completed:,.0f} of {task.total:,.0f}  {task.fields[rate]}"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        with bar:
            task = bar.add_task(what, total=total, rate="")

            def advance(count: int) -> None:
                done = bar.tasks[0].completed + count
                bar.update(task, advance=count, rate=f"{_rate(done, began):,.0f}/s")

            yield advance
        self._say(
            f"{total:,} {what} in {_seconds(began)}: [bold]{_rate(total, began):,.0f} {what}/s[/]"
        )


def _rate(count: float, began: float) -> float:
    return count / max(time.monotonic() - began, 1e-9)


def _seconds(began: float) -> str:
    return f"{time.monotonic() - began:.1f} s"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:,.0f} ms"


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{count:,} {label}" for label, count in counter.most_common())


def _clock(at: str) -> str:
    return datetime.fromisoformat(at).strftime("%H:%M:%S.%f")[:-3]
