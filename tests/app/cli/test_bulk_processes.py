"""Import, kill -9, import, export, import elsewhere: the same graph, and each row once."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx
import libipld
import pytest

from app.dev_cluster import LocalCluster

pytestmark = pytest.mark.process

READY_S = 60.0
COMMAND_S = 100.0
ROWS = 600
KOTOBA = [sys.executable, "-c", "from app.cli import client; client()"]


@pytest.mark.timeout(300)
def test_what_went_in_comes_out_and_goes_in_again(tmp_path: Path) -> None:
    people, knows = write_files(tmp_path)
    importing = ["import", f"--nodes=Person={people}", f"--edges=KNOWS={knows}"]
    options = {"partition_count": 8}
    with LocalCluster(3, folder=tmp_path / "first", options=options) as first:
        first.wait_ready(READY_S)
        for enough in (ROWS // 3, ROWS + ROWS // 3):
            kill_in_the_middle(first, importing, enough)
        assert kotoba(first, *importing).returncode == 0
        assert "nothing was left to do" in kotoba(first, *importing).stdout
        before = export(first, tmp_path, "before")
        check_archive(first, tmp_path / "graph.car")
    assert before == expected()
    with LocalCluster(1, folder=tmp_path / "second", options=options) as second:
        second.wait_ready(READY_S)
        files = [f"--{kind}={tmp_path / f'before-{kind}.ndjson'}" for kind in ("nodes", "edges")]
        assert kotoba(second, "import", *files).returncode == 0
        assert export(second, tmp_path, "after") == before


def write_files(folder: Path) -> tuple[Path, Path]:
    people, knows = folder / "people.csv", folder / "knows.csv"
    write(people, [":ID", "n:int", "even:bool", "tags:string[]"], map(person, range(ROWS)))
    write(knows, [":START_ID", ":END_ID", "n:int"], ([n, n * 7 % ROWS, n] for n in range(ROWS)))
    return people, knows


def person(n: int) -> list[object]:
    return [n, n, n % 2 == 0, f"a;b{n}"]


def write(path: Path, header: list[str], rows: Iterable[list[object]]) -> None:
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])


def expected() -> Counter[str]:
    """What is true of the graph, whatever the CIDs are."""
    nodes = (
        told("node", ["Person"], {"n": n, "even": n % 2 == 0, "tags": ["a", f"b{n}"]})
        for n in range(ROWS)
    )
    edges = (told("edge", "KNOWS", {"n": n}, n, n * 7 % ROWS) for n in range(ROWS))
    return Counter([*nodes, *edges])


def told(*facts: Any) -> str:
    return json.dumps(facts, sort_keys=True)


def kotoba(cluster: LocalCluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*KOTOBA, "--url", cluster.urls[0], *arguments],
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
    )


def kill_in_the_middle(cluster: LocalCluster, importing: list[str], enough: int) -> None:
    """Start the import, and kill it once the cluster has ``enough`` nodes and edges."""
    command = [*KOTOBA, "--url", cluster.urls[0], *importing, "--chunk=5", "--connections=3"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + COMMAND_S
        while written(cluster) < enough:
            assert process.poll() is None, "it ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.kill()
        assert process.wait() == -signal.SIGKILL


def written(cluster: LocalCluster) -> int:
    total = 0
    for of in ("nodes", "edges"):
        answer = httpx.post(
            f"{cluster.urls[1]}/v1/query", json={"query": {"kind": "count", "of": of}}
        )
        total += answer.raise_for_status().json()["rows"][0]["count"]
    return total


def export(cluster: LocalCluster, folder: Path, name: str) -> Counter[str]:
    """Export, and read what is true of it."""
    paths = {kind: folder / f"{name}-{kind}.ndjson" for kind in ("nodes", "edges")}
    ended = kotoba(cluster, "export", *(f"--{kind}={path}" for kind, path in paths.items()))
    assert ended.returncode == 0, ended.stderr
    nodes = [json.loads(line) for line in paths["nodes"].read_text().splitlines()]
    edges = [json.loads(line) for line in paths["edges"].read_text().splitlines()]
    number = {node["cid"]: node["properties"]["n"] for node in nodes}
    return Counter(
        [told("node", node["labels"], node["properties"]) for node in nodes]
        + [
            told(
                "edge",
                edge["label"],
                edge["properties"],
                number[edge["source_cid"]],
                number[edge["target_cid"]],
            )
            for edge in edges
        ]
    )


def check_archive(cluster: LocalCluster, path: Path) -> None:
    """Every block is in it, of an older version too, and other tools read it."""
    row = httpx.post(
        f"{cluster.urls[0]}/v1/query", json={"query": {"kind": "find_nodes", "limit": 1}}
    ).json()["rows"][0]
    changed = {"op": "update_node", "cid": row["cid"], "properties": {"note": "changed"}}
    url = f"{cluster.urls[0]}/v1/operations?forward=true"
    httpx.post(url, json=changed).raise_for_status()
    ended = kotoba(cluster, "export", f"--car={path}")
    assert ended.returncode == 0, ended.stderr
    header, blocks = libipld.decode_car(path.read_bytes())
    manifest: Any = blocks[header["roots"][0]]
    assert manifest["counts"] == {"nodes": ROWS, "edges": ROWS, "blocks": len(blocks)}
    assert len(blocks) == 2 * ROWS + 1 + 2 + 1, "entities, an older version, pages, the manifest"
    assert sum("prev" in block for block in blocks.values() if isinstance(block, dict)) == 1
