"""Changes of a group's members (§6; D §4): their algebra, and the configurations of a log.

**When a configuration counts.** As the paper says: as soon as it is in a replica's log, committed
or not; and no longer, should its entry be replaced. (etcd lets it count when it is applied. That
is safe there because etcd makes the commit index durable together with the entries that follow it.
Ours is not durable: a replica that starts again may have two changes in its log and know neither
as committed. By the configuration of before both it could be elected with a majority that meets
none of the new one.) So the log tells everything, and a host can neither forget nor repeat it.

**One at a time** (§6, D §4.1). A change is let in when the one before it is applied and done, and
something of the leader's own term is committed (without this, two changes of different leaders,
each a step from the same configuration, could have majorities that do not meet: Ongaro, raft-dev,
July 2015).

**One step or two.** Any majority of a set of voters meets any of the same set with one more or one
less, so such a change takes effect at once (D §4.1). Any other goes through a joint configuration
(§6, D §4.3), which the leader leaves by itself as soon as it is committed. Learners count nowhere,
and come and go with either.

**What an entry holds** is the whole configuration, never a difference: to apply it is to store it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from cluster_core.raft.quorum import Configuration
from cluster_core.types import ReplicaId
from cluster_core.wire.messages import CONFIGURATION, Entry

__all__ = [
    "Change",
    "ConfigurationLog",
    "changed",
    "decode_configuration",
    "encode_configuration",
    "left",
    "unfit",
]

_Members = tuple[ReplicaId, ...]
_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(tuple[_Members, _Members, _Members]).decode


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What is to become of whom; all of it happens in one change, and no replica is named twice.

    A replica is added as a learner, promoted when it has caught up, and its id never used again.
    """

    add_learners: tuple[ReplicaId, ...] = ()
    promote: tuple[ReplicaId, ...] = ()
    """Learners that become voters."""
    demote: tuple[ReplicaId, ...] = ()
    """Voters that become learners."""
    remove: tuple[ReplicaId, ...] = ()
    """Voters or learners that go."""


def encode_configuration(configuration: Configuration) -> bytes:
    """The data of an entry of kind :data:`~cluster_core.wire.messages.CONFIGURATION`."""
    return _encode((configuration.voters, configuration.outgoing, configuration.learners))


def decode_configuration(data: bytes) -> Configuration:
    """The configuration that such an entry holds."""
    return Configuration(*_decode(data))


def unfit(old: Configuration, change: Change) -> bool:
    """Whether ``change`` says nothing, or something that ``old`` makes impossible."""
    named = (*change.add_learners, *change.promote, *change.demote, *change.remove)
    members = set(old.members)
    return (
        not named
        or len(set(named)) != len(named)
        or 0 in named
        or not members.isdisjoint(change.add_learners)
        or not set(old.learners).issuperset(change.promote)
        or not set(old.voters).issuperset(change.demote)
        or not members.issuperset(change.remove)
        or not _voters_after(old, change)
    )


def changed(old: Configuration, change: Change) -> Configuration:
    """The configuration that follows ``old``: joint where one step could lose the overlap."""
    assert not old.is_joint
    voters = _voters_after(old, change)
    learners = {*old.learners, *change.add_learners, *change.demote}
    learners -= {*change.promote, *change.remove}
    one_step = len(voters ^ set(old.voters)) <= 1
    return Configuration(
        tuple(sorted(voters)), () if one_step else old.voters, tuple(sorted(learners))
    )


def _voters_after(old: Configuration, change: Change) -> set[ReplicaId]:
    return {*old.voters, *change.promote} - {*change.demote, *change.remove}


def left(joint: Configuration) -> Configuration:
    """The configuration that a joint one leads to (§6 ``C-new``)."""
    assert joint.is_joint
    return Configuration(joint.voters, (), joint.learners)


class _Later(msgspec.Struct, frozen=True):
    """A configuration in the log that is not applied yet, with the name of its entry."""

    index: int
    term: int
    configuration: Configuration


class ConfigurationLog:
    """The configurations of one log, oldest first: the applied one and those that follow it.

    ``applied`` is that of the state machine, ``latest`` the one that counts. A leader lets in one
    change at a time, so all but the last of a log are committed, whatever its owner knows.
    """

    __slots__ = ("_later", "applied")

    def __init__(self, applied: Configuration) -> None:
        self.applied = applied
        self._later: list[_Later] = []

    @property
    def latest(self) -> Configuration:
        return self._later[-1].configuration if self._later else self.applied

    @property
    def latest_index(self) -> int:
        """Index of the entry of :attr:`latest`; 0 once that is applied."""
        return self._later[-1].index if self._later else 0

    @property
    def change_pending(self) -> bool:
        """Whether a change is not yet done: not applied, or joint."""
        return bool(self._later) or self.applied.is_joint

    def undecided(self, committed: int) -> list[Configuration]:
        """The last one that is known to be ``committed``, and all that follow it."""
        found = [self.applied]
        for later in self._later:
            if later.index <= committed:
                found.clear()
            found.append(later.configuration)
        return found

    def append(self, entries: Iterable[Entry]) -> None:
        """Note the configurations among ``entries``, which are in the log; known ones once."""
        newest = self.latest_index
        self._later += [
            _Later(entry.index, entry.term, decode_configuration(entry.data))
            for entry in entries
            if entry.kind == CONFIGURATION and entry.index > newest
        ]

    def retain(self, contains: Callable[[int, int], bool]) -> None:
        """Forget those whose entries were replaced: not ``contains(index, term)``."""
        self._later = [later for later in self._later if contains(later.index, later.term)]

    def applied_to(self, index: int) -> None:
        while self._later and self._later[0].index <= index:
            self.applied = self._later.pop(0).configuration

    def restore(self, configuration: Configuration) -> None:
        """Begin anew with what a snapshot says."""
        self.applied = configuration
        self._later = []
