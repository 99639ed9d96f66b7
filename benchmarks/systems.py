"""The two systems under test, each three real processes on loopback, behind one small interface."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import httpx

from app.dev_cluster import HOST, LocalCluster, free_ports
from benchmarks.load import BATCH

__all__ = ["Etcd", "Kotoba", "System", "etcd_version"]

READ_NAMES: Final = 5_000
"""How many entities the reads are spread over."""
_READY_S: Final = 30.0

_DYING_WITH_US: Final = (
    sys.executable,
    "-c",
    "import ctypes, os, sys\n"
    "if sys.platform.startswith('linux'):\n"
    "    ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL\n"
    "os.execvp(sys.argv[1], sys.argv[1:])",
)
"""Starts a program that ends when we end, in any way."""


class System(Protocol):
    """A cluster of three that can be written, read, and robbed of its leader."""

    @property
    def name(self) -> str: ...

    def start(self) -> None:
        """Start it and wait until it is whole."""
        ...

    def close(self) -> None:
        """Stop it and remove its data."""
        ...

    def write_urls(self) -> list[str]:
        """Where single and batch writes go in the best case for this system."""
        ...

    def read_urls(self) -> list[str]: ...

    def all_urls(self) -> list[str]: ...

    def preload(self) -> list[str]:
        """Write what the reads will ask for; the names to ask with."""
        ...

    def leader(self) -> str:
        """The name of the node to kill."""
        ...

    def url_of(self, node: str) -> str: ...

    def kill(self, node: str) -> None: ...

    def revive(self, node: str) -> None:
        """Start a killed node again and wait until the cluster is whole."""
        ...

    def write_request(self, number: str) -> tuple[str, Any]:
        """Path and JSON body of one write, for the failover measurement."""
        ...

    def orphans_of(self, node: str, url: str) -> list[int] | None:
        """The partitions that a node leads, None where there is only one leader for all."""
        ...


class Kotoba:
    """This cluster, with its defaults."""

    name = "kotoba"

    def __init__(self) -> None:
        self._cluster = LocalCluster(3)

    def start(self) -> None:
        self._cluster.start()
        self._cluster.wait_ready(_READY_S)
        self._wait_settled()

    def close(self) -> None:
        self._cluster.close()

    def write_urls(self) -> list[str]:
        return self._cluster.urls

    read_urls = all_urls = write_urls

    def preload(self) -> list[str]:
        names: list[str] = []
        operation = {
            "op": "create_node",
            "labels": ["Read"],
            "properties": {"name": "read", "data": "kotobadb" * 16},
        }
        with httpx.Client(timeout=30.0, trust_env=False) as http:
            while len(names) < READ_NAMES:
                answer = http.post(
                    f"{self._cluster.urls[0]}/v1/operations/batch",
                    json={"operations": [operation] * 500},
                ).raise_for_status()
                names += [item["cid"] for item in answer.json()["results"] if "cid" in item]
        return names

    def leader(self) -> str:
        return str(self._status(self._cluster.urls[0])["leader"])

    def url_of(self, node: str) -> str:
        return self._cluster.nodes[node].url

    def kill(self, node: str) -> None:
        self._cluster.kill(node)

    def revive(self, node: str) -> None:
        self._cluster.start(node)
        self._cluster.wait_ready(_READY_S, node)
        self._wait_settled()

    def write_request(self, number: str) -> tuple[str, Any]:
        properties = {"name": number, "data": "kotobadb" * 16}
        body = {"op": "create_node", "labels": ["Bench"], "properties": properties}
        return "/v1/operations?forward=true", body

    def orphans_of(self, node: str, url: str) -> list[int] | None:
        rows = httpx.get(f"{url}/v1/partitions", trust_env=False).raise_for_status().json()
        rows = rows["partitions"] if isinstance(rows, dict) else rows
        return [row["partition"] for row in rows if row["leader"] == node]

    def _status(self, url: str) -> dict[str, Any]:
        status: dict[str, Any] = httpx.get(f"{url}/v1/status", trust_env=False).json()
        return status

    def _wait_settled(self) -> None:
        """Until the leaderships are spread as they are meant to be, or some seconds have passed."""
        deadline = time.monotonic() + 10.0
        while time.monotonic() < deadline:
            members = self._status(self._cluster.urls[0])["membership"]["nodes"]
            leads = sorted(member["leads"] for member in members)
            if leads[0] and leads[-1] <= 2 * leads[0]:
                return
            time.sleep(0.1)


def etcd_version() -> str | None:
    """The version of the etcd that is installed, None without one."""
    if shutil.which("etcd") is None:
        return None
    output = subprocess.run(["etcd", "--version"], capture_output=True, text=True, check=False)
    words = output.stdout.split()
    return words[2] if len(words) > 2 else "unknown"


@dataclass(slots=True)
class _Member:
    name: str
    client_url: str
    peer_url: str
    folder: Path
    process: subprocess.Popen[bytes] | None = None


class Etcd:
    """Three members of etcd behind its JSON gateway, with its defaults."""

    name = "etcd"

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="kotoba-etcd-"))
        ports = free_ports(6)
        self._members = [
            _Member(
                name=f"etcd{number + 1}",
                client_url=f"http://{HOST}:{ports[2 * number]}",
                peer_url=f"http://{HOST}:{ports[2 * number + 1]}",
                folder=self._folder / f"etcd{number + 1}",
            )
            for number in range(3)
        ]
        self._leader_url = ""

    def start(self) -> None:
        for member in self._members:
            self._spawn(member)
        self._wait_whole()

    def close(self) -> None:
        for member in self._members:
            if member.process is not None:
                member.process.kill()
                member.process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def write_urls(self) -> list[str]:
        return [self.url_of(self.leader())]

    read_urls = write_urls

    def all_urls(self) -> list[str]:
        return [member.client_url for member in self._members]

    def preload(self) -> list[str]:
        names = [f"{0:08x}{number:08x}" for number in range(READ_NAMES)]
        value = "kotobadb" * 21
        with httpx.Client(base_url=self.write_urls()[0], timeout=30.0, trust_env=False) as http:
            for start in range(0, READ_NAMES, BATCH):
                batch = names[start : start + BATCH]
                puts = [{"requestPut": {"key": name, "value": value}} for name in batch]
                http.post("/v3/kv/txn", json={"success": puts}).raise_for_status()
        return names

    def leader(self) -> str:
        deadline = time.monotonic() + _READY_S
        while time.monotonic() < deadline:
            for member in self._members:
                if (status := _etcd_status(member.client_url)) is None:
                    continue
                if status.get("leader", "0") == status["header"]["member_id"]:
                    return member.name
            time.sleep(0.05)
        raise RuntimeError("etcd has no leader")

    def url_of(self, node: str) -> str:
        return self._member(node).client_url

    def kill(self, node: str) -> None:
        process = self._member(node).process
        assert process is not None
        process.kill()
        process.wait()

    def revive(self, node: str) -> None:
        self._spawn(self._member(node))
        self._wait_whole()

    def write_request(self, number: str) -> tuple[str, Any]:
        return "/v3/kv/put", {"key": number, "value": "kotobadb" * 21}

    def orphans_of(self, node: str, url: str) -> list[int] | None:
        return None

    def _member(self, name: str) -> _Member:
        return next(member for member in self._members if member.name == name)

    def _spawn(self, member: _Member) -> None:
        cluster = ",".join(f"{other.name}={other.peer_url}" for other in self._members)
        exists = (member.folder / "member").exists()
        member.process = subprocess.Popen(
            [
                *_DYING_WITH_US,
                "etcd",
                f"--name={member.name}",
                f"--data-dir={member.folder}",
                f"--listen-client-urls={member.client_url}",
                f"--advertise-client-urls={member.client_url}",
                f"--listen-peer-urls={member.peer_url}",
                f"--initial-advertise-peer-urls={member.peer_url}",
                f"--initial-cluster={cluster}",
                f"--initial-cluster-state={'existing' if exists else 'new'}",
                "--enable-v2=false",
                "--log-level=error",
                f"--quota-backend-bytes={8 << 30}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def _wait_whole(self) -> None:
        deadline = time.monotonic() + _READY_S
        while time.monotonic() < deadline:
            states = [_etcd_status(member.client_url) for member in self._members]
            leaders = {state.get("leader") for state in states if state is not None}
            if None not in states and len(leaders) == 1 and leaders != {None}:
                return
            time.sleep(0.05)
        raise RuntimeError("etcd does not form a cluster")


def _etcd_status(url: str) -> dict[str, Any] | None:
    with contextlib.suppress(httpx.HTTPError):
        answer = httpx.post(f"{url}/v3/maintenance/status", json={}, timeout=1.0, trust_env=False)
        if answer.status_code == httpx.codes.OK:
            status: dict[str, Any] = answer.json()
            return status
    return None
