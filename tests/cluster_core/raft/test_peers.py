"""The members of a group as their leader sees them."""

from __future__ import annotations

from cluster_core.raft import Configuration
from cluster_core.raft.peers import PROMOTION_LAG_MAX, Peers
from tests.cluster_core.raft.replicas import CONFIG


def peers(configuration: Configuration, *live: int, **match: int) -> Peers:
    """Those of replica 1; ``m3=5`` says that 3 has entries up to 5."""
    made = Peers(1, CONFIG)
    made.take(configuration, 11)
    for member in live:
        made[member].recent_active = True
    for name, index in match.items():
        made[int(name[1:])].acked(index)
    return made


def test_what_is_known_of_a_member_outlives_a_change() -> None:
    made = peers(Configuration.of([1, 2, 3]), 2, m2=7)
    made.take(Configuration.of([1, 2], [4]), 12)
    assert (made[2].match, made[4].next) == (7, 12)
    assert 3 not in made
    assert [peer.replica for peer in made.others] == [2, 4]


def test_we_count_only_where_we_are_a_voter() -> None:
    made = peers(Configuration.of([1, 2]), m1=9, m2=5)
    assert made.committed() == 5
    made.take(Configuration.of([2, 3]), 12)
    made[3].acked(4)
    assert made.committed() == 4
    assert made.own.match == 9
    assert 1 not in made


def test_a_quorum_is_heard_in_one_period_or_not() -> None:
    made = peers(Configuration.of([1, 2, 3], [4]), 2, 4)
    assert made.heard_quorum()
    assert not made.heard_quorum()


def test_who_answers_could_decide_by_another_configuration_or_not() -> None:
    made = peers(Configuration.of([1, 2, 3], [4]), 2)
    assert made.could_decide(Configuration.of([1, 2]))
    assert not made.could_decide(Configuration.of([1, 3]))
    assert not made.could_decide(Configuration((1, 2), (1, 3)))
    assert not made.could_decide(Configuration((1, 3), (1, 2)))


def test_a_learner_is_caught_up_when_it_answers_and_lacks_little() -> None:
    made = peers(Configuration.of([1], [4, 5, 6]), 4, 5, m4=50, m6=50)
    assert made.caught_up(4, 50 + PROMOTION_LAG_MAX)
    assert not made.caught_up(4, 51 + PROMOTION_LAG_MAX)
    assert not made.caught_up(5, 50), "it is being probed"
    assert not made.caught_up(6, 50), "it does not answer"


def test_the_successor_is_the_voter_that_has_most_and_answers() -> None:
    made = peers(Configuration.of([1, 2, 3, 4], [5]), 2, 3, 5, m2=6, m3=7, m4=9, m5=9)
    assert made.successor() == 3
    assert peers(Configuration.of([1, 2]), m2=6).successor() is None


def test_the_log_is_needed_from_where_somebody_is() -> None:
    made = peers(Configuration.of([1, 2, 3, 4]), 2, m2=6, m3=3, m4=5)
    assert made.needed_from(9, spare_followers=True) == 6
    assert made.needed_from(9, spare_followers=False) == 9
    made[4].become_snapshot(8)
    assert made.needed_from(9, spare_followers=False) == 8
    assert made.needed_from(5, spare_followers=True) == 5


def test_we_are_no_peer_of_ourselves() -> None:
    made = peers(Configuration.of([1, 2]))
    assert made.find(1) is None
    assert made.find(2) is made[2]
    assert made.find(9) is None
