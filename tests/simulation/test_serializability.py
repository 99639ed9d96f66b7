"""The checker itself: histories that must pass, and histories that must fail."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tests.simulation.serializability import INITIAL, Transaction, check, everything, nothing


def txn(
    name: str, reads: dict[str, str], writes: str = "", *, at: tuple[int, int | None] = (0, 99)
) -> Transaction:
    """``writes`` lists the keys; ``at`` is (call, returned)."""
    return Transaction(
        name=name,
        reads=reads,
        writes=frozenset(writes.split()),
        call=at[0],
        returned=at[1],
    )


I = INITIAL  # noqa: E741  # histories read better with one letter


def test_transactions_one_after_the_other_are_strictly_serializable() -> None:
    history = [
        txn("a", {"x": I, "y": I}, "x y", at=(0, 1)),
        txn("b", {"x": "a", "y": "a"}, "x", at=(2, 3)),
        txn("c", {"x": "b", "y": "a"}, at=(4, 5)),
    ]
    assert check(history).ok


def test_an_old_snapshot_is_serializable_but_not_strictly() -> None:
    history = [txn("a", {"x": I}, "x", at=(0, 1)), txn("b", {"x": I}, at=(2, 3))]
    assert check(history, nothing).ok
    assert not check(history, everything).ok
    assert "rt" in check(history).report


@pytest.mark.parametrize(
    ("anomaly", "history"),
    [
        ("lost update", [txn("a", {"x": I}, "x"), txn("b", {"x": I}, "x")]),
        (
            "write skew",
            [txn("a", {"x": I, "y": I}, "x"), txn("b", {"x": I, "y": I}, "y")],
        ),
        (
            "fractured read",
            [txn("a", {"x": I, "y": I}, "x y"), txn("b", {"x": "a", "y": I})],
        ),
        (
            "long fork",
            [
                txn("a", {"x": I}, "x"),
                txn("b", {"y": I}, "y"),
                txn("c", {"x": "a", "y": I}),
                txn("d", {"x": I, "y": "b"}),
            ],
        ),
        (
            "half of a transaction of unknown outcome",
            [
                txn("a", {"x": I, "y": I}, "x y", at=(0, None)),
                txn("b", {"x": "a", "y": I}),
            ],
        ),
        ("read of nothing that was written", [txn("a", {"x": "ghost"})]),
        ("version of another key", [txn("a", {"x": I}, "x"), txn("b", {"y": "a"})]),
        (
            "read-only anomaly",
            # Fekete, O'Neil, O'Neil 2004: serializable without the one that only reads.
            [
                txn("deposit", {"y": I}, "y"),
                txn("withdraw", {"x": I, "y": I}, "x"),
                txn("report", {"x": I, "y": "deposit"}),
            ],
        ),
    ],
)
def test_an_anomaly_is_found_without_any_clock(anomaly: str, history: list[Transaction]) -> None:
    assert not check(history, nothing).ok, anomaly
    rng = random.Random(1)
    for _ in range(5):
        rng.shuffle(history)
        assert not check(history, nothing).ok, anomaly


def test_the_read_only_anomaly_needs_its_reader() -> None:
    history = [txn("deposit", {"y": I}, "y"), txn("withdraw", {"x": I, "y": I}, "x")]
    assert check(history, nothing).ok


def test_a_version_of_a_failed_transaction_must_not_be_seen() -> None:
    failed = Transaction(
        name="a", reads={"x": I}, writes=frozenset("x"), call=0, returned=1, failed=True
    )
    assert check([failed]).ok
    assert not check([failed, txn("b", {"x": "a"})]).ok


def test_causal_reverse_is_found_only_in_real_time() -> None:
    """b began when a had returned, but a reader sees b without a."""
    history = [
        txn("a", {"x": I}, "x", at=(0, 1)),
        txn("b", {"y": I}, "y", at=(2, 3)),
        txn("c", {"x": I, "y": "b"}, at=(0, 9)),
    ]
    assert check(history, nothing).ok
    assert not check(history, everything).ok


def test_an_unseen_transaction_of_unknown_outcome_proves_nothing() -> None:
    history = [
        txn("a", {"x": I}, "x", at=(0, None)),
        txn("b", {"x": I}, "x", at=(1, 2)),
    ]
    assert check(history).ok


def test_a_read_of_the_past_may_come_before_what_had_returned() -> None:
    old = Transaction(name="c", reads={"x": I}, call=5, returned=6, past=True)
    assert check([txn("a", {"x": I}, "x", at=(0, 1)), old]).ok


@pytest.mark.parametrize("seed", range(50))
def test_serial_executions_pass_and_a_stale_write_in_them_fails(seed: int) -> None:
    rng = random.Random(seed)
    keys = ["x", "y", "z"]
    state = dict.fromkeys(keys, I)
    history = []
    for number in range(40):
        read = rng.sample(keys, rng.randint(1, 3))
        written = rng.sample(read, rng.randint(0, len(read)))
        name = f"t{number}"
        seen = {key: state[key] for key in read}
        at = (2 * number, 2 * number + 1)
        history.append(txn(name, seen, " ".join(written), at=at))
        state.update(dict.fromkeys(written, name))
    rng.shuffle(history)
    assert check(history).ok
    writers = [one for one in history if one.writes and I not in one.reads.values()]
    victim = rng.choice(writers)
    stale = replace(victim, reads=dict.fromkeys(victim.reads, I))
    assert not check([stale if one is victim else one for one in history]).ok
