"""A cluster of real node processes on this machine: for ``dev``, the demo, benchmarks and tests.

Each node runs in a session of its own, so that Ctrl-C reaches only its parent, and holds the read
end of a pipe whose other end only the parent has: when the parent ends in any way, SIGKILL
included, the pipe breaks and the node stops by itself.
"""

from __future__ import annotations

import contextlib
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final

import httpx

from app.settings import child_environment, option_of

__all__ = ["ClusterFailed", "LocalCluster", "LocalNode", "free_ports"]

HOST: Final = "127.0.0.1"
_PORTS: Final = (20_000, 32_000)
"""Below the range from which Linux takes ports for outgoing connections."""
_STOP_S: Final = 10.0
"""A node that has not stopped this long after SIGTERM is killed."""
_POLL_S: Final = 0.02
_RESERVE_BYTES: Final = 16 << 20
"""Of each node: temporary folders may be in memory."""


class ClusterFailed(Exception):
    """A node did not start, did not become ready, or died."""


def free_ports(count: int) -> list[int]:
    """``count`` ports of the loopback that nobody listens on now, drawn at random."""
    found: list[int] = []
    with contextlib.ExitStack() as held:
        for _ in range(1_000):
            if len(found) == count:
                return found
            port = random.randrange(*_PORTS)
            probe = held.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                probe.bind((HOST, port))
                found.append(port)
    raise ClusterFailed(f"found no {count} free ports on {HOST}")


@dataclass(slots=True)
class LocalNode:
    """One node: where it is, and its process while it runs."""

    node_id: str
    address: str
    data_dir: Path
    log: Path
    command: Sequence[str]
    process: subprocess.Popen[bytes] | None = None
    expected: bool = field(default=False)
    """Whether it is meant to run: a node that is and does not has died."""

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def log_tail(self, lines: int = 5) -> str:
        """The last lines of what it printed."""
        with contextlib.suppress(OSError):
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        return ""


class LocalCluster:
    """Nodes ``node1`` … on consecutive given or random free ports; use it as a context manager.

    ``folder`` keeps data and logs; without one a temporary folder is made, and removed by
    :meth:`close`. ``options`` are settings of every node (``{"tick_ms": 20}``). All calls block;
    from a coroutine call the ones that wait through :func:`asyncio.to_thread`.
    """

    def __init__(
        self,
        nodes: int = 3,
        *,
        port: int | None = None,
        folder: Path | None = None,
        options: Mapping[str, object] | None = None,
    ) -> None:
        self.is_temporary = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="kotoba-"))
        self._options = dict(options or {})
        self._environment = {
            **child_environment(),
            "KOTOBA_CLUSTER_SECRET": _lasting_secret(self.folder),
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "PYTHONUNBUFFERED": "1",
        }
        ports = free_ports(nodes) if port is None else list(range(port, port + nodes))
        addresses = [f"{HOST}:{number}" for number in ports]
        self.nodes: dict[str, LocalNode] = {}
        for number, address in enumerate(addresses, start=1):
            self._add(f"node{number}", address, addresses)

    def _add(self, node_id: str, address: str, addresses: list[str]) -> None:
        data_dir = self.folder / node_id
        self.nodes[node_id] = LocalNode(
            node_id=node_id,
            address=address,
            data_dir=data_dir,
            log=self.folder / f"{node_id}.log",
            command=node_command(
                {
                    "node_id": node_id,
                    "address": address,
                    "peers": ",".join(other for other in addresses if other != address),
                    "data_dir": data_dir,
                    "stop_on_stdin_eof": True,
                    "disk_reserve_bytes": _RESERVE_BYTES,
                    **self._options,
                }
            ),
        )

    @property
    def urls(self) -> list[str]:
        """The base URLs of all nodes, in order."""
        return [node.url for node in self.nodes.values()]

    def start(self, node_id: str | None = None) -> None:
        """Start one node, or all that do not run."""
        for node in self._chosen(node_id):
            if not node.is_running:
                self._spawn(node)

    def stop(self, node_id: str | None = None) -> None:
        """Stop one node or all, gracefully; kill what does not stop in time."""
        nodes = self._chosen(node_id)
        for node in nodes:
            node.expected = False
            _signal(node, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_S
        for node in nodes:
            self._reap(node, max(0.0, deadline - time.monotonic()))

    def kill(self, node_id: str) -> None:
        """SIGKILL: the node has no time to say goodbye. Returns once it is dead."""
        node = self.nodes[node_id]
        node.expected = False
        _signal(node, signal.SIGKILL)
        self._reap(node, _STOP_S)

    def pause(self, node_id: str) -> None:
        """SIGSTOP: the node is silent, but its connections stand."""
        _signal(self.nodes[node_id], signal.SIGSTOP)

    def resume(self, node_id: str) -> None:
        """SIGCONT: undo :meth:`pause`."""
        _signal(self.nodes[node_id], signal.SIGCONT)

    def restart(self, node_id: str) -> None:
        """Start a node that was stopped or killed again, on its data."""
        self.stop(node_id)
        self.start(node_id)

    def wait_ready(self, timeout_s: float = 30.0, node_id: str | None = None) -> float:
        """Wait until the nodes that should run are ready; the seconds that it took."""
        began = time.monotonic()
        with httpx.Client(timeout=2.0) as http:
            for node in self._chosen(node_id):
                if node.expected:
                    self._wait_node(http, node, began + timeout_s)
        return time.monotonic() - began

    def dead(self) -> list[LocalNode]:
        """The nodes that should run and do not."""
        return [node for node in self.nodes.values() if node.expected and not node.is_running]

    def keep(self) -> None:
        """Leave the folder where it is at the end, so that somebody can look into it."""
        self.is_temporary = False

    def close(self) -> None:
        """Stop everything, and remove the folder if it is a temporary one."""
        try:
            self.stop()
        finally:
            if self.is_temporary:
                shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> LocalCluster:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _chosen(self, node_id: str | None) -> list[LocalNode]:
        return list(self.nodes.values()) if node_id is None else [self.nodes[node_id]]

    def _spawn(self, node: LocalNode) -> None:
        with node.log.open("ab") as log:
            node.process = subprocess.Popen(
                node.command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )
        node.expected = True

    def _wait_node(self, http: httpx.Client, node: LocalNode, deadline: float) -> None:
        missing = "it does not answer"
        while time.monotonic() < deadline:
            if not node.is_running:
                raise ClusterFailed(f"{node.node_id} ended:\n{node.log_tail()}")
            with contextlib.suppress(httpx.HTTPError):
                answer = http.get(f"{node.url}/readyz")
                if answer.status_code == httpx.codes.OK:
                    return
                missing = answer.text
            time.sleep(_POLL_S)
        raise ClusterFailed(f"{node.node_id} is not ready: {missing}\n{node.log_tail()}")

    def _reap(self, node: LocalNode, timeout_s: float) -> None:
        process = node.process
        if process is None:
            return
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdin is not None:
            process.stdin.close()
        node.process = None


def node_command(settings: Mapping[str, object]) -> list[str]:
    """The command line of a node with these settings, run by this interpreter.

    ``-P``: a folder named ``app`` where we were started is not ours.
    """
    arguments = (_argument(name, value) for name, value in settings.items())
    return [sys.executable, "-P", "-m", "app", *arguments]


def _argument(name: str, value: object) -> str:
    if value is True:
        return option_of(name)
    if value is False:
        return "--no-" + name.replace("_", "-")
    return f"{option_of(name)}={value}"


def _signal(node: LocalNode, number: signal.Signals) -> None:
    if node.is_running:
        assert node.process is not None
        node.process.send_signal(number)


def _lasting_secret(folder: Path) -> str:
    """The secret that the nodes of this folder share, the same when the folder is used again."""
    path = folder / "cluster-secret"
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(secrets.token_urlsafe(32))
    return path.read_text()
