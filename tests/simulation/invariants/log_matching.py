"""Log matching: entries of one index and term are equal, and so is all before them (figure 3).

Checked as its induction step: whoever holds an entry of this index and term holds the same bytes,
after an entry of the same term.
"""

from __future__ import annotations

from cluster_core.types import GroupId
from tests.simulation.invariants.view import ReplicaView

__all__ = ["LogMatching"]

_TERM_BYTES = 8


class LogMatching:
    def __init__(self) -> None:
        self._entries: dict[tuple[GroupId, int, bytes], tuple[bytes, bytes | None, str]] = {}

    def check(self, replicas: list[ReplicaView]) -> None:
        for view in replicas:
            before: bytes | None = _term(view, view.applied)
            for index in range(view.applied + 1, view.last_written + 1):
                entry = view.entry(index)
                assert entry is not None, f"{view.node}: a hole in the log at {index}"
                term = entry[:_TERM_BYTES]
                mine = (entry, before, view.node)
                seen = self._entries.setdefault((view.group, index, term), mine)
                same_before = None in (seen[1], before) or seen[1] == before
                same = seen[0] == entry and same_before
                assert same, (
                    f"group {view.group}, index {index}, term {int.from_bytes(term, 'big')}: "
                    f"{seen[2]} and {view.node} hold different logs"
                )
                before = term


def _term(view: ReplicaView, index: int) -> bytes | None:
    """None where a truncation or a snapshot took the entry away."""
    entry = view.entry(index)
    return None if entry is None else entry[:_TERM_BYTES]
