"""ReadIndex rounds."""

from __future__ import annotations

from cluster_core.raft.read_only import ReadRounds, ReadState


def test_reads_that_wait_share_one_round() -> None:
    rounds = ReadRounds()
    rounds.add(71)
    rounds.add(72)
    assert rounds.open(5) == 1
    assert not rounds.waiting
    assert rounds.confirm(1) == [ReadState(71, 5), ReadState(72, 5)]
    assert not rounds.unconfirmed


def test_a_round_confirms_all_before_it_and_none_behind_it() -> None:
    rounds = ReadRounds()
    for context, index in ((1, 10), (2, 11), (3, 12)):
        rounds.add(context)
        rounds.open(index)
    assert rounds.confirm(2) == [ReadState(1, 10), ReadState(2, 11)]
    assert rounds.confirm(2) == []
    assert rounds.unconfirmed


def test_abandoned_reads_are_named_and_their_round_is_never_used_again() -> None:
    rounds = ReadRounds()
    rounds.add(1)
    rounds.open(4)
    rounds.add(2)
    assert rounds.abandon() == [1, 2]
    assert rounds.confirm(9) == []
    rounds.add(3)
    assert rounds.open(4) == 2
