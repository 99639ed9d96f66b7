"""Sequential objects that histories are checked against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from tests.simulation.linearizability import REJECTED, UNKNOWN, Rejected

__all__ = [
    "CompareAndSet",
    "Create",
    "Delete",
    "EntityModel",
    "EntityState",
    "Failed",
    "Read",
    "RegisterModel",
    "Update",
    "Write",
]


@dataclass(frozen=True, slots=True)
class Read:
    """Register: answers (value, version). Entity: (value, version), or None when there is none."""

    def __str__(self) -> str:
        return "read"


@dataclass(frozen=True, slots=True)
class Write:
    """Register: answers the version that the write made."""

    value: Any

    def __str__(self) -> str:
        return f"write {self.value}"


@dataclass(frozen=True, slots=True)
class CompareAndSet:
    """Register: answers the new version, or None when the register's version is another."""

    version: int
    value: Any

    def __str__(self) -> str:
        return f"write {self.value} if version {self.version}"


class RegisterModel:
    """One value, and the number of writes that it has seen as its version."""

    def initial(self) -> tuple[Any, int]:
        return (None, 0)

    def step(self, state: tuple[Any, int], action: Any, output: Any) -> tuple[Any, int] | Rejected:
        _, version = state
        match action:
            case Read():
                return state if output is UNKNOWN or output == state else REJECTED
            case Write(value):
                written = (value, version + 1)
                return written if output is UNKNOWN or output == version + 1 else REJECTED
            case CompareAndSet(expected, value):
                if output is None:
                    return REJECTED if expected == version else state
                fits = expected == version and (output is UNKNOWN or output == version + 1)
                return (value, version + 1) if fits else REJECTED
        raise AssertionError(f"not an action of a register: {action!r}")


@dataclass(frozen=True, slots=True)
class Create:
    """Entity: answers its first version."""

    value: Any

    def __str__(self) -> str:
        return f"create {self.value}"


@dataclass(frozen=True, slots=True)
class Update:
    """Entity: answers the new version, or Failed."""

    value: Any
    if_version: bytes | None = None

    def __str__(self) -> str:
        condition = f" if version {self.if_version[:4].hex()}" if self.if_version else ""
        return f"update {self.value}{condition}"


@dataclass(frozen=True, slots=True)
class Delete:
    """Entity: answers True, or Failed."""

    if_version: bytes | None = None

    def __str__(self) -> str:
        condition = f" if version {self.if_version[:4].hex()}" if self.if_version else ""
        return f"delete{condition}"


@dataclass(frozen=True, slots=True)
class Failed:
    """Nothing was changed: the entity is ``not_found``, or has another ``version``."""

    why: Literal["not_found", "version"]

    def __str__(self) -> str:
        return "not found" if self.why == "not_found" else "another version"


@dataclass(frozen=True, slots=True)
class EntityState:
    """``version`` is None while nobody was told it: the write that made it had no answer."""

    life: Literal["unborn", "alive", "dead"]
    value: Any = None
    version: bytes | None = None

    def __str__(self) -> str:
        version = self.version[:4].hex() if self.version else "?"
        return f"{self.value}@{version}" if self.life == "alive" else self.life


class EntityModel:
    """A vertex or an edge: created once, updated, deleted, never created again.

    Values are unique in a history, so a read tells which write it saw.
    """

    def initial(self) -> EntityState:
        return EntityState("unborn")

    def step(self, state: EntityState, action: Any, output: Any) -> EntityState | Rejected:
        match action:
            case Read():
                return self._read(state, output)
            case Create(value):
                if state.life != "unborn":
                    return REJECTED
                return EntityState("alive", value, None if output is UNKNOWN else output)
            case Update(value, expected):
                after = EntityState("alive", value, None if output is UNKNOWN else output)
                return self._change(state, expected, output, after)
            case Delete(expected):
                return self._change(state, expected, output, EntityState("dead"))
        raise AssertionError(f"not an action of an entity: {action!r}")

    @staticmethod
    def _read(state: EntityState, output: Any) -> EntityState | Rejected:
        if output is UNKNOWN:
            return state
        if output is None:
            return REJECTED if state.life == "alive" else state
        value, version = output
        seen = EntityState("alive", value, version)
        return seen if state in (seen, EntityState("alive", value, None)) else REJECTED

    @staticmethod
    def _change(
        state: EntityState, expected: bytes | None, output: Any, after: EntityState
    ) -> EntityState | Rejected:
        """A version that nobody was told may be the expected one as well as another."""
        if isinstance(output, Failed):
            if output.why == "not_found":
                return REJECTED if state.life == "alive" else state
            differs = state.life == "alive" and expected != state.version
            return state if differs else REJECTED
        fits = expected is None or state.version is None or expected == state.version
        return after if state.life == "alive" and fits else REJECTED
