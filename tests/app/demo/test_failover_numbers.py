from __future__ import annotations

import pytest

from app.demo.failover import Acknowledged, measure_outage
from app.demo.questions import longest_chain


def acknowledged(partition: int, sent: float, done: float) -> Acknowledged:
    return Acknowledged(f"cid{partition}-{done}", partition, sent, done, "http://a")


def test_an_outage_is_measured_from_the_kill() -> None:
    outage = measure_outage(
        [
            acknowledged(1, 9.0, 9.5),
            acknowledged(1, 9.9, 10.1),  # was on its way when the node died
            acknowledged(2, 10.1, 10.2),
            acknowledged(1, 10.1, 10.7),
            acknowledged(1, 10.8, 10.9),
            acknowledged(3, 10.1, 11.0),
        ],
        10.0,
        [1, 3],
    )
    assert outage.first == pytest.approx(0.2)
    assert outage.first_orphaned == pytest.approx(0.7)
    assert outage.all_orphaned == pytest.approx(1.0)
    assert outage.longest_gap == pytest.approx(0.5)


def test_what_never_came_back_has_no_time() -> None:
    outage = measure_outage([acknowledged(1, 10.1, 10.2)], 10.0, [1, 2])
    assert outage.first_orphaned == pytest.approx(0.2)
    assert outage.all_orphaned is None
    assert measure_outage([], 10.0, [1]).first is None


def test_the_longest_chain_follows_every_base() -> None:
    edges = [("c", "b"), ("b", "a"), ("c", "a"), ("d", "a")]
    assert longest_chain(edges) == ["c", "b", "a"]
    assert longest_chain([]) == []
