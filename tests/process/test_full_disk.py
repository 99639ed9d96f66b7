"""One real node on a disk that is really full: a small file system in memory."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from app.dev_cluster import LocalCluster

pytestmark = pytest.mark.process

DISK_BYTES: Final = 160 << 20
START_S: Final = 40.0
FILL_S: Final = 60.0
BACK_S: Final = 20.0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("there is no mount command here to make a small file system with")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def cluster(disk: Path) -> Iterator[LocalCluster]:
    with LocalCluster(1, folder=disk / "cluster") as alone:
        alone.wait_ready(START_S)
        yield alone


@pytest.fixture
def node(cluster: LocalCluster) -> Iterator[Node]:
    with httpx.Client(timeout=10.0, trust_env=False) as http:
        yield Node(cluster.urls[0], http)


class Node:
    """The node of the cluster, as a client sees it."""

    def __init__(self, url: str, http: httpx.Client) -> None:
        self.url = url
        self.http = http

    def create(self, size: int) -> httpx.Response:
        properties = {"data": os.urandom(size // 2).hex()}
        body = {"op": "create_node", "labels": ["Thing"], "properties": properties}
        return self.http.post(f"{self.url}/v1/operations", json=body)

    def storage(self) -> str:
        status: dict[str, Any] = self.http.get(f"{self.url}/v1/status").json()
        return str(status["storage"]["state"])

    def read(self, cid: str) -> int:
        return self.http.get(f"{self.url}/v1/nodes/{cid}").status_code

    def fill(self) -> list[str]:
        """Write until there is no room for good; the CIDs of all that was acknowledged.

        On a disk this small a compaction can take all of it for a moment; then the node opens its
        store anew, and may have room again.
        """
        cids, refused = [], 0
        deadline = time.monotonic() + FILL_S
        while refused < 10:
            answer = self.create(100_000)
            assert time.monotonic() < deadline, f"the disk did not get full: {answer.text}"
            if answer.is_success:
                cids.append(answer.json()["cid"])
            if answer.status_code != httpx.codes.INSUFFICIENT_STORAGE or not self.is_ready():
                refused = 0
            else:
                assert answer.json()["code"] == "storage_full"
                refused += 1
                time.sleep(0.1)
        return cids

    def reasons(self) -> object:
        """Why the cluster is not healthy."""
        return self.http.get(f"{self.url}/v1/health").json()["reasons"]

    def is_ready(self) -> bool:
        return self.http.get(f"{self.url}/readyz").is_success


def until(condition: Callable[[], bool], within: float, what: str) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"not within {within} s: {what}"
        time.sleep(0.1)


def fill_to_the_last_byte(disk: Path) -> None:
    with (disk / "filler").open("wb", 0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(bytes(1 << 16))


@pytest.mark.timeout(240)
def test_a_full_disk_refuses_writes_keeps_reads_and_clears_itself(
    disk: Path, cluster: LocalCluster, node: Node
) -> None:
    room = disk / "room"
    room.write_bytes(bytes(DISK_BYTES // 4))
    cids = node.fill()
    assert node.storage() == "full"
    health = node.http.get(f"{node.url}/v1/health")
    assert health.is_success
    only = ["the disk of node1 is full"]  # once the leaderships have settled
    until(lambda: node.reasons() == only, 10, f"health says {only}")
    assert node.read(cids[-1]) == httpx.codes.OK

    fill_to_the_last_byte(disk)
    time.sleep(5)  # the clock, above all, is written down meanwhile
    assert node.read(cids[-1]) == httpx.codes.OK
    assert node.create(10).status_code == httpx.codes.INSUFFICIENT_STORAGE

    cluster.restart("node1")
    until(lambda: _answers(node), START_S, "the node answers after a restart on a full disk")
    assert node.storage() == "full"

    (disk / "filler").unlink()
    room.unlink()
    until(lambda: node.storage() == "ok", BACK_S, "the node notices the room")
    until(lambda: node.create(10).is_success, BACK_S, "it takes writes again")
    for cid in cids:
        assert node.read(cid) == httpx.codes.OK, "an acknowledged write is lost"
    assert not cluster.dead()


def _answers(node: Node) -> bool:
    try:
        return node.http.get(f"{node.url}/livez").is_success
    except httpx.HTTPError:
        return False
