"""``kotoba-cluster dev``: a local cluster in one command, until Ctrl-C."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Final

from rich.console import Console
from rich.table import Table

from app.commands import CommandFailed
from app.dev_cluster import ClusterFailed, LocalCluster, LocalNode

__all__ = ["dev"]

_PLAIN_WIDTH: Final = 100


def dev(nodes: int, port: int, data_dir: Path | None) -> None:
    """Start ``nodes`` nodes on ``port`` and the ports after it; stop them on Ctrl-C or SIGTERM."""
    stopped = _stop_event()
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_PLAIN_WIDTH)
    try:
        with LocalCluster(nodes, port=port, folder=data_dir) as cluster:
            console.print(f"starting {nodes} node{'s' * (nodes > 1)} …")
            seconds = _wait_ready(cluster, stopped)
            if not stopped.is_set():
                _introduce(console, cluster, seconds)
                _watch(cluster, stopped)
            console.print("stopping …")
    except ClusterFailed as error:
        raise CommandFailed(_one_line(error)) from None


def _stop_event() -> threading.Event:
    stopped = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stop)
    return stopped


def _wait_ready(cluster: LocalCluster, stopped: threading.Event) -> float:
    """Like wait_ready, but Ctrl-C ends it."""
    result: list[float | ClusterFailed] = []

    def wait() -> None:
        try:
            result.append(cluster.wait_ready())
        except ClusterFailed as error:
            result.append(error)

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    while waiting.is_alive() and not stopped.is_set():
        waiting.join(0.05)
    if stopped.is_set():
        return 0.0
    if isinstance(result[0], ClusterFailed):
        raise result[0]
    return result[0]


def _introduce(console: Console, cluster: LocalCluster, seconds: float) -> None:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for column in ("node", "API and docs", "log"):
        table.add_column(column, no_wrap=True)
    for node in cluster.nodes.values():
        table.add_row(node.node_id, f"{node.url}/docs", str(node.log))
    first, second = (cluster.urls * 2)[:2]
    console.print(f"[bold]ready in {seconds:.1f} s[/bold]\n")
    console.print(table)
    console.print(
        "\nTry, in another terminal (a write goes to any node; -L follows the redirect to the "
        "leader):\n"
    )
    for line in (
        f"  curl -L {first}/v1/operations -H 'Content-Type: application/json' \\",
        '    -d \'{"op": "create_node", "labels": ["Person"], "properties": {"name": "Alice"}}\'',
        f"  curl {second}/v1/query -H 'Content-Type: application/json' \\",
        '    -d \'{"query": {"kind": "find_nodes", "labels": ["Person"]}}\'',
        f"  kotoba --url {first} status",
    ):
        console.print(line, markup=False, soft_wrap=True)
    console.print("\nCtrl-C stops the cluster" + _what_stays(cluster))


def _what_stays(cluster: LocalCluster) -> str:
    if cluster.is_temporary:
        return " and removes its data; keep it with --data-dir."
    return f"; its data stays in {cluster.folder}."


def _watch(cluster: LocalCluster, stopped: threading.Event) -> None:
    """Report each node that dies, once; fail when none is left."""
    reported: set[str] = set()
    while not stopped.wait(0.25):
        for node in cluster.dead():
            if node.node_id not in reported:
                reported.add(node.node_id)
                print(_obituary(node), file=sys.stderr)
        if len(reported) == len(cluster.nodes):
            raise CommandFailed("every node has died")


def _obituary(node: LocalNode) -> str:
    code = node.process.poll() if node.process is not None else None
    how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended ({code})"
    return f"{node.node_id} {how}; its last lines:\n{node.log_tail()}"


def _one_line(error: ClusterFailed) -> str:
    """What went wrong, and the last line that the node itself said about it."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if len(lines) == 1 else f"{lines[0]} {lines[-1]}"
