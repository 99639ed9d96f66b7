"""The simulation is worth what it finds: each rule of safety is broken here on purpose, and a run
must say so within a bounded number of seeds."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Collection, Iterable

import msgspec
import pytest

from cluster_core.hlc import HybridClock
from cluster_core.node.identity import Identity
from cluster_core.ports import Clock
from cluster_core.raft import Raft, Ready
from cluster_core.replication.intents import IntentIndex
from cluster_core.replication.locks import LockTable
from cluster_core.replication.log_store import LogStore
from cluster_core.replication.replica import Replica
from cluster_core.storage.memory import MemoryBatch
from cluster_core.txn.executor import Executor
from cluster_core.types import Digest, Timestamp
from cluster_core.wire.messages import HardState
from tests.simulation.runs import run

pytestmark = [
    pytest.mark.simulation,
    pytest.mark.timeout(300),
    # A run that ends in the middle leaves coroutines behind, and they complain when collected.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
]


def assert_found(
    mutant: pytest.MonkeyPatch,
    seeds: Iterable[int],
    *,
    only: tuple[str, ...] = (),
    pace: float = 1.0,
) -> None:
    """Some run with the mutant breaks a promise, and the same run without it keeps them all."""
    for seed in seeds:
        try:
            run(seed, only=only, pace=pace)
        except AssertionError as failure:
            if not isinstance(failure.__cause__, AssertionError):
                raise  # the run itself is broken
            mutant.undo()
            run(seed, only=only, pace=pace)
            return
        finally:
            gc.collect()
    pytest.fail("the simulation did not find it")


def test_reads_without_a_confirmed_leadership_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def unconfirmed(replica: Replica) -> asyncio.Future[int]:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        future.set_result(replica.applied)
        return future

    monkeypatch.setattr(Replica, "read_barrier", unconfirmed)
    assert_found(monkeypatch, range(40), only=("pause",), pace=2.0)


def test_votes_that_a_crash_forgets_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def forget(store: LogStore, batch: MemoryBatch, hard_state: HardState) -> None:
        pass

    monkeypatch.setattr(LogStore, "save_hard_state", forget)
    assert_found(monkeypatch, range(20))


def test_acknowledgements_before_the_sync_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    ready = Raft.ready

    def hasty(raft: Raft) -> Ready:
        taken = ready(raft)
        late = taken.messages_after_persist
        return msgspec.structs.replace(
            taken,
            messages=taken.messages
            + tuple(message for message in late if message.target != raft.replica),
            messages_after_persist=tuple(
                message for message in late if message.target == raft.replica
            ),
        )

    monkeypatch.setattr(Raft, "ready", hasty)
    assert_found(monkeypatch, range(40), only=("crash_all",), pace=1.5)


def test_missing_locks_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(table: LockTable, locks: object, transaction: bytes) -> None:
        pass

    monkeypatch.setattr(LockTable, "conflict", never)
    assert_found(monkeypatch, range(20))


def test_reads_that_pass_over_undecided_transactions_are_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nothing(
        index: IntentIndex, timestamp: Timestamp, digests: Collection[Digest] | None
    ) -> None:
        pass

    monkeypatch.setattr(IntentIndex, "undecided", nothing)
    assert_found(monkeypatch, range(20))


def test_retries_that_execute_again_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(executor: Executor, job: object, evaluation: object) -> bool:
        return False

    monkeypatch.setattr(Executor, "_repeated", never)
    assert_found(monkeypatch, range(30))


def test_clocks_that_go_back_in_a_restart_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_a_ceiling(identity: Identity, wall: Clock, ahead_ms: int) -> HybridClock:
        return HybridClock(wall, ceiling=0, ahead_ms=ahead_ms)

    monkeypatch.setattr(Identity, "clock", without_a_ceiling)
    assert_found(monkeypatch, range(30), only=("crash",), pace=0.3)
