"""Each rule of a transfer, broken on purpose: a scenario of ``test_snapshots.py`` must say so."""

from __future__ import annotations

import pytest

from cluster_core.errors import Conflict
from cluster_core.ports import DATA, Batch
from cluster_core.raft.peers import Peers
from cluster_core.raft.progress import ProgressState
from cluster_core.replication.snapshots import Receiver, receiving, staging
from cluster_core.replication.snapshots.messages import Chunk, Position
from cluster_core.replication.snapshots.staging import Staging
from cluster_core.storage import keys
from tests.simulation import test_snapshots as scenarios
from tests.simulation.broken import BROKEN_RUNS, assert_found

pytestmark = [*BROKEN_RUNS, pytest.mark.timeout(120)]


def test_a_replacement_without_its_mark_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def unmarked(self: Staging, prefix: bytes, keeps_log: bool) -> None:
        batch: Batch = self._engine.batch()
        batch.delete_range(DATA, prefix, keys.after(prefix))
        self._write(batch)

    monkeypatch.setattr(Staging, "_begin_replacing", unmarked)
    assert_found(
        lambda: scenarios.test_a_crash_of_the_receiver_leaves_the_old_replica_or_the_new_one(
            "half-replaced"
        )
    )


def test_a_snapshot_that_nobody_verifies_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def whatever(self: Staging, chunks: int, digest: bytes) -> bool:
        return True

    monkeypatch.setattr(receiving, "is_intact", lambda pairs, checksum: True)
    monkeypatch.setattr(staging, "is_intact", lambda pairs, checksum: True)
    monkeypatch.setattr(Staging, "verify", whatever)
    assert_found(
        lambda: scenarios.test_a_chunk_that_was_damaged_on_its_way_is_not_taken_in(monkeypatch)
    )


def test_a_log_that_is_truncated_under_a_transfer_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forgetful(self: Peers, index: int, *, spare_followers: bool) -> int:
        for peer in self.others:
            if peer.state is not ProgressState.SNAPSHOT and spare_followers and peer.is_live:
                index = min(index, peer.match)
        return index

    monkeypatch.setattr(Peers, "needed_from", forgetful)
    assert_found(scenarios.test_one_snapshot_is_enough_however_fast_writes_are)


def test_chunks_that_are_answered_before_they_are_durable_are_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The sender has let go of what the crash of the receiver takes away."""

    async def hasty(self: Receiver, transfer: receiving._Transfer, chunk: Chunk) -> Position:
        if chunk.number > transfer.staging.next:
            raise Conflict("a part of the snapshot is missing")
        if chunk.number == transfer.staging.next:
            transfer.staging.add(chunk.checksum, chunk.pairs)
        return Position(chunk.number + 1)

    monkeypatch.setattr(Receiver, "_add", hasty)
    assert_found(
        lambda: scenarios.test_a_crash_of_the_receiver_leaves_the_old_replica_or_the_new_one(
            "some-chunks"
        )
    )
