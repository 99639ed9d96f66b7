"""All mutants of the whole simulation."""

from __future__ import annotations

from typing import Final

from tests.simulation.mutants import (
    of_feed,
    of_indexes,
    of_membership,
    of_moves,
    of_raft,
    of_requests,
    of_strict_reads,
    of_time,
    of_transactions,
    of_writing,
)
from tests.simulation.mutants.hunt import Mutant, hunt

__all__ = ["CATALOGUE", "Outcome", "hunt_by_name"]

CATALOGUE: Final[tuple[Mutant, ...]] = (
    *of_raft.MUTANTS,
    *of_writing.MUTANTS,
    *of_requests.MUTANTS,
    *of_transactions.MUTANTS,
    *of_time.MUTANTS,
    *of_feed.MUTANTS,
    *of_strict_reads.MUTANTS,
    *of_indexes.MUTANTS,
    *of_membership.MUTANTS,
    *of_moves.MUTANTS,
)

Outcome = tuple[int, float, str, str]
"""Of a hunt: runs, seconds, who noticed, and what went wrong."""


def hunt_by_name(name: str) -> Outcome:
    """In a worker process."""
    mutant = next(one for one in CATALOGUE if one.name == name)
    try:
        found = hunt(mutant)
    except Exception as error:
        return 0, 0.0, "", f"the hunt itself failed: {error!r:.500}"
    if found.sighting is None:
        return found.runs, found.wall_s, "", "nothing noticed"
    return found.runs, found.wall_s, found.sighting.by, ""
