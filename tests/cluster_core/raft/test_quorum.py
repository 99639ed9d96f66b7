"""Quorum arithmetic against its definition."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_core.raft.quorum import Configuration, VoteResult

IDS = st.integers(1, 9)
VOTERS = st.sets(IDS, min_size=1, max_size=7)
OUTGOING = st.one_of(st.just(set[int]()), VOTERS)


def configuration(voters: set[int], outgoing: set[int]) -> Configuration:
    return Configuration(tuple(sorted(voters)), tuple(sorted(outgoing)))


def is_quorum(members: set[int], voters: set[int], outgoing: set[int]) -> bool:
    """The definition: more than half, of both halves of a joint configuration."""
    return all(2 * len(members & half) > len(half) for half in (voters, outgoing) if half)


@given(VOTERS, OUTGOING, st.dictionaries(IDS, st.integers(0, 20)))
def test_the_committed_index_is_the_highest_that_a_quorum_has(
    voters: set[int], outgoing: set[int], acked: dict[int, int]
) -> None:
    expected = max(
        index
        for index in range(21)
        if is_quorum({v for v in range(1, 10) if acked.get(v, 0) >= index}, voters, outgoing)
    )
    found = configuration(voters, outgoing).committed(lambda voter: acked.get(voter, 0))
    assert found == expected


@given(VOTERS, OUTGOING, st.dictionaries(IDS, st.booleans()))
def test_a_vote_is_won_or_lost_when_no_further_answer_can_change_it(
    voters: set[int], outgoing: set[int], votes: dict[int, bool]
) -> None:
    granted = {voter for voter, vote in votes.items() if vote}
    silent = set(range(1, 10)) - set(votes)
    result = configuration(voters, outgoing).vote_result(votes)
    assert (result is VoteResult.WON) == is_quorum(granted, voters, outgoing)
    assert (result is VoteResult.LOST) == (not is_quorum(granted | silent, voters, outgoing))


@given(VOTERS, OUTGOING)
def test_any_two_quorums_share_a_voter(voters: set[int], outgoing: set[int]) -> None:
    members = sorted(voters | outgoing)
    half = len(members) // 2 + 1
    quorums = [
        set(some)
        for some in combinations(members, min(half, len(members)))
        if is_quorum(set(some), voters, outgoing)
    ]
    for one, other in combinations(quorums[:40], 2):
        assert one & other


def test_a_configuration_is_sorted_whatever_order_it_is_given_in() -> None:
    made = Configuration.of([3, 1, 2, 1], [9, 8])
    assert (made.voters, made.learners) == ((1, 2, 3), (8, 9))
    assert made.members == (1, 2, 3, 8, 9)
    assert made.is_voter(2)
    assert not made.is_voter(9)


@pytest.mark.parametrize(
    ("voters", "learners"), [((), ()), ((1, 2), (2,)), ((0, 1), ()), ((1,), (0,))]
)
def test_an_impossible_configuration_is_refused(
    voters: tuple[int, ...], learners: tuple[int, ...]
) -> None:
    with pytest.raises(AssertionError):
        Configuration.of(voters, learners)
