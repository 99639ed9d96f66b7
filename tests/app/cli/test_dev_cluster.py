from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.dev_cluster import ClusterFailed, LocalCluster, free_ports, node_command

SLEEPER = "import sys; sys.stdin.read()"
"""A stand-in for a node: it ends when its parent does."""


@pytest.fixture
def sleepers(tmp_path: Path) -> Iterator[LocalCluster]:
    cluster = LocalCluster(2, folder=tmp_path)
    for node in cluster.nodes.values():
        node.command = [sys.executable, "-c", SLEEPER]
    yield cluster
    cluster.close()


def test_free_ports_are_distinct() -> None:
    assert len(set(free_ports(20))) == 20


def test_a_command_line_says_every_setting() -> None:
    command = node_command({"node_id": "a", "forward": True, "stop_on_stdin_eof": False})
    assert command[0] == sys.executable
    assert command[-3:] == ["--node-id=a", "--forward", "--no-stop-on-stdin-eof"]


def test_each_node_knows_all_others(tmp_path: Path) -> None:
    cluster = LocalCluster(3, port=9000, folder=tmp_path, options={"tick_ms": 20})
    command = cluster.nodes["node2"].command
    assert "--address=127.0.0.1:9001" in command
    assert "--peers=127.0.0.1:9000,127.0.0.1:9002" in command
    assert f"--data-dir={tmp_path / 'node2'}" in command
    assert "--tick-ms=20" in command
    assert "--stop-on-stdin-eof" in command
    assert cluster.urls == [f"http://127.0.0.1:{port}" for port in (9000, 9001, 9002)]


def test_the_secret_is_shared_and_outlives_a_run(tmp_path: Path) -> None:
    LocalCluster(1, folder=tmp_path)
    secret = (tmp_path / "cluster-secret").read_text()
    LocalCluster(1, folder=tmp_path)
    assert (tmp_path / "cluster-secret").read_text() == secret
    assert len(secret) >= 32


def test_a_killed_node_is_dead_only_when_nobody_meant_it(sleepers: LocalCluster) -> None:
    sleepers.start()
    assert all(node.is_running for node in sleepers.nodes.values())
    sleepers.kill("node1")
    assert sleepers.dead() == []
    process = sleepers.nodes["node2"].process
    assert process is not None
    process.kill()
    process.wait()
    assert [node.node_id for node in sleepers.dead()] == ["node2"]


def test_a_node_can_be_started_again(sleepers: LocalCluster) -> None:
    sleepers.start("node1")
    sleepers.restart("node1")
    assert sleepers.nodes["node1"].is_running
    sleepers.stop("node1")
    assert not sleepers.nodes["node1"].is_running


def test_a_node_that_ends_at_once_is_reported_with_its_last_words(tmp_path: Path) -> None:
    cluster = LocalCluster(1, folder=tmp_path)
    cluster.nodes["node1"].command = [sys.executable, "-c", "print('no disk'); exit(3)"]
    cluster.start()
    with pytest.raises(ClusterFailed, match=r"node1 ended:\nno disk"):
        cluster.wait_ready(10.0)
    cluster.close()


def test_a_temporary_folder_goes_with_the_cluster() -> None:
    cluster = LocalCluster(1)
    folder = cluster.folder
    assert folder.exists()
    cluster.close()
    assert not folder.exists()


def test_nodes_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    parent = f"""
import sys, time
from pathlib import Path
from app.dev_cluster import LocalCluster
cluster = LocalCluster(1, folder=Path({str(tmp_path)!r}))
cluster.nodes["node1"].command = [sys.executable, "-c", {SLEEPER!r} + "; print('ended')"]
cluster.start()
print("started", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"started\n"
        process.kill()
    log = tmp_path / "node1.log"
    _wait_for_text(log, "ended")


def _wait_for_text(path: Path, text: str) -> None:
    import time

    for _ in range(500):
        if path.exists() and text in path.read_text():
            return
        time.sleep(0.01)
    pytest.fail(f"{path.name} never said {text!r}")
