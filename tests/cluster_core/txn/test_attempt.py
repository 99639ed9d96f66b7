"""An attempt at a transaction: its parts, its failures, its answers and its record."""

from __future__ import annotations

import pytest

from cluster_core.errors import (
    Conflict,
    KotobaError,
    NoLeader,
    OutcomeUnknown,
    PreconditionFailed,
    StorageFull,
)
from cluster_core.graph.parts import Answer, DropVertex
from cluster_core.txn.attempt import Request, Transaction
from cluster_core.txn.records import RecordState, TransactionRecord, decode_record
from cluster_core.types import group_of

HOME, OTHER = 3, 9
VERTEX = bytes(32)


def attempt(*, operations: int = 1) -> Transaction:
    places = [(index, HOME) for index in range(operations)]
    return Transaction(Request(HOME, places, indexed=operations > 1), b"t" * 16, 100)


def failed(index: int) -> PreconditionFailed:
    return PreconditionFailed("another version", index=index)


def test_parts_stand_by_group_each_beside_the_index_of_its_operation() -> None:
    one = attempt(operations=2)
    for index, partition in ((0, HOME), (0, OTHER), (1, OTHER)):
        one.add(index, partition, DropVertex(VERTEX))
    assert one.home == group_of(HOME)
    assert one.own.operations == [0]
    assert {group: share.operations for group, share in one.remote.items()} == {
        group_of(OTHER): [0, 1]
    }


@pytest.mark.parametrize("error", [Conflict("locked"), NoLeader("moved")])
def test_what_lost_against_another_or_found_no_leader_is_tried_again(error: KotobaError) -> None:
    one = attempt()
    one.fail(error)
    assert (one.open, one.again, one.error) == (False, True, None)


@pytest.mark.parametrize("error", [Conflict("locked"), failed(0)])
def test_who_refuses_for_certain_holds_nothing_of_it(error: KotobaError) -> None:
    one = attempt()
    one.holding = {1, 2}
    one.refuse(2, error)
    assert one.holding == {1}
    assert not one.open


@pytest.mark.parametrize("error", [NoLeader("moved"), OutcomeUnknown("late"), StorageFull("full")])
def test_who_may_have_prepared_before_it_failed_may_hold_it(error: KotobaError) -> None:
    one = attempt()
    one.holding = {1, 2}
    one.refuse(2, error)
    assert one.holding == {1, 2}
    assert not one.open


@pytest.mark.parametrize("order", [(0, 2), (2, 0)])
def test_of_several_operations_that_fail_the_first_is_told(order: tuple[int, int]) -> None:
    one = attempt(operations=3)
    for index in order:
        one.fail(failed(index))
    assert not one.open
    assert one.error is not None
    assert one.error.extra["index"] == 0


def test_the_answers_come_in_the_order_of_the_operations() -> None:
    one = attempt(operations=2)
    one.commit = 500
    one.answers = {1: Answer(b"b" * 32, VERTEX, True, 400), 0: Answer(b"a" * 32, VERTEX, True)}
    results = one.answer().results
    assert [(result.digest[:1], result.timestamp) for result in results] == [
        (b"a", 500),
        (b"b", 400),
    ]


def test_an_answer_that_was_lost_is_a_conflict() -> None:
    with pytest.raises(Conflict):
        attempt().answer()


def test_the_record_names_all_participants_but_the_home() -> None:
    one = attempt()
    one.commit = 500
    for partition in (OTHER, HOME, OTHER - 1):
        one.add(0, partition, DropVertex(VERTEX))
    assert decode_record(one.record(RecordState.STAGING)) == TransactionRecord(
        RecordState.STAGING, 100, 500, [group_of(OTHER - 1), group_of(OTHER)]
    )
