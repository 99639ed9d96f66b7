"""A deterministic event loop with virtual time, and processes that can be killed inside it.

Time stands still while anything is ready to run, and jumps to the next timer when nothing is. No
threads, no sockets, no wall clock: a run depends on the code and on the random source alone.

A :class:`Process` owns the tasks and timers that start in its context (a context variable, which
asyncio hands on to every task, timer and callback), so that a crash can end exactly those.
"""

from __future__ import annotations

import asyncio
import heapq
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from typing import Any, Final, NoReturn, TypeVar

__all__ = ["Deadlock", "Process", "ProcessDied", "SimLoop"]

T = TypeVar("T")

_OWNER: ContextVar[Process | None] = ContextVar("simulated process", default=None)

_REAP_ROUNDS_MAX: Final = 100
"""A dying task may catch its cancellation a few times; one that does it for ever is a bug."""


class Deadlock(RuntimeError):
    """Nothing is ready and no timer is set, so nothing can happen any more."""


class ProcessDied(Exception):
    """The process that was asked crashed before it answered: the outcome is unknown."""


class SimLoop(asyncio.BaseEventLoop):
    """``asyncio`` as it is, with a turn of the loop of its own: no selector, and its own clock."""

    _scheduled: list[asyncio.TimerHandle]
    _ready: deque[asyncio.Handle]
    _stopping: bool
    _timer_cancelled_count: int

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self.failures: list[str] = []
        """What asyncio would have logged: exceptions that nobody awaited, failed callbacks."""
        self.after_turn: Callable[[], None] | None = None
        """Called after each turn: whatever it raises ends the run."""
        self.set_task_factory(_make_task)  # type: ignore[arg-type]
        self.set_exception_handler(_note_failure)  # type: ignore[arg-type]

    def time(self) -> float:
        return self._now

    def create_future(self) -> asyncio.Future[Any]:
        future: _Future[Any] = _Future(loop=self)
        future.owner = _OWNER.get()
        return future

    def drop_timers(self, process: Process) -> None:
        """Forget every timer that was set by ``process``."""
        kept = [handle for handle in self._scheduled if not _is_owned(handle, process)]
        for handle in self._scheduled:
            if _is_owned(handle, process):
                handle.cancel()
                handle._scheduled = False  # type: ignore[attr-defined]
        self._scheduled[:] = kept
        heapq.heapify(self._scheduled)
        self._timer_cancelled_count = sum(1 for handle in kept if handle.cancelled())

    def _run_once(self) -> None:
        """One turn: what is ready now, and nothing that becomes ready by it."""
        ready, timers = self._ready, self._scheduled
        while timers and timers[0].cancelled():
            self._forget(heapq.heappop(timers))
        if not ready and not self._stopping:
            if not timers:
                raise Deadlock("nothing is ready and no timer is set")
            self._now = max(self._now, timers[0].when())
        while timers and timers[0].when() <= self._now:
            timer = heapq.heappop(timers)
            self._forget(timer)
            ready.append(timer)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle.cancelled():
                continue
            owner = _owner_of(handle)
            if owner is not None and owner.frozen is not None:
                owner.frozen.append(handle)
            else:
                handle._run()
        if self.after_turn is not None:
            self.after_turn()

    def thaw(self, process: Process) -> None:
        """Everything that ``process`` slept through happens now, in its order."""
        if process.frozen is not None:
            self._ready.extend(process.frozen)
            process.frozen = None

    def _forget(self, timer: asyncio.TimerHandle) -> None:
        timer._scheduled = False  # type: ignore[attr-defined]
        if timer.cancelled():
            self._timer_cancelled_count -= 1

    def _write_to_self(self) -> None:
        pass

    def run_in_executor(self, *_: Any, **__: Any) -> NoReturn:  # type: ignore[override]
        raise AssertionError("threads are not part of a deterministic run")


def _is_owned(handle: asyncio.TimerHandle, process: Process) -> bool:
    context: Context = handle._context  # type: ignore[attr-defined]
    return context.get(_OWNER) is process


class Process:
    """A simulated operating system process: what runs in it can be killed as a whole.

    The order of a kill: the ports of the process must be dead before :meth:`kill` is called (its
    transport mute, its disk failing), so that ``except`` and ``finally`` blocks, which a real
    crash would not run, can reach nothing that survives. Then its timers are dropped and its
    tasks cancelled until none is left.
    """

    def __init__(self, name: str, loop: SimLoop):
        self.name = name
        self.alive = True
        self.frozen: list[asyncio.Handle] | None = None
        """While the process is stopped: what became ready meanwhile."""
        self._loop = loop
        self._tasks: list[weakref.ref[asyncio.Task[Any]]] = []
        self._tasks_kept = 64
        self._callers: dict[asyncio.Future[Any], None] = {}
        self.context = copy_context()
        self.context.run(_OWNER.set, self)

    def __repr__(self) -> str:
        return f"<process {self.name} {'alive' if self.alive else 'dead'}>"

    @staticmethod
    def current() -> Process | None:
        """The process in which the code runs that asks."""
        return _OWNER.get()

    def freeze(self) -> None:
        """Stop it where it is, as SIGSTOP does, or a machine that is starved; see `thaw`."""
        if self.alive and self.frozen is None:
            self.frozen = []

    def adopt(self, task: asyncio.Task[Any]) -> None:
        """Weakly, as the loop itself does: a task that nobody holds is a bug to be noticed."""
        self._tasks.append(weakref.ref(task))
        if len(self._tasks) > self._tasks_kept:
            self._tasks = [weakref.ref(each) for each in self._running()]
            self._tasks_kept = max(64, 2 * len(self._tasks))

    def _running(self) -> list[asyncio.Task[Any]]:
        tasks = [reference() for reference in self._tasks]
        return [task for task in tasks if task is not None and not task.done()]

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """Run ``function`` here: what it starts belongs to this process."""
        assert self.alive
        return self.context.copy().run(function, *args)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
        """Run ``coroutine`` here for a caller outside, who gets ProcessDied when this one dies."""
        answer: asyncio.Future[T] = self._loop.create_future()
        if not self.alive:
            coroutine.close()
            answer.set_exception(ProcessDied(self.name))
            return answer
        task = self._loop.create_task(coroutine, context=self.context.copy())
        self._callers[answer] = None
        answer.add_done_callback(lambda _: self._callers.pop(answer, None))
        answer.add_done_callback(lambda _: task.cancel() if answer.cancelled() else None)
        task.add_done_callback(lambda done: _hand_over(done, answer))
        return answer

    async def kill(self) -> None:
        """End everything that runs here, at this moment of virtual time."""
        self.alive = False
        self._loop.thaw(self)  # so that it can be cancelled
        self._loop.drop_timers(self)
        for answer in list(self._callers):
            if not answer.done():
                answer.set_exception(ProcessDied(self.name))
                answer.exception()  # whoever asked may be gone
        for _ in range(_REAP_ROUNDS_MAX):
            tasks = self._running()
            if not tasks:
                break
            for task in tasks:
                task.cancel()
            await asyncio.sleep(0)
            self._loop.drop_timers(self)
        else:
            raise AssertionError(f"{self.name}: tasks that cannot be cancelled: {tasks}")
        self._tasks.clear()


class _Task(asyncio.Task[T]):
    owner: Process | None


class _Future(asyncio.Future[T]):
    owner: Process | None


def _hand_over(done: asyncio.Task[T], answer: asyncio.Future[T]) -> None:
    if done.cancelled():
        if not answer.done():
            answer.set_exception(AssertionError("a request was cancelled by its own node"))
        return
    error = done.exception()
    if answer.done():
        return
    if error is None:
        answer.set_result(done.result())
    else:
        answer.set_exception(error)


def _make_task(
    loop: SimLoop, coroutine: Coroutine[Any, Any, T], *, context: Context | None = None, **_: Any
) -> asyncio.Task[T]:
    task = _Task(coroutine, loop=loop, context=context)
    task.owner = _OWNER.get() if context is None else context.get(_OWNER)
    if task.owner is not None:
        task.owner.adopt(task)
    return task


def _note_failure(loop: SimLoop, context: dict[str, Any]) -> None:
    """A failure in a process that was killed is part of the kill; any other is a bug."""
    source = context.get("task") or context.get("future") or context.get("handle")
    owner = _owner_of(source)
    if owner is not None and not owner.alive:
        return
    error = context.get("exception")
    trace = "" if error is None else "".join(traceback.format_exception(error))
    where = "" if owner is None else f"{owner.name}: "
    loop.failures.append(f"{where}{context['message']} {source!r}\n{trace}")


def _owner_of(source: Any) -> Process | None:
    if isinstance(source, asyncio.Handle):
        context: Context = source._context  # type: ignore[attr-defined]
        return context.get(_OWNER)
    return getattr(source, "owner", None)
