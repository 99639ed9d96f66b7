"""The event bus of one node: cluster events and changes of the graph, to whoever listens.

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
    ) -> None:
        self.changes = changes
        self._wanted = wanted
        self._queue: deque[Event] = deque()
        self._queue_max = queue_max
        self._on_close = on_close
        self._overflowed = False
        self._closed = False
        self._last_resolved: Timestamp | None = None
        self._waiter: asyncio.Future[None] | None = None

    def give(self, event: Event) -> None:
        """Called by the bus."""
        if self._overflowed or not self._wanted(event):
            return
        if len(self._queue) >= self._queue_max:
            self._overflowed = True
            self._queue.clear()
        else:
            self._queue.append(event)
        self._wake()

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
                return event
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


class EventBus:
    """See the module."""

    def __init__(self, queue_max: int) -> None:
        self._queue_max = queue_max
        self._subscriptions: dict[Subscription, None] = {}
        self.change_listeners = 0
        """Subscribers that want changes: without any, none is even decoded."""

    def publish(self, event: Event) -> None:
        for subscription in list(self._subscriptions):
            subscription.give(event)

    def subscribe(
        self,
        types: Collection[str] | None = None,
        *,
        labels: Collection[str] | None = None,
        partitions: Collection[int] | None = None,
        changes: bool = True,
    ) -> Subscription:
        """``types``: names of event types, with ``Change`` and ``Resolved`` (None: all).
        ``labels`` and ``partitions`` narrow the changes."""
        changes = changes and (types is None or "Change" in types)

        def wanted(event: Event) -> bool:
            if isinstance(event, ClusterEvent):
                return types is None or event.type in types
            if not changes:
                return False
            if isinstance(event, Resolved):
                return types is None or "Resolved" in types
            return _is_of(event, labels, partitions)

        subscription = Subscription(wanted, self._queue_max, self._forget, changes=changes)
        self._subscriptions[subscription] = None
        self.change_listeners += changes
        return subscription

    def _forget(self, subscription: Subscription) -> None:
        del self._subscriptions[subscription]
        self.change_listeners -= subscription.changes

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
