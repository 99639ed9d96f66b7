"""The command: what a log entry of a partition carries.

An operation is evaluated once, at the leader; the log carries the mutations, and every replica
applies them byte for byte. So replicas are identical in what they keep, and code versions may
differ between them (CockroachDB calls this proposer-evaluated KV).
"""

from __future__ import annotations

import msgspec

from cluster_core.types import Timestamp

__all__ = ["Command", "decode_command", "encode_command"]


class Command(msgspec.Struct, array_like=True, gc=False):
    """Mutations of one partition, applied together.

    ``puts`` is flat (key, value, key, value …): a list of pairs would cost an object each.
    ``resolved`` names the transactions whose intents this command removes, with the commit
    timestamp of each, or 0 where it was aborted: readers wait for exactly that.
    """

    timestamp: Timestamp
    puts: list[bytes]
    deletes: list[bytes] = []
    prepared: list[bytes] = []
    """Transactions whose intents this command adds; each intent is also among ``puts``."""
    resolved: list[tuple[bytes, Timestamp]] = []
    horizon: Timestamp = 0
    """The partition's new horizon (``history.py``), which is also among ``puts``; 0: it stays."""


encode_command = msgspec.msgpack.Encoder().encode
decode_command = msgspec.msgpack.Decoder(Command).decode
