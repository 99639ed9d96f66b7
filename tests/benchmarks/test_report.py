from __future__ import annotations

import io

from rich.console import Console

from benchmarks.failover import Failover
from benchmarks.report import as_json, print_report
from benchmarks.run import Plan, Sample, Series

PLAN = Plan(seconds=1, rounds=2, connections=(1,), batch_connections=(), kills=1)


def series(rate: float, refused: int = 0) -> Series:
    samples = [Sample(rate, 1.0, 2.0, refused, 0), Sample(rate * 1.2, 1.2, 2.2, 0, 0)]
    return Series({("write", 1): samples}, [Failover(0.1, 0.2, None), Failover(0.3, 0.4, 0.5)])


def report(results: dict[str, Series]) -> str:
    console = Console(file=io.StringIO(), width=200)
    print_report(console, results, PLAN, "3.4")
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_medians_ranges_and_the_ratio_are_shown() -> None:
    text = report({"kotoba": series(1000), "etcd": series(500)})
    assert "1,100" in text
    assert "1,000–1,200" in text
    assert "2.00" in text
    assert "etcd 3.4 is driven" in text


def test_what_never_came_back_is_said() -> None:
    assert "500 (1 never)" in report({"kotoba": series(1000)})


def test_errors_are_shown() -> None:
    text = report({"kotoba": series(1000, refused=7)})
    assert "kotoba, write with 1 connections: 7 answers were errors" in text


def test_every_sample_is_in_the_json() -> None:
    document = as_json({"kotoba": series(1000)}, PLAN, None)
    loads = document["results"]["kotoba"]["loads"]
    assert [sample["per_second"] for sample in loads[0]["samples"]] == [1000, 1200]
    assert document["results"]["kotoba"]["failovers_s"][0]["first"] == 0.1
