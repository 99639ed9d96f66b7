"""The surveyors are worth what they find: rules of deletions in chunks, broken on purpose."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from typing import Any

import pytest

from cluster_core.graph.parts import Lock, Part, View
from cluster_core.node.reads import Reads
from cluster_core.txn import executor, participant
from cluster_core.txn.detach import EdgeDeletion
from cluster_core.txn.settlement import Committed, Settlement
from cluster_core.txn.transactions import Transactions
from cluster_core.types import Digest
from tests.simulation.broken import BROKEN_RUNS
from tests.simulation.runs import run

pytestmark = BROKEN_RUNS

SEEDS = 40
VERDICTS = (
    "half an edge",
    "half a hub",
    "without [",
    "labels lacks",
    "intents are left",
    "was closed with",
)


def finding(first: int = 1, **trouble: Any) -> str:
    """What the first run that fails says; it has to be about halves of a deletion."""
    for seed in range(first, first + SEEDS):
        found = verdict(seed, **trouble)
        if found:
            assert any(known in found for known in VERDICTS), found
            return found
    raise AssertionError("nothing was found")


def verdict(seed: int, **trouble: Any) -> str:
    try:
        run(seed, seconds=4, clients=0, tellers=0, surveyors=4, **trouble)
    except AssertionError as error:
        return str(error)
    finally:
        gc.collect()
    return ""


def test_nothing_is_found_where_nothing_is_broken() -> None:
    assert not verdict(1)


def test_intents_that_go_before_the_edges_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The edges follow, but nothing holds off who looks meanwhile."""
    delete = Settlement._delete_edges

    async def too_late(self: Settlement, committed: Committed) -> bool:
        self._spawn(delete(self, committed))
        return True

    monkeypatch.setattr(Settlement, "_delete_edges", too_late)
    assert finding()


def test_edges_that_go_before_the_record_is_committed_are_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """When all are prepared, which one that lost against another transaction may be as well."""
    prepare = Transactions._prepare

    async def eager(self: Transactions, transactions: Any, deadline: float) -> None:
        await prepare(self, transactions, deadline)
        for one in transactions:
            if one.request.detach and one.applied:
                vertex, now = one.request.detach, self._clock.now()
                edges = self._deletion.delete_edges(one.home, one.id, vertex, now)
                self._settlement._spawn(edges)

    monkeypatch.setattr(Transactions, "_prepare", eager)
    assert finding()


def test_a_forgotten_chunk_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each page what one partition has of it."""
    halves = EdgeDeletion._halves

    def some(self: EdgeDeletion, *args: Any, **kwargs: Any) -> Any:
        here, elsewhere = halves(self, *args, **kwargs)
        if elsewhere:
            del elsewhere[max(elsewhere)]
        return here, elsewhere

    monkeypatch.setattr(EdgeDeletion, "_halves", some)
    assert finding()


def test_a_forgotten_page_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    page = EdgeDeletion._page

    async def first(self: EdgeDeletion, prefix: bytes, after: bytes, count: int) -> Any:
        return [] if after else await page(self, prefix, after, count)

    monkeypatch.setattr(EdgeDeletion, "_page", first)
    assert finding()


def test_the_listed_half_first_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who goes on after a crash does not find the other half any more. One run in twelve shows it:
    a leader has to die between the two."""
    halves = EdgeDeletion._halves

    def backwards(self: EdgeDeletion, *args: Any, **kwargs: Any) -> Any:
        here, elsewhere = halves(self, *args, **kwargs)
        return here[::-1], elsewhere

    monkeypatch.setattr(EdgeDeletion, "_halves", backwards)
    assert "half an edge" in finding(13, pace=0.25, only=["crash"])


def test_edges_that_do_not_guard_their_far_ends_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(parts: Iterable[Part], view: View) -> list[Lock]:
        return []

    monkeypatch.setattr(participant, "guards_of", none)
    monkeypatch.setattr(executor, "guards_of", none)
    assert finding()


def test_reads_that_do_not_look_at_far_ends_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reads, "detaching", lambda _, partition: frozenset[Digest]())
    assert "half a hub" in finding()
