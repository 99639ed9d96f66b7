"""A linearizability checker for recorded histories.

A history is linearizable when every operation can be given one moment between its call and its
return at which it takes effect, such that a sequential object would have given the same answers
(Herlihy & Wing 1990). The search is Wing & Gong's (1993) with Lowe's memory of what was already
tried (2017), as in porcupine: walk the history, linearise any operation whose call comes before
the first return that is still open, and go back when a return is met whose operation is not yet
linearised. Keys are independent, so each is searched alone (Herlihy & Wing, theorem 1: locality).

An operation of unknown outcome has no return: it may take effect at any moment after its call, or
never. A search ends well when every operation *with* a return is linearised.
"""

from __future__ import annotations

import enum
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Literal, Protocol, TypeVar

__all__ = ["REJECTED", "UNKNOWN", "Model", "Operation", "Rejected", "Result", "check"]


class _Mark(enum.Enum):
    REJECTED = "rejected"
    UNKNOWN = "unknown"


REJECTED: Final = _Mark.REJECTED
"""What a model answers when the operation cannot have given this output in this state."""

UNKNOWN: Final = _Mark.UNKNOWN
"""The output of an operation whose outcome nobody knows."""

Rejected = Literal[_Mark.REJECTED]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation of a history.

    ``call`` and ``returned`` are positions in the history: unique, growing, and exact where two
    events share a moment of virtual time. ``returned`` is None for an unknown outcome.
    """

    client: str
    key: Hashable
    action: Any
    output: Any
    call: int
    returned: int | None
    note: str = ""
    """Shown in reports: when, through which node."""

    def __post_init__(self) -> None:
        assert (self.returned is None) == (self.output is UNKNOWN)
        assert self.returned is None or self.call < self.returned


State = TypeVar("State", bound=Hashable)


class Model(Protocol[State]):
    """A sequential object: what it answers, and what it is afterwards."""

    def initial(self) -> State: ...

    def step(self, state: State, action: Any, output: Any) -> State | Rejected:
        """The state after ``action`` answered ``output``; REJECTED when it cannot have.

        With ``output`` UNKNOWN the action is known to take effect here (that it never does is the
        checker's business): the state after its success, or REJECTED when it cannot succeed.
        """
        ...


@dataclass(frozen=True, slots=True)
class Result:
    """``undecided`` means that the search met its bound: neither proven nor disproven."""

    outcome: Literal["linearizable", "violation", "undecided"]
    steps: int
    key: Hashable = None
    report: str = ""

    @property
    def ok(self) -> bool:
        return self.outcome == "linearizable"


def check(history: Iterable[Operation], model: Model[Any], *, steps_max: int = 2_000_000) -> Result:
    """Whether ``history`` is linearizable for an object like ``model`` at each key.

    ``steps_max`` bounds the search over all keys together. A violation at any key wins over a
    search that had to be given up at another.
    """
    undecided: Result | None = None
    steps = 0
    for key, operations in _by_key(history).items():
        search = _Search(operations, model, steps_max - steps)
        verdict = search.run()
        steps += search.steps
        if verdict == "violation":
            return Result(verdict, steps, key, search.report(key, verdict))
        if verdict == "undecided" and undecided is None:
            undecided = Result(verdict, steps, key, search.report(key, verdict))
    return undecided or Result("linearizable", steps)


def _by_key(history: Iterable[Operation]) -> dict[Hashable, list[Operation]]:
    keys: dict[Hashable, list[Operation]] = {}
    for operation in history:
        keys.setdefault(operation.key, []).append(operation)
    return keys


class _Search(Generic[State]):
    """The search at one key.

    Events are numbered in the order of the history, 1 to n, and form a doubly linked list from
    which linearised operations are lifted (Knuth's dancing links); 0 is its head, -1 its end.
    """

    def __init__(self, operations: Sequence[Operation], model: Model[State], steps_max: int):
        self.operations = sorted(operations, key=lambda operation: operation.call)
        self.model = model
        self.steps_max = steps_max
        self.steps = 0
        self.best: tuple[int, ...] = ()
        self._link()

    def _link(self) -> None:
        events: list[tuple[int, int]] = []  # (position in the history, operation's index)
        for index, operation in enumerate(self.operations):
            events.append((operation.call, index))
            if operation.returned is not None:
                events.append((operation.returned, index))
        events.sort()
        count = len(events)
        self._operation = [-1] + [index for _, index in events]
        self._return_of: dict[int, int] = {}  # event of a call -> event of its return
        call_of: dict[int, int] = {}
        for event, (_, index) in enumerate(events, start=1):
            if index in call_of:
                self._return_of[call_of[index]] = event
            else:
                call_of[index] = event
        self._is_call = [False] * (count + 1)
        for event in call_of.values():
            self._is_call[event] = True
        self._next = [event + 1 for event in range(count + 1)]
        self._next[count] = -1
        self._previous = [event - 1 for event in range(count + 1)]
        self._open = sum(1 for operation in self.operations if operation.returned is not None)

    def run(self) -> Literal["linearizable", "violation", "undecided"]:
        state = self.model.initial()
        done = 0  # bitset of linearised operations
        tried: set[tuple[int, State]] = {(done, state)}
        trail: list[tuple[int, State]] = []  # (event of the call, state before it)
        event = self._next[0]
        while self._open:
            if event != -1 and self._is_call[event]:
                index = self._operation[event]
                operation = self.operations[index]
                self.steps += 1
                if self.steps > self.steps_max:
                    return "undecided"
                after = self.model.step(state, operation.action, operation.output)
                # One of unknown outcome that would change nothing may as well not have happened: to
                # try both would double the search for each.
                idle = operation.returned is None and after == state
                if after is not REJECTED and not idle:
                    mark = (done | 1 << index, after)
                    if mark not in tried:
                        tried.add(mark)
                        trail.append((event, state))
                        done, state = mark
                        self._lift(event)
                        self._remember(trail)
                        event = self._next[0]
                        continue
                event = self._next[event]
                continue
            # A return whose operation is not linearised, or the end with returns still open:
            # what was chosen last cannot have been next.
            if not trail:
                return "violation"
            event, state = trail.pop()
            done &= ~(1 << self._operation[event])
            self._put_back(event)
            event = self._next[event]
        return "linearizable"

    def _lift(self, call: int) -> None:
        self._unlink(call)
        end = self._return_of.get(call)
        if end is not None:
            self._unlink(end)
            self._open -= 1

    def _put_back(self, call: int) -> None:
        end = self._return_of.get(call)
        if end is not None:
            self._relink(end)
            self._open += 1
        self._relink(call)

    def _unlink(self, event: int) -> None:
        before, after = self._previous[event], self._next[event]
        self._next[before] = after
        if after != -1:
            self._previous[after] = before

    def _relink(self, event: int) -> None:
        before, after = self._previous[event], self._next[event]
        self._next[before] = event
        if after != -1:
            self._previous[after] = event

    def _remember(self, trail: list[tuple[int, State]]) -> None:
        if len(trail) > len(self.best):
            self.best = tuple(self._operation[event] for event, _ in trail)

    def report(self, key: Hashable, verdict: str) -> str:
        """The key's history as a reader can follow it: longest explanation first, then the rest."""
        lines = [f"{verdict} at key {_short(key)}: {len(self.operations)} operations"]
        lines.append(f"longest linearisation found ({len(self.best)} operations):")
        state = self.model.initial()
        for index in self.best:
            operation = self.operations[index]
            stepped = self.model.step(state, operation.action, operation.output)
            assert stepped is not REJECTED
            state = stepped
            lines.append(f"  {_line(operation)}   => {_short(state)}")
        lines.append("not explained by it:")
        placed = set(self.best)
        lines += [
            f"  {_line(operation)}"
            for index, operation in enumerate(self.operations)
            if index not in placed
        ]
        return "\n".join(lines)


def _line(operation: Operation) -> str:
    end = "?" if operation.returned is None else str(operation.returned)
    output = "unknown" if operation.output is UNKNOWN else _short(operation.output)
    note = f"  [{operation.note}]" if operation.note else ""
    span = f"{operation.call:>6} .. {end:<6}"
    return f"{span} {operation.client:<8} {_short(operation.action)} -> {output}{note}"


def _short(value: Any) -> str:
    """``repr`` with long byte strings cut to what tells them apart."""
    if isinstance(value, bytes) and len(value) > 6:
        return value[:4].hex()
    if isinstance(value, tuple):
        return "(" + ", ".join(_short(item) for item in value) + ")"
    return str(value)
