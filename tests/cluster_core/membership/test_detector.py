"""A node is suspected, failed and recovered at the times the configuration says."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster_core.config import MembershipConfig
from cluster_core.membership.detector import FailureDetector, MemberState, Transition

CONFIG = MembershipConfig(suspect_after_ms=1_000, fail_after_ms=5_000)


def watch(*members: str) -> FailureDetector:
    return FailureDetector(CONFIG, members, now=100.0)


def test_a_node_that_is_heard_stays_active() -> None:
    detector = watch("b")
    for step in range(100):
        detector.heard("b", 100.0 + step / 2)
        assert detector.tick(100.0 + step / 2) == []
    assert detector.state("b") == "active"


def test_silence_makes_a_node_suspected_and_then_failed() -> None:
    detector = watch("b")
    assert detector.tick(101.0) == []
    assert detector.tick(101.1) == [Transition("b", "active", "suspected")]
    assert detector.tick(105.0) == []
    assert detector.tick(105.1) == [Transition("b", "suspected", "failed")]
    assert detector.tick(200.0) == []


def test_a_node_that_is_heard_again_has_recovered() -> None:
    detector = watch("b")
    detector.tick(110.0)
    assert detector.state("b") == "failed"
    detector.heard("b", 110.1)
    (transition,) = detector.tick(110.2)
    assert transition == Transition("b", "failed", "active")
    assert transition.event == "NodeRecovered"


def test_a_broken_stream_is_suspicious_unless_it_stands_again_soon() -> None:
    detector = watch("b", "c")
    for node in ("b", "c"):
        detector.lost(node, 100.5)
    assert detector.tick(100.7) == []
    detector.heard("c", 100.7)
    assert detector.tick(100.9) == [Transition("b", "active", "suspected")]
    assert detector.states() == {"b": "suspected", "c": "active"}


def test_a_stream_that_breaks_again_and_again_does_not_put_suspicion_off() -> None:
    detector = watch("b")
    for step in range(4):
        detector.lost("b", 100.0 + step / 10)
    assert [transition.event for transition in detector.tick(100.35)] == ["NodeSuspected"]


def test_a_long_silence_between_ticks_is_one_transition() -> None:
    assert watch("b").tick(1000.0) == [Transition("b", "active", "failed")]


def test_members_come_and_go() -> None:
    detector = watch("b")
    detector.tick(110.0)
    detector.set_members(["c", "b"], 110.0)
    assert detector.states() == {"b": "failed", "c": "active"}
    detector.set_members(["c"], 110.0)
    detector.heard("b", 110.0)
    detector.lost("b", 110.0)
    assert detector.tick(110.5) == []
    assert detector.states() == {"c": "active"}


def test_transitions_come_in_the_order_of_names() -> None:
    assert [t.node for t in watch("c", "a", "b").tick(200.0)] == ["a", "b", "c"]


def test_a_node_that_is_not_watched_is_ourselves() -> None:
    assert watch("b").state("a") == "active"


@given(st.lists(st.tuples(st.sampled_from("hlt"), st.floats(0, 3)), max_size=60))
def test_transitions_chain_and_follow_from_what_was_heard(steps: list[tuple[str, float]]) -> None:
    detector = watch("b")
    now = heard = 100.0
    state: MemberState = "active"
    for kind, delay in steps:
        now += delay
        if kind == "h":
            detector.heard("b", now)
            heard = now
        elif kind == "l":
            detector.lost("b", now)
        for transition in detector.tick(now):
            assert transition.before == state
            state = transition.after
        assert detector.state("b") == state
        assert (state == "failed") == (now - heard > 5.0)
        if state == "active":
            assert now - heard <= 1.0
