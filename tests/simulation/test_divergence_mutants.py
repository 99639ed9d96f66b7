"""Rules of a comparison, broken on purpose: a scenario of ``test_divergence.py`` must say so."""

from __future__ import annotations

import pytest

from cluster_core.raft import Raft
from cluster_core.replication.comparison import Comparison, _Verdict
from cluster_core.replication.history import KeptSieve
from cluster_core.replication.replica import Replica
from cluster_core.types import ReplicaId
from tests.simulation import test_divergence as scenarios
from tests.simulation.broken import BROKEN_RUNS, assert_found

pytestmark = [*BROKEN_RUNS, pytest.mark.timeout(120)]


def test_a_digest_of_what_may_be_collected_too_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KeptSieve, "__call__", lambda self, key, value: True)
    assert_found(scenarios.test_what_is_collected_here_and_not_yet_there_is_no_difference)


def test_a_verdict_without_a_quorum_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def arrogant(
        self: Comparison, replica: Replica, index: int, digests: dict[ReplicaId, bytes]
    ) -> None:
        for other in sorted(digests):
            if digests[other] != digests.get(replica.id, digests[other]):
                self._convict(replica, _Verdict(replica.group, other, index))

    monkeypatch.setattr(Comparison, "_judge", arrogant)
    assert_found(scenarios.test_without_a_quorum_that_agrees_nobody_is_accused)


def test_who_differs_and_leads_again_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a restart made it forget, and the others trusted it."""
    monkeypatch.setattr(Comparison, "load", lambda self, groups: None)
    monkeypatch.setattr(Raft, "distrust", lambda self: None)
    assert_found(scenarios.test_a_restart_does_not_make_it_forget)
