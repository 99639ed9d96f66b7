from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.graph.model import Graph
from benchmarks.graph.report import as_json, print_report
from benchmarks.graph.run import Asked, Loaded, Plan, Results


@pytest.mark.parametrize(("vertices", "edges"), [(10, 20), (500, 2_500), (300, 100)])
def test_the_graph_has_exactly_what_was_asked_for(vertices: int, edges: int) -> None:
    graph = Graph.grow(vertices, edges)
    assert len(graph.edges) == len(set(graph.edges)) == edges
    assert all(0 <= a < vertices and 0 <= b < vertices and a != b for a, b in graph.edges)


def test_the_same_seed_grows_the_same_graph() -> None:
    assert Graph.grow(200, 1_000).edges == Graph.grow(200, 1_000).edges
    assert Graph.grow(200, 1_000).edges != Graph.grow(200, 1_000, seed=1).edges


def test_who_has_gets() -> None:
    graph = Graph.grow(2_000, 10_000)
    degrees = sorted(len(followers) for followers in graph.followers)
    assert degrees[-1] > 20 * (10_000 / 2_000) / 2


def test_what_is_true_of_a_small_graph() -> None:
    graph = Graph(5, [], [[] for _ in range(5)], [[] for _ in range(5)])
    for source, target in ((0, 1), (1, 2), (2, 0), (3, 2)):
        graph._add(source, target)
    assert [graph.reached(0, depth) for depth in (1, 2, 3)] == [1, 2, 2]
    assert graph.distance(0, 3) == 2
    assert graph.distance(0, 0) == 0
    assert graph.distance(0, 4) is None


def test_the_files_are_what_import_reads(tmp_path: Path) -> None:
    graph = Graph.grow(10, 20)
    nodes, edges = graph.write(tmp_path)
    with nodes.open() as stream:
        rows = list(csv.reader(stream))
    assert rows[0] == [":ID", "name", "age:int", "city"]
    assert len(rows) == 11
    with edges.open() as stream:
        assert len(list(csv.reader(stream))) == 21


def results() -> Results:
    asked = Asked("point read", [float(n) for n in range(1, 101)], rows=100, checked=100)
    wrong = Asked("shortest path", [7.0], rows=1, checked=1, wrong=1)
    return Results(
        Loaded(100, 2.0), Loaded(500, 5.0), 60.0, [100.0, 200.0], 1 << 20, [asked, wrong]
    )


def test_the_report_tells_rates_latencies_and_what_was_wrong() -> None:
    console = Console(file=io.StringIO(), width=120)
    print_report(console, results(), Plan())
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    for part in ("51.0", "100.0", "100 right", "1 wrong", "vertices  "):
        assert part in text
    assert "import 60 MiB, nodes 100, 200" in text


def test_every_latency_is_in_the_json() -> None:
    document = as_json(results(), Plan())
    assert len(document["results"]["asked"][0]["latencies_ms"]) == 100
    assert document["plan"]["vertices"] == 100_000
