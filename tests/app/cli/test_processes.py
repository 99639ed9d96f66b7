"""The commands as processes of their own: how they start, fail, and end."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app.dev_cluster import LocalCluster, free_ports

pytestmark = pytest.mark.process

SERVER = [sys.executable, "-m", "app"]
START_S = 30.0


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    with LocalCluster(1, folder=tmp_path, options={"partition_count": 4}) as one:
        one.wait_ready(START_S)
        yield one


def test_a_node_says_where_it_is_and_ends_with_0_on_sigterm(cluster: LocalCluster) -> None:
    node = cluster.nodes["node1"]
    assert node.process is not None
    assert httpx.get(f"{node.url}/v1/health").json()["is_healthy"]
    node.process.send_signal(signal.SIGTERM)
    assert node.process.wait(10.0) == 0
    text = node.log.read_text()
    assert f"listening on  {node.url}" in text
    assert "ready in" in text
    assert text.rstrip().endswith("stopped")


def test_a_node_ends_when_its_stdin_does(cluster: LocalCluster) -> None:
    process = cluster.nodes["node1"].process
    assert process is not None
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(10.0) == 0


def test_a_port_or_a_folder_in_use_is_one_line(cluster: LocalCluster, tmp_path: Path) -> None:
    node = cluster.nodes["node1"]
    other = f"127.0.0.1:{free_ports(1)[0]}"
    for address, folder, code, said in (
        (node.address, tmp_path / "other", 2, f"--address: address {node.address} is in use"),
        (other, node.data_dir, 1, f"another process uses the data folder {node.data_dir}"),
    ):
        ended = subprocess.run(
            [*SERVER, "--node-id=node1", f"--address={address}", f"--data-dir={folder}"],
            capture_output=True,
            text=True,
            timeout=START_S,
            check=False,
        )
        assert ended.returncode == code
        assert said in ended.stderr
        assert ended.stderr.count("\n") == 1


@pytest.fixture
def heeded() -> Iterator[None]:
    """A shell that was told to go on meanwhile (``make test &``) has what it starts ignore Ctrl-C,
    and so what that starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeded")
def test_dev_ends_with_0_on_ctrl_c_and_leaves_nothing_running(tmp_path: Path) -> None:
    port = free_ports(1)[0]
    command = [*SERVER, "dev", "--nodes=1", f"--port={port}", f"--data-dir={tmp_path}"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        seen = _read_until(process.stdout, "Ctrl-C stops the cluster")
        assert f"curl -L http://127.0.0.1:{port}/v1/operations" in seen
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(15.0) == 0
        finally:
            process.kill()
    with contextlib.closing(httpx.Client()) as http, pytest.raises(httpx.ConnectError):
        http.get(f"http://127.0.0.1:{port}/livez")
    assert (tmp_path / "node1").exists()


def _read_until(stream: Iterator[str], text: str) -> str:
    seen = ""
    deadline = time.monotonic() + START_S
    for line in stream:
        seen += line
        if text in seen:
            return seen
        assert time.monotonic() < deadline, seen
    pytest.fail(f"never said {text!r}: {seen}")
