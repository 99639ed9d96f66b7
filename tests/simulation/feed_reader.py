"""A consumer of the change feed: it begins again, somewhere else, wherever it was cut off.

It keeps what it was given only up to the last Resolved, as a careful program would, and begins
behind that. Then it must have seen every change that was ever committed, once and in order; but for
those that it gave up on when it came back later than they are kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Final

from cluster_core.cluster import KotobaCluster
from cluster_core.errors import HistoryCollected, KotobaError
from cluster_core.events import Change, Event, Resolved, SlowReader
from cluster_core.graph.cid import cid_text
from cluster_core.types import Digest, Timestamp
from tests.simulation.loop import ProcessDied
from tests.simulation.world import World

__all__ = ["FeedReader", "Seen"]

Seen = tuple[Timestamp, int, str]
"""Timestamp, partition and CID of a change."""

_CATCH_UP_S: Final = 30.0

_PATIENCE_S: Final = 2.0
"""At most so long at one node before the reader goes to another."""


class FeedReader:
    """One consumer. ``changes`` holds what it has for good."""

    def __init__(self, world: World, name: str) -> None:
        self.name = name
        self.changes: list[Seen] = []
        self.resolved: Timestamp | None = None
        self.begins: list[tuple[Timestamp, Timestamp]] = []
        """Times that it could not see: before its beginning, and where it was away for too long."""
        self.disturbed = True
        """Whether it still goes from node to node."""
        self._world = world
        self._random = random.Random(f"{world.seed}/{name}")
        self._unsure: list[Seen] = []

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            node = self._random.choice(self._world.nodes)
            try:
                async with asyncio.timeout(self._patience()):
                    await node.ask(self._follow)
            except HistoryCollected:
                self._note("was away for too long")
                self._give_up()
            except (TimeoutError, ProcessDied, KotobaError, SlowReader):
                pass
            self._unsure.clear()
            await asyncio.sleep(self._random.uniform(0, 0.2))

    async def finish(
        self, following: asyncio.Future[None], committed: set[tuple[Timestamp, int, Digest]]
    ) -> None:
        """Nothing goes wrong any more: wait until it has everything, and compare."""
        self.disturbed = False
        upto = max((change[0] for change in committed), default=0)
        await self._world.until(
            lambda: following.done() or (self.resolved or 0) >= upto,
            _CATCH_UP_S,
            f"{self.name} has come to the end",
        )
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following
        self.check(committed, upto)

    def _patience(self) -> float:
        return self._random.uniform(0.1, _PATIENCE_S) if self.disturbed else 30.0

    async def _follow(self, cluster: KotobaCluster) -> None:
        subscription = cluster.subscribe_events({"Change"}, since=self.resolved)
        try:
            async for event in subscription:
                self._take(event)
        finally:
            subscription.close()

    def _take(self, event: Event) -> None:
        if isinstance(event, Change):
            seen = (event.timestamp, event.partition, event.cid)
            before = self._unsure[-1] if self._unsure else (self.resolved or 0, 1 << 20, "")
            assert event.timestamp >= before[0], f"{self.name}: {seen} after {before}"
            assert seen not in self._unsure, f"{self.name}: {seen} twice"
            assert self.resolved is None or event.timestamp > self.resolved
            self._unsure.append(seen)
        elif isinstance(event, Resolved):
            assert all(seen[0] <= event.timestamp for seen in self._unsure), "resolved too early"
            if self.resolved is None:
                self._begin_at(event.timestamp)
            else:
                assert event.timestamp >= self.resolved, f"{self.name}: Resolved went back"
            self.changes += self._unsure
            self._unsure.clear()
            self.resolved = event.timestamp

    def _begin_at(self, timestamp: Timestamp) -> None:
        last = self.begins.pop()[0] if self.begins else 0
        if timestamp >= last:
            self.begins.append((last, timestamp))
        else:  # this node knows less than the one before: what lies between comes again
            self.changes = [seen for seen in self.changes if seen[0] <= timestamp]
            self.begins = [(begin, min(end, timestamp)) for begin, end in self.begins]

    def _give_up(self) -> None:
        if self.resolved is not None:
            self.begins.append((self.resolved, 0))
            self.resolved = None

    def check(self, committed: set[tuple[Timestamp, int, Digest]], upto: Timestamp) -> None:
        """Compare with all changes that were committed, up to ``upto``."""
        assert self.resolved is not None, f"{self.name} never got a Resolved"
        assert self.resolved >= upto, f"{self.name} has not come to the end"
        expected = sorted(
            (timestamp, partition, cid_text(digest))
            for timestamp, partition, digest in committed
            if timestamp <= self.resolved
            and not any(begin < timestamp <= end for begin, end in self.begins)
        )
        assert sorted(self.changes) == expected, (
            f"{self.name}: missed {sorted(set(expected) - set(self.changes))[:5]}, "
            f"got too many {sorted(set(self.changes) - set(expected))[:5]}, twice "
            f"{len(self.changes) - len(set(self.changes))}"
        )
        assert [seen[0] for seen in self.changes] == sorted(seen[0] for seen in self.changes)

    def _note(self, text: str) -> None:
        self._world.note(f"{self.name} {text}")
