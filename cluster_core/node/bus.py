"""The event bus of one node: cluster events and changes of the graph, to whoever listens.

Changes come from the node's feed (``feed.py``), complete and in the order of their timestamps. A
subscription that begins in the past is *behind* at first: the feed gives it what it missed, as fast
as it reads, and then it joins those who get every change as it is published.

A subscriber that cannot keep up is dropped; nothing here ever waits for one, so the node is never
slowed down.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection

from cluster_core.events import Change, ClusterEvent, Event, Resolved, SlowReader
from cluster_core.types import Timestamp

__all__ = ["EventBus", "Subscription"]


class Subscription:
    """Events in order, from the subscription on. Raises SlowReader once some were missed."""

    def __init__(
        self,
        wanted: Callable[[Event], bool],
        queue_max: int,
        on_close: Callable[[Subscription], None],
        *,
        changes: bool,
        since: Timestamp | None,
    ) -> None:
        self.changes = changes
        self.behind = since
        """While it catches up: it was given all changes up to here, and gets none that are
        published."""
        self._joined_at: Timestamp = 0
        self._wanted = wanted
        self._queue: deque[Event] = deque()
        self._queue_max = queue_max
        self._on_close = on_close
        self._overflowed = False
        self._closed = False
        self._error: Exception | None = None
        self._last_resolved: Timestamp | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None

    @property
    def open(self) -> bool:
        """Whether there is still somebody who reads."""
        return not (self._closed or self._overflowed or self._error)

    def give(self, event: Event) -> None:
        """Called by the bus."""
        if not isinstance(event, ClusterEvent) and (
            self.behind is not None or event.timestamp <= self._joined_at
        ):
            return
        self._put(event)

    def _put(self, event: Event) -> None:
        if not self.open or not self._wanted(event):
            return
        if len(self._queue) >= self._queue_max:
            self._overflowed = True
            self._queue.clear()
        else:
            self._queue.append(event)
        self._wake()

    # What the feed does for those who are behind.

    async def room(self) -> None:
        """Return when half of the queue is free, or nobody reads any more."""
        while self.open and len(self._queue) > self._queue_max // 2:
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    def catch_up(self, changes: list[Change], reached: Timestamp | None = None) -> None:
        """The changes that come next after those that it has; with ``reached`` they are all up to
        there. Whoever gives many waits for room, whatever the timestamps are."""
        assert self.behind is not None
        self._queue += [change for change in changes if self._wanted(change)]
        if reached is not None:
            assert self.behind < reached
            self._queue.append(Resolved(timestamp=reached))
            self.behind = reached
        self._wake()

    def fall_behind(self, resolved: Timestamp) -> None:
        """What is published next is not given to it: it catches up from ``resolved``."""
        assert self.behind is None
        self.behind = max(resolved, self._joined_at)

    def join(self) -> None:
        """It has all that was published up to now; from here on it gets what is published."""
        assert self.behind is not None
        self._joined_at, self.behind = self.behind, None

    def fail(self, error: Exception) -> None:
        """Whoever iterates gets ``error`` after the events that are queued."""
        self._error = error
        self._wake()

    # Reading.

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        while True:
            if self._overflowed:
                raise SlowReader(self._last_resolved)
            if self._queue:
                event = self._queue.popleft()
                if isinstance(event, Resolved):
                    self._last_resolved = event.timestamp
                self._make_room()
                return event
            if self._error is not None:
                raise self._error
            if self._closed:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def close(self) -> None:
        """No more events; whoever iterates ends after those that are queued."""
        if not self._closed:
            self._closed = True
            self._on_close(self)
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        if not self.open:
            self._make_room()

    def _make_room(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)


class EventBus:
    """See the module."""

    def __init__(self, queue_max: int) -> None:
        self._queue_max = queue_max
        self._subscriptions: dict[Subscription, None] = {}
        self.change_listeners = 0
        """Subscribers that want changes: without any, none is even read."""
        self.resolved: Timestamp | None = None
        """All changes up to here were published, to those who wanted any; None: nobody did."""

    def publish(self, event: Event) -> None:
        for subscription in list(self._subscriptions):
            subscription.give(event)

    def publish_changes(self, changes: list[Change], reached: Timestamp) -> None:
        """All changes after :attr:`resolved` up to ``reached``; at once, so that nobody joins in
        the middle of them."""
        assert self.resolved is not None
        assert self.resolved <= reached
        for change in changes:
            self.publish(change)
        self.resolved = reached

    def fall_behind(self, reached: Timestamp) -> list[Subscription]:
        """Let who gets what is published take what lies between :attr:`resolved` and ``reached``
        for himself; returns them."""
        assert self.resolved is not None
        assert self.resolved < reached
        fallen = [
            one for one in self._subscriptions if one.changes and one.behind is None and one.open
        ]
        for subscription in fallen:
            subscription.fall_behind(self.resolved)
        self.resolved = reached
        return fallen

    def subscribe(
        self,
        types: Collection[str] | None = None,
        *,
        labels: Collection[str] | None = None,
        partitions: Collection[int] | None = None,
        changes: bool = True,
        since: Timestamp | None = None,
    ) -> Subscription:
        """``types``: names of event types, with ``Change`` and ``Resolved`` (None: all).
        ``labels`` and ``partitions`` narrow the changes; with ``since`` they begin behind it.

        Resolved goes along with Change: without it nobody knows how far he has come.
        """
        changes = changes and (types is None or "Change" in types or "Resolved" in types)

        def wanted(event: Event) -> bool:
            if isinstance(event, ClusterEvent):
                return types is None or event.type in types
            if isinstance(event, Resolved):
                return changes
            of_a_type = types is None or "Change" in types
            return changes and of_a_type and _is_of(event, labels, partitions)

        subscription = Subscription(
            wanted,
            self._queue_max,
            self._forget,
            changes=changes,
            since=since if changes else None,
        )
        self._subscriptions[subscription] = None
        self.change_listeners += changes
        if self.resolved is not None:
            subscription.give(Resolved(timestamp=self.resolved))  # where its changes begin
        return subscription

    def _forget(self, subscription: Subscription) -> None:
        del self._subscriptions[subscription]
        self.change_listeners -= subscription.changes
        if not self.change_listeners:
            self.resolved = None

    @property
    def behind(self) -> list[Subscription]:
        """Those who have to catch up."""
        return [one for one in self._subscriptions if one.behind is not None and one.open]

    def fail_changes(self, error: Exception) -> None:
        """The changes that are next are not to be had any more."""
        for subscription in list(self._subscriptions):
            if subscription.changes:
                subscription.fail(error)
        self.resolved = None

    def close(self) -> None:
        for subscription in list(self._subscriptions):
            subscription.close()


def _is_of(
    change: Change, labels: Collection[str] | None, partitions: Collection[int] | None
) -> bool:
    if partitions is not None and change.partition not in partitions:
        return False
    if labels is None:
        return True
    return change.label in labels or any(label in labels for label in change.labels)
