"""How far a long command is: a bar on a terminal, else a line now and then. On stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from app.bulk.sources import Source

__all__ = ["Meter", "duration_text", "metered"]

_LINE_EVERY_S: Final = 10.0


class Meter:
    """Progress of one thing after another. Where ``size`` is unknown there is no end in sight.

    The remaining time is that of the current thing, at its average rate.
    """

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._task: Task | None = None
        self._name = ""
        self._size: float | None = None
        self._began = self._said = time.monotonic()
        self._warned = -_LINE_EVERY_S
        self._base = 0.0
        self.rows = 0
        self._rows_base = 0

    def begin(self, name: str, size: float | None) -> None:
        self._finish_bar()
        self._name, self._size = name, size
        self._began = self._said = time.monotonic()
        self._base, self.rows, self._rows_base = 0.0, 0, 0
        if self._progress is not None:
            number = self._progress.add_task(name, total=size, meter=self, done=0.0)
            self._task = next(one for one in self._progress.tasks if one.id == number)

    def advance(self, position: float, rows: int, *, free: bool = False) -> None:
        """``rows`` more are done; ``free``: without any work, so they say nothing of the rate."""
        self.rows += rows
        if free:
            self._base, self._rows_base = max(position, self._base), self.rows
            self._began = time.monotonic()
        if self._progress is not None and self._task is not None:
            done = max(position, self._task.completed)
            self._progress.update(self._task.id, completed=done)
        elif time.monotonic() - self._said >= _LINE_EVERY_S:
            self._said = time.monotonic()
            print(f"{self._name}: {self.text(position)}", file=sys.stderr, flush=True)

    def waiting(self, why: str) -> None:
        """The cluster takes nothing; said now and then."""
        now = time.monotonic()
        if now - self._warned < _LINE_EVERY_S:
            return
        self._warned = now
        line = f"waiting for the cluster: {why}"
        if self._progress is not None:
            self._progress.console.print(line, markup=False)
        else:
            print(line, file=sys.stderr, flush=True)

    def _finish_bar(self) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task.id, completed=1.0, total=1.0)

    def text(self, position: float) -> str:
        """Rows, their rate, and the time that is left."""
        seconds = max(time.monotonic() - self._began, 1e-3)
        parts = [f"{self.rows:,} rows"]
        rate = (self.rows - self._rows_base) / seconds
        if rate:
            parts.append(f"{rate:,.0f} rows/s")
        done = position - self._base
        if self._size is not None and done > 0 and position < self._size:
            parts.append(f"{duration_text((self._size - position) * seconds / done)} left")
        return ", ".join(parts)

    # What a loader reports

    def began(self, source: Source, size: int) -> None:
        self.begin(source.path.name, float(size))

    def advanced(self, source: Source, *, position: int, rows: int, skipped: bool) -> None:
        self.advance(float(position), rows, free=skipped)


class _Counts(ProgressColumn):
    """What :meth:`Meter.text` says, as a column."""

    def render(self, task: Task) -> Text:
        meter: Meter = task.fields["meter"]
        if task.finished:
            return Text("done", "green")
        return Text(meter.text(task.completed))


@contextmanager
def metered(*, quiet: bool = False) -> Iterator[Meter]:
    """A meter, with a bar while the block runs if stderr is a terminal."""
    console = Console(stderr=True, highlight=False)
    if quiet or not console.is_terminal:
        yield Meter(None)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), _Counts())
    with Progress(*columns, console=console, transient=True) as progress:
        yield Meter(progress)


def duration_text(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    if hours:
        return f"{hours}:{minutes:02}:{whole % 60:02}"
    return f"{minutes}:{whole % 60:02}"
