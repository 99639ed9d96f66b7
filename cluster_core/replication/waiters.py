"""Futures that wait for something to happen at one replica."""

from __future__ import annotations

import asyncio
from typing import Final, Generic, TypeVar

__all__ = ["Waiters"]

TIDY_MIN: Final = 64

_Told = TypeVar("_Told")


class Waiters(Generic[_Told]):
    """Those who wait for one kind of thing, each ``at`` its place in the order of such things.

    Who gives up cancels his future, and need not say so: it is let go as others come. So what never
    happens, in a group without a quorum for an hour, holds no more than those who wait at a time.
    """

    __slots__ = ("_bound", "_waiting")

    def __init__(self) -> None:
        self._waiting: list[tuple[int, asyncio.Future[_Told]]] = []
        self._bound = TIDY_MIN

    def __len__(self) -> int:
        return len(self._waiting)

    def wait(self, at: int = 0) -> asyncio.Future[_Told]:
        future: asyncio.Future[_Told] = asyncio.get_running_loop().create_future()
        self.add(at, future)
        return future

    def add(self, at: int, future: asyncio.Future[_Told]) -> None:
        if len(self._waiting) >= self._bound:
            self._waiting = [one for one in self._waiting if not one[1].done()]
            self._bound = max(TIDY_MIN, 2 * len(self._waiting))
        self._waiting.append((at, future))

    def tell(self, told: _Told, *, up_to: int = 0) -> None:
        """It has happened, for all who wait at ``up_to`` or before."""
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            at, future = one
            if future.done():
                continue
            if at <= up_to:
                future.set_result(told)
            else:
                self._waiting.append(one)

    def fail(self, error: Exception) -> None:
        """It will not happen here any more."""
        waiting, self._waiting = self._waiting, []
        for _, future in waiting:
            if not future.done():
                future.set_exception(error)
