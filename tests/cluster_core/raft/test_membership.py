"""The algebra of configurations, and those of a log: §6, D §4."""

from __future__ import annotations

from itertools import combinations, pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster_core.raft import UNKNOWN, Change, Configuration
from cluster_core.raft.membership import (
    ConfigurationLog,
    changed,
    decode_configuration,
    encode_configuration,
    left,
    unfit,
)
from cluster_core.wire.messages import CONFIGURATION, Entry

OLD = Configuration.of([1, 2, 3], [4, 5])
IDS = st.sets(st.integers(1, 8), max_size=3).map(lambda ids: tuple(sorted(ids)))
CHANGES = st.builds(Change, add_learners=IDS, promote=IDS, demote=IDS, remove=IDS)


def entry(index: int, configuration: Configuration, term: int = 1) -> Entry:
    return Entry(term, index, encode_configuration(configuration), CONFIGURATION)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (Change(add_learners=(6, 7)), Configuration.of([1, 2, 3], [4, 5, 6, 7])),
        (Change(promote=(4,)), Configuration.of([1, 2, 3, 4], [5])),
        (Change(demote=(3,)), Configuration.of([1, 2], [3, 4, 5])),
        (Change(remove=(3,)), Configuration.of([1, 2], [4, 5])),
        (Change(remove=(4, 5)), Configuration.of([1, 2, 3])),
        (Change(remove=(3, 5), add_learners=(6,)), Configuration.of([1, 2], [4, 6])),
    ],
)
def test_where_at_most_one_voter_comes_or_goes_one_step_is_enough(
    change: Change, expected: Configuration
) -> None:
    assert changed(OLD, change) == expected


@pytest.mark.parametrize(
    ("change", "voters", "learners"),
    [
        (Change(promote=(4,), remove=(1,)), (2, 3, 4), (5,)),
        (Change(promote=(4,), demote=(1,)), (2, 3, 4), (1, 5)),
        (Change(promote=(4, 5)), (1, 2, 3, 4, 5), ()),
        (Change(remove=(1, 2)), (3,), (4, 5)),
    ],
)
def test_anything_else_takes_a_joint_configuration_and_leads_to_the_new_one(
    change: Change, voters: tuple[int, ...], learners: tuple[int, ...]
) -> None:
    joint = changed(OLD, change)
    assert joint == Configuration(voters, (1, 2, 3), learners)
    assert left(joint) == Configuration(voters, (), learners)


def test_a_voter_that_is_being_demoted_still_decides_in_the_old_half() -> None:
    joint = changed(OLD, Change(promote=(4,), demote=(1,)))
    assert joint.is_voter(1)
    assert not left(joint).is_voter(1)


@pytest.mark.parametrize(
    "change",
    [
        Change(),
        Change(add_learners=(0,)),
        Change(add_learners=(1,)),
        Change(add_learners=(4,)),
        Change(promote=(1,)),
        Change(promote=(9,)),
        Change(demote=(4,)),
        Change(remove=(9,)),
        Change(remove=(1, 2, 3)),
        Change(promote=(4,), remove=(4,)),
        Change(demote=(1, 1)),
    ],
)
def test_a_change_that_does_not_fit_is_recognised(change: Change) -> None:
    assert unfit(OLD, change)


@settings(max_examples=50, deadline=None)
@given(CHANGES)
def test_majorities_of_what_follow_each_other_always_meet(change: Change) -> None:
    if unfit(OLD, change):
        return
    steps = [OLD, changed(OLD, change)]
    if steps[1].is_joint:
        steps.append(left(steps[1]))
    for old, new in pairwise(steps):
        for one in quorums(old):
            assert all(one & other for other in quorums(new))


def quorums(configuration: Configuration) -> list[set[int]]:
    members = configuration.members
    sets = [set(some) for size in range(len(members) + 1) for some in combinations(members, size)]
    halves = [half for half in (configuration.voters, configuration.outgoing) if half]
    return [some for some in sets if all(2 * len(some & set(half)) > len(half) for half in halves)]


@settings(max_examples=50, deadline=None)
@given(CHANGES)
def test_an_entry_holds_the_whole_configuration(change: Change) -> None:
    if not unfit(OLD, change):
        configuration = changed(OLD, change)
        assert decode_configuration(encode_configuration(configuration)) == configuration


def test_an_entry_of_before_there_were_kinds_is_data() -> None:
    old = msgspec.msgpack.encode((1, 2, b"x"))
    assert msgspec.msgpack.decode(old, type=Entry) == Entry(1, 2, b"x", 0)


class TestTheConfigurationsOfALog:
    A, B, C = (Configuration.of(range(1, size)) for size in (3, 4, 5))

    def log(self) -> ConfigurationLog:
        log = ConfigurationLog(self.A)
        log.append([Entry(1, 4, b"x"), entry(5, self.B), entry(9, self.C, 2)])
        return log

    def test_the_latest_one_counts_committed_or_not(self) -> None:
        log = self.log()
        assert (log.latest, log.latest_index, log.applied) == (self.C, 9, self.A)

    def test_what_is_known_already_is_not_noted_again(self) -> None:
        log = self.log()
        log.append([entry(5, self.B), entry(9, self.C, 2)])
        assert log.undecided(0) == [self.A, self.B, self.C]

    def test_one_whose_entry_was_replaced_is_forgotten(self) -> None:
        log = self.log()
        log.retain(lambda index, _term: index < 9)
        assert log.latest == self.B
        log.retain(lambda _index, _term: False)
        assert (log.latest, log.latest_index) == (self.A, 0)

    def test_applying_moves_the_applied_one(self) -> None:
        log = self.log()
        log.applied_to(4)
        assert log.applied == self.A
        log.applied_to(8)
        assert (log.applied, log.latest) == (self.B, self.C)
        log.applied_to(9)
        assert (log.applied, log.latest_index) == (self.C, 0)

    def test_undecided_are_the_last_committed_one_and_those_behind_it(self) -> None:
        log = self.log()
        assert log.undecided(4) == [self.A, self.B, self.C]
        assert log.undecided(5) == [self.B, self.C]
        assert log.undecided(9) == [self.C]

    def test_a_snapshot_says_what_is_applied(self) -> None:
        log = self.log()
        log.restore(UNKNOWN)
        assert (log.latest, log.latest_index) == (UNKNOWN, 0)
