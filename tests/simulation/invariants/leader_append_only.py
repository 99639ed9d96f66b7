"""Leader append-only: a leader never overwrites or deletes entries of its log (Raft, figure 3).

Checked from look to look: what was a leader's last entry is still there while it leads that term.
Log matching vouches for what lies before it.
"""

from __future__ import annotations

from tests.simulation.invariants.view import Life, ReplicaView

__all__ = ["LeaderAppendOnly"]


class LeaderAppendOnly:
    def __init__(self) -> None:
        self._last: dict[Life, tuple[int, int, bytes | None]] = {}
        """Of each replica that led when it was looked at: its term, and its last entry."""

    def check(self, replicas: list[ReplicaView]) -> None:
        for view in replicas:
            before = self._last.pop(view.life, None)
            if not view.leads:
                continue
            if before is not None and before[0] == view.term:
                self._compare(view, before[1], before[2])
            last = view.last_written
            self._last[view.life] = (view.term, last, view.entry(last))

    def _compare(self, leader: ReplicaView, last: int, entry: bytes | None) -> None:
        where = f"group {leader.group}: {leader.node}, which leads term {leader.term},"
        assert leader.last_written >= last, f"{where} lost entries behind {leader.last_written}"
        if last >= leader.first_kept:
            assert leader.entry(last) == entry, f"{where} has replaced its entry {last}"
