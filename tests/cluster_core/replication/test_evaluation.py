"""What a leader sees: the store, and over it what is in flight."""

from __future__ import annotations

import random

import pytest

from cluster_core.ports import DATA
from cluster_core.replication.evaluation import Evaluation
from cluster_core.storage import keys
from cluster_core.storage.memory import MemoryEngine

GROUP = 7
HUB, OTHER = b"h" * 32, b"o" * 32
FAR = b"f" * 32
OUT = keys.out_prefix(GROUP, HUB)


def edge(number: int, source: bytes = HUB) -> bytes:
    return keys.out_edge(GROUP, source, "KNOWS", bytes((number,)) * 32)


@pytest.fixture
def evaluation() -> Evaluation:
    """Edges 1 and 2 of the hub are applied."""
    engine = MemoryEngine()
    batch = engine.batch()
    for number in (1, 2):
        batch.put(DATA, keys.versioned(edge(number), 10), FAR)
    engine.write(batch)
    return Evaluation(engine, GROUP, [])


def test_edges_in_flight_are_seen_over_those_of_the_store(evaluation: Evaluation) -> None:
    draft = evaluation.begin(1)
    draft.write(edge(1), b"", 20)
    draft.write(edge(3), FAR, 20)
    draft.write(edge(4, OTHER), FAR, 20)
    draft.write(keys.in_edge(GROUP, HUB, "KNOWS", b"i" * 32), FAR, 20)
    assert {key for key, _ in evaluation.scan_newest(OUT, 10)} == {edge(2), edge(3)}
    assert evaluation.scan_newest(keys.out_prefix(GROUP, OTHER), 10) == [(edge(4, OTHER), FAR)]


def test_what_is_applied_is_the_stores_and_what_was_written_again_is_not(
    evaluation: Evaluation,
) -> None:
    first = evaluation.begin(1)
    first.write(edge(3), FAR, 20)
    first.write(edge(4), FAR, 20)
    second = evaluation.begin(2)
    second.write(edge(3), b"", 30)
    second.write(edge(1), b"", 30)
    evaluation.applied(1)  # the store of this test does not get it
    assert [key for key, _ in evaluation.scan_newest(OUT, 10)] == [edge(2)]
    evaluation.applied(2)
    assert [key for key, _ in evaluation.scan_newest(OUT, 10)] == [edge(1), edge(2)]
    assert not evaluation._versions
    assert not evaluation._adjacent


def test_an_evaluation_looks_at_the_edges_of_its_vertex_only(
    evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A turn that deletes a thousand vertices would walk all of its writes a thousand times."""
    draft = evaluation.begin(1)
    for number in range(100):
        draft.write(edge(number, OTHER), FAR, 20)
    looked_at: list[bytes] = []

    class Versions(dict[bytes, tuple[int, bytes, int]]):
        def __getitem__(self, key: bytes) -> tuple[int, bytes, int]:
            looked_at.append(key)
            return super().__getitem__(key)

        def items(self) -> None:  # type: ignore[override]
            raise AssertionError("all of it is walked")

    monkeypatch.setattr(evaluation, "_versions", Versions(evaluation._versions))
    assert len(evaluation.scan_newest(OUT, 10)) == 2
    assert not looked_at


def store(engine: MemoryEngine, versions: dict[bytes, tuple[int, bytes]]) -> None:
    batch = engine.batch()
    for key, (timestamp, value) in versions.items():
        batch.put(DATA, keys.versioned(key, timestamp), value)
    engine.write(batch)


def test_dead_edges_are_passed_over_in_portions_up_to_the_first_live_one() -> None:
    engine = MemoryEngine()
    store(engine, {edge(number): (10, FAR) for number in range(21)})
    store(engine, {edge(number): (20, b"") for number in range(21) if number != 15})
    evaluation = Evaluation(engine, GROUP, [])
    assert [evaluation.pass_dead(OUT, 6) for _ in range(4)] == [False, False, True, True]
    assert evaluation._passed[OUT] > edge(14)
    assert evaluation.scan_newest(OUT, 10) == [(edge(15), FAR)]
    evaluation.begin(1).write(edge(3), FAR, 30)
    store(engine, {edge(3): (30, FAR)})
    evaluation.applied(1)
    assert [key for key, _ in evaluation.scan_newest(OUT, 10)] == [edge(3), edge(15)]


@pytest.mark.parametrize("seed", range(200))
def test_whatever_was_passed_over_all_live_edges_are_seen(seed: int) -> None:
    """Edges come and go, are in flight and applied, while others pass over the dead ones."""
    source = random.Random(seed)
    engine = MemoryEngine()
    evaluation = Evaluation(engine, GROUP, [])
    expected: dict[bytes, bytes] = {}
    flight: list[dict[bytes, tuple[int, bytes]]] = []
    index = applied = 0
    for timestamp in range(1, 150):
        act = source.random()
        if act < 0.4:
            index += 1
            draft = evaluation.begin(index)
            flight.append({})
            for number in source.sample(range(12), source.randint(1, 4)):
                value = FAR if source.random() < 0.4 else b""
                draft.write(edge(number), value, timestamp)
                flight[-1][edge(number)] = (timestamp, value)
                expected[edge(number)] = value
        elif act < 0.7 and flight:
            store(engine, flight.pop(0))
            applied += 1
            evaluation.applied(applied)
        else:
            evaluation.pass_dead(OUT, source.randint(1, 5))
        live = {key for key, value in expected.items() if value}
        assert {key for key, _ in evaluation.scan_newest(OUT, 20)} == live
