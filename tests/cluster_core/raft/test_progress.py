"""A leader's view of one peer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_core.raft.progress import Inflights, Progress, ProgressState


def progress(*, next_index: int = 6, messages_max: int = 3, bytes_max: int = 100) -> Progress:
    made = Progress(2, Inflights(messages_max, bytes_max))
    made.reset(next_index)
    return made


def replicating(match: int = 5) -> Progress:
    made = progress()
    assert made.acked(match)
    return made


def test_a_new_leader_probes_behind_its_own_last_entry() -> None:
    made = progress(next_index=6)
    assert (made.state, made.match, made.next) == (ProgressState.PROBE, 0, 6)


def test_an_acknowledged_probe_starts_replication_behind_it() -> None:
    made = progress()
    made.sent(7, 10, 3)
    assert made.probe_sent
    assert made.acked(7)
    assert (made.state, made.match, made.next) == (ProgressState.REPLICATE, 7, 8)
    assert not made.probe_sent
    assert made.commit_sent == 3


def test_an_empty_probe_that_is_acknowledged_starts_replication_too() -> None:
    made = replicating(5)
    made.become_probe()
    made.sent(5, 0, 5)
    assert made.acked(5)
    assert (made.state, made.match, made.next) == (ProgressState.REPLICATE, 5, 6)


def test_sending_moves_next_before_the_acknowledgement() -> None:
    made = replicating(5)
    made.sent(6, 10, 5)
    made.sent(9, 10, 5)
    assert (made.match, made.next, len(made.inflights)) == (5, 10, 2)
    assert made.acked(6)
    assert (made.match, made.next, len(made.inflights)) == (6, 10, 1)


def test_an_old_acknowledgement_is_no_news() -> None:
    made = replicating(5)
    assert not made.acked(5)
    assert not made.acked(3)
    assert made.match == 5


def test_a_rejection_while_replicating_goes_back_to_probing_and_forgets_the_flight() -> None:
    made = replicating(5)
    made.sent(6, 10, 5)
    made.sent(9, 10, 5)
    assert made.rejected(6, hint=5)
    assert (made.state, made.next, len(made.inflights)) == (ProgressState.PROBE, 6, 0)
    assert made.commit_sent == 0, "what was sent along with it may be lost as well"


def test_a_rejection_of_what_matches_is_an_old_one() -> None:
    made = replicating(5)
    assert not made.rejected(4, hint=2)
    assert not made.rejected(5, hint=2)
    assert made.state is ProgressState.REPLICATE


def test_a_rejection_of_what_was_never_sent_is_an_old_one() -> None:
    made = replicating(5)
    assert not made.rejected(8, hint=7)
    assert made.state is ProgressState.REPLICATE


def test_only_the_answer_to_the_probe_itself_moves_it() -> None:
    made = progress(next_index=10)
    assert not made.rejected(7, hint=3)
    assert made.next == 10
    assert made.rejected(9, hint=3)
    assert made.next == 4
    assert not made.probe_sent


@given(
    match=st.integers(0, 20),
    ahead=st.integers(0, 20),
    index=st.integers(0, 60),
    hint=st.integers(0, 60),
    probing=st.booleans(),
)
def test_match_stays_below_next_and_a_rejection_never_moves_next_forward(
    match: int, ahead: int, index: int, hint: int, probing: bool
) -> None:
    made = progress(next_index=match + 1)
    if match:
        made.acked(match)
    if probing:
        made.become_probe()
    made.next += ahead
    before = made.next
    made.rejected(index, hint)
    assert made.match == match < made.next <= max(before, match + 1)


def test_inflights_are_bounded_by_number() -> None:
    flight = Inflights(2, 1_000)
    flight.add(1, 10)
    flight.add(5, 10)
    assert flight.full
    with pytest.raises(AssertionError):
        flight.add(6, 10)
    flight.free_to(4)
    assert (len(flight), flight.bytes, flight.full) == (1, 10, False)


def test_inflights_are_bounded_by_bytes_which_one_message_may_pass() -> None:
    flight = Inflights(100, 50)
    flight.add(1, 49)
    assert not flight.full
    flight.add(2, 300)
    assert flight.full
    flight.free_to(2)
    assert (len(flight), flight.bytes) == (0, 0)


def test_what_is_unanswered_for_a_whole_heartbeat_is_asked_for_once() -> None:
    made = replicating(5)
    made.sent(6, 10, 5)
    assert not made.answered_beat(), "it may have left after the heartbeat"
    made.beat()
    assert made.answered_beat()
    made.sent(6, 0, 5)
    assert not made.answered_beat()
    made.beat()
    assert made.acked(6)
    assert not made.answered_beat()


def test_a_probe_that_is_unanswered_for_a_whole_heartbeat_is_sent_again() -> None:
    made = progress()
    assert made.answered_beat(), "none is on its way"
    made.sent(5, 0, 0)
    assert not made.answered_beat()
    made.beat()
    assert made.answered_beat()
    assert not made.probe_sent


class TestWaitingForASnapshot:
    """§7"""

    def waiting(self) -> Progress:
        made = replicating(5)
        made.sent(9, 10, 5)
        made.become_snapshot(20)
        return made

    def test_nothing_is_on_its_way_and_the_next_entry_is_the_one_behind_it(self) -> None:
        made = self.waiting()
        assert (made.state, made.match, made.next) == (ProgressState.SNAPSHOT, 5, 21)
        assert len(made.inflights) == 0
        with pytest.raises(AssertionError):
            made.sent(21, 10, 5)

    def test_the_snapshot_or_a_later_one_starts_replication_behind_it(self) -> None:
        for index in (20, 23):
            made = self.waiting()
            assert made.acked(index)
            assert (made.state, made.next) == (ProgressState.REPLICATE, index + 1)

    def test_an_acknowledgement_of_less_is_noted_and_does_not_end_it(self) -> None:
        made = self.waiting()
        assert made.acked(9)
        assert not made.acked(9)
        assert (made.state, made.match, made.next) == (ProgressState.SNAPSHOT, 9, 21)

    def test_rejections_and_heartbeats_do_not_end_it(self) -> None:
        made = self.waiting()
        assert not made.rejected(8, hint=5)
        made.beat()
        assert not made.answered_beat()
        assert made.state is ProgressState.SNAPSHOT

    def test_after_a_failure_it_is_probed_when_it_has_answered_a_heartbeat(self) -> None:
        made = self.waiting()
        made.snapshot_failed()
        assert (made.state, made.next) == (ProgressState.PROBE, 6)
        assert not made.answered_beat()
        made.beat()
        assert made.answered_beat()

    def test_a_failure_after_it_has_arrived_is_no_news(self) -> None:
        made = self.waiting()
        made.acked(20)
        made.snapshot_failed()
        assert made.state is ProgressState.REPLICATE


def test_a_peer_is_live_for_one_period_after_the_one_in_which_it_answered() -> None:
    made = progress()
    assert not made.is_live
    made.recent_active = True
    made.end_period()
    assert made.is_live
    made.end_period()
    assert not made.is_live


def behind_a_snapshot(*, written: int) -> Progress:
    """It has taken in a snapshot that ends at 10, while the log went on to 10 + ``written``."""
    made = progress()
    made.become_snapshot(10)
    assert made.acked(10)
    made.catch_up(10 + written)
    return made


def test_who_is_level_behind_a_snapshot_does_not_catch_up() -> None:
    assert not behind_a_snapshot(written=0).catches_up
    assert not replicating(5).catches_up


def test_catching_up_goes_on_as_long_as_every_round_leaves_less_to_do() -> None:
    made = behind_a_snapshot(written=100)
    for match, last_index in ((60, 120), (110, 150), (150, 160), (155, 165)):
        assert made.acked(match)
        made.catch_up(last_index)
        assert made.catches_up
    assert made.acked(165)
    made.catch_up(165)
    assert not made.catches_up


def test_catching_up_ends_when_a_round_leaves_as_much_to_do() -> None:
    made = behind_a_snapshot(written=100)
    assert made.acked(110)
    made.catch_up(210)
    assert not made.catches_up


def test_catching_up_ends_with_a_period_without_progress() -> None:
    made = behind_a_snapshot(written=100)
    made.end_period()
    assert made.catches_up
    assert made.acked(11)
    made.end_period()
    assert made.catches_up
    made.end_period()
    assert not made.catches_up
