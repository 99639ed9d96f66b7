"""Rules of the change feed, each broken on purpose."""

from __future__ import annotations

from functools import partial

import pytest

from cluster_core.events import Change
from cluster_core.node import feed
from cluster_core.node.bus import Subscription
from cluster_core.node.feed import Feed, Portion
from cluster_core.ports import Engine
from cluster_core.replication import closed
from cluster_core.replication.closed import ClosedTimestamps
from cluster_core.replication.replica import Replica
from cluster_core.types import GroupId, Timestamp
from tests.simulation.mutants.hunt import Everywhere, Mutant
from tests.simulation.reading_schedules import catch_up_piece_by_piece, resume_below_the_horizon
from tests.simulation.runs import FORGETFUL
from tests.simulation.test_feed import follow_through_trouble

__all__ = ["MUTANTS"]

AREA = "Clocks and reads"
FEED = Everywhere(partial(follow_through_trouble, seconds=10, chaos=True))


def publishes_up_to_its_clock(patch: pytest.MonkeyPatch) -> None:
    """The feed does not wait for what is closed everywhere."""

    def now(self: Feed) -> Timestamp:
        return self._clock.latest

    patch.setattr(Feed, "_closed_everywhere", now)
    patch.setattr(ClosedTimestamps, "of", lambda self, group: closed.Point(1 << 63, 0))


def begins_with_what_it_has_given(patch: pytest.MonkeyPatch) -> None:
    """What was resolved last is read once more."""
    read = feed.read_portion

    def from_there(
        engine: Engine, group: GroupId, after: Timestamp, upto: Timestamp, limit: int
    ) -> Portion:
        return read(engine, group, after - 1, upto, limit)

    patch.setattr(feed, "read_portion", from_there)


def cuts_timestamps_in_two(patch: pytest.MonkeyPatch) -> None:
    """A reading ends where it has enough, whether that is the end of a timestamp or not."""
    read = feed.read_portion

    def so_many(
        engine: Engine, group: GroupId, after: Timestamp, upto: Timestamp, limit: int
    ) -> Portion:
        portion = read(engine, group, after, upto, limit)
        if len(portion.changes) <= limit:
            return portion
        return Portion(portion.changes[:limit], portion.changes[limit - 1][0])

    patch.setattr(feed, "read_portion", so_many)


def resolves_what_it_has_not_read(patch: pytest.MonkeyPatch) -> None:
    """A reading counts as complete up to where it was to end, though a partition has more."""
    gather = Feed.gather

    async def all_the_way(
        self: Feed, after: Timestamp, upto: Timestamp
    ) -> tuple[list[Change], Timestamp]:
        changes, reached = await gather(self, after, upto)
        return changes, after if reached == after else upto

    patch.setattr(Feed, "gather", all_the_way)


def joins_before_it_has_all(patch: pytest.MonkeyPatch) -> None:
    """Who is behind gets what is published from now on, and not what lies between."""

    async def at_once(self: Feed, subscription: Subscription) -> None:
        subscription.join()

    patch.setattr(Feed, "_catch_up_some", at_once)


def passes_over_what_is_collected(patch: pytest.MonkeyPatch) -> None:
    """Who comes back too late is given what is left."""

    def whatever(self: Feed, replica: Replica, after: Timestamp) -> None:
        pass

    patch.setattr(Feed, "_require_history", whatever)


MUTANTS = [
    Mutant(
        broken=publishes_up_to_its_clock,
        area=AREA,
        rule="a feed publishes up to the lowest closed timestamp",
        scenario=FEED,
        first=700,
        quick=False,
    ),
    Mutant(
        broken=begins_with_what_it_has_given,
        area=AREA,
        rule="a feed gives each change once",
        scenario=Everywhere(catch_up_piece_by_piece),
        within=3,
    ),
    Mutant(
        broken=cuts_timestamps_in_two,
        area=AREA,
        rule="a feed gives each timestamp whole",
        scenario=Everywhere(catch_up_piece_by_piece),
        within=3,
    ),
    Mutant(
        broken=resolves_what_it_has_not_read,
        area=AREA,
        rule="a Resolved comes behind all changes up to it",
        scenario=Everywhere(catch_up_piece_by_piece),
        within=3,
    ),
    Mutant(
        broken=joins_before_it_has_all,
        area=AREA,
        rule="who resumes behind a Resolved is given all that has come since",
        scenario=Everywhere(catch_up_piece_by_piece),
        within=3,
    ),
    Mutant(
        broken=passes_over_what_is_collected,
        area=AREA,
        rule="who resumes below the horizon is refused",
        scenario=Everywhere(resume_below_the_horizon, FORGETFUL),
        within=3,
    ),
]
