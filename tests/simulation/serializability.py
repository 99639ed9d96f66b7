"""A serializability checker for recorded histories of transactions: it looks for cycles.

The direct serialization graph of Adya ("Weak Consistency", 1999, §3.2) has an edge wherever one
transaction must come before another: *ww*, it wrote the version that the other replaced; *wr*, it
wrote the version that the other read; *rw*, it read the version that the other replaced. A history
is serializable exactly when the graph has no cycle. Which version follows which is not guessed:
every write here replaces a version that its transaction read, so versions are a chain per key.

With *rt* edges (one had returned before the other was called) the order must also agree with what
clients could see outside of the database: strict serializability. ``in_real_time`` says for which
pairs that is promised.

A transaction of unknown outcome counts when somebody saw a version of it; then all of it must
have happened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from typing import Any, Final, Literal

__all__ = ["INITIAL", "Transaction", "Verdict", "check", "everything", "nothing"]

INITIAL: Final = "initial"
"""The writer of what was there before the first transaction."""

Key = Any
"""Anything that can be a key of a dictionary."""

Kind = Literal["ww", "wr", "rw", "rt"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Transaction:
    """``reads`` names, for each key, the transaction whose version was read (INITIAL: none);
    ``writes`` are keys, each of which was read as well. ``returned`` is None for an unknown
    outcome. ``failed``: it certainly did nothing."""

    name: str
    reads: Mapping[Key, str]
    writes: frozenset[Key] = frozenset()
    call: int
    returned: int | None
    failed: bool = False
    past: bool = False
    """It was read at a time of the past, so it may come before what had returned."""

    def __post_init__(self) -> None:
        assert self.name != INITIAL
        assert self.writes <= self.reads.keys(), "a write replaces a version that was read"

    def __str__(self) -> str:
        seen = " ".join(f"{key}={writer}" for key, writer in self.reads.items())
        return f"{self.name}(read {seen or '-'}; wrote {' '.join(map(str, self.writes)) or '-'})"


@dataclass(frozen=True, slots=True)
class Verdict:
    ok: bool
    report: str = ""


@dataclass(slots=True)
class _Graph:
    before: dict[str, dict[str, tuple[Kind, Key]]] = field(default_factory=dict)
    """For each transaction those that come before it, and why."""

    def add(self, first: str, then: str, kind: Kind, key: Key = None) -> None:
        if INITIAL not in (first, then) and first != then:
            self.before.setdefault(then, {}).setdefault(first, (kind, key))


def nothing(first: Transaction, then: Transaction) -> bool:
    """Plain serializability: clients may be told things in another order."""
    return False


def everything(first: Transaction, then: Transaction) -> bool:
    """Strict serializability."""
    return True


def check(
    transactions: Sequence[Transaction],
    in_real_time: Callable[[Transaction, Transaction], bool] = everything,
) -> Verdict:
    """Whether the history is serializable, in an order that agrees with ``in_real_time``."""
    by_name = {one.name: one for one in transactions}
    assert len(by_name) == len(transactions), "names are unique"
    seen = {writer for one in transactions for writer in one.reads.values() if not one.failed}
    unknown = seen - by_name.keys() - {INITIAL}
    if unknown:
        return Verdict(False, f"versions that nobody wrote: {sorted(unknown)}")
    aborted = sorted(name for name in seen - {INITIAL} if by_name[name].failed)
    if aborted:
        return Verdict(False, f"versions of transactions that failed were read: {aborted}")
    happened = [
        one
        for one in transactions
        if not one.failed and (one.returned is not None or one.name in seen)
    ]
    successors: dict[tuple[Key, str], str] = {}
    for one in happened:
        for key in one.writes:
            other = successors.setdefault((key, one.reads[key]), one.name)
            if other != one.name:
                return Verdict(False, f"lost update of {key}: {by_name[other]} and {one}")
    graph = _dependencies(happened, successors, by_name)
    if isinstance(graph, Verdict):
        return graph
    _add_real_time(graph, happened, in_real_time)
    try:
        TopologicalSorter({then: first.keys() for then, first in graph.before.items()}).prepare()
    except CycleError as error:
        return Verdict(False, _describe(error.args[1], graph, by_name))
    return Verdict(True)


def _dependencies(
    happened: Sequence[Transaction],
    successors: Mapping[tuple[Key, str], str],
    by_name: Mapping[str, Transaction],
) -> _Graph | Verdict:
    graph = _Graph()
    for one in happened:
        for key, writer in one.reads.items():
            if writer != INITIAL and key not in by_name[writer].writes:
                return Verdict(False, f"{one}: {writer} never wrote {key}")
            graph.add(writer, one.name, "ww" if key in one.writes else "wr", key)
            overwriter = successors.get((key, writer))
            if overwriter is not None:
                graph.add(one.name, overwriter, "rw", key)
    return graph


def _add_real_time(
    graph: _Graph,
    happened: Sequence[Transaction],
    in_real_time: Callable[[Transaction, Transaction], bool],
) -> None:
    for first in happened:
        for then in happened:
            if first.returned is None or first.returned >= then.call or then.past:
                continue
            if in_real_time(first, then):
                graph.add(first.name, then.name, "rt")


def _describe(cycle: Sequence[str], graph: _Graph, by_name: Mapping[str, Transaction]) -> str:
    lines = ["a cycle:"]
    for first, then in pairwise(cycle):
        kind, key = graph.before[then][first]
        lines.append(f"  {by_name[first]} --{kind} {'' if key is None else key}--> {then}")
    return "\n".join(lines)
