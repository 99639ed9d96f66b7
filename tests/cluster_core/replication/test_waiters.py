"""Waiting at a replica: who is told, and what is left of those who gave up."""

from __future__ import annotations

import pytest

from cluster_core.errors import NoLeader
from cluster_core.replication.waiters import TIDY_MIN, Waiters


async def test_who_waits_is_told_when_his_place_is_reached() -> None:
    waiters: Waiters[str] = Waiters()
    early, late = waiters.wait(3), waiters.wait(4)
    waiters.tell("three", up_to=3)
    assert (early.result(), late.done(), len(waiters)) == ("three", False, 1)
    waiters.tell("five", up_to=5)
    assert (late.result(), len(waiters)) == ("five", 0)


async def test_who_waits_is_told_that_it_will_not_happen() -> None:
    waiters: Waiters[None] = Waiters()
    waiting = waiters.wait()
    waiters.fail(NoLeader("gone"))
    with pytest.raises(NoLeader):
        waiting.result()
    assert not waiters


async def test_those_who_gave_up_are_let_go_while_others_come() -> None:
    waiters: Waiters[None] = Waiters()
    patient = waiters.wait(1)
    for _ in range(10 * TIDY_MIN):
        waiters.wait(1).cancel()
    assert len(waiters) <= 2 * TIDY_MIN
    waiters.tell(None, up_to=1)
    assert patient.done()


async def test_who_gave_up_is_not_told() -> None:
    waiters: Waiters[None] = Waiters()
    waiters.wait().cancel()
    waiters.tell(None)
    assert not waiters
