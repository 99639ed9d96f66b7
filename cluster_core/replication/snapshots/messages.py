"""What sender and receiver of a snapshot tell each other, each a request of its own.

::

    sender                                        receiver
      │ Begin    which snapshot, its configuration   │ admits it, or has it come again
      │ Chunk 0  pairs, and their checksum           │ on its disk before it is answered
      │ Chunk 1  …                                   │
      │ Finish   how many chunks, digest over all    │ verifies, replaces; asked until it is done

Every answer says how far the receiver is, so a request may be repeated at any time: after a lost
answer, and after the receiver has started again.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Final

import msgspec

from cluster_core.types import NodeId
from cluster_core.wire.messages import SnapshotOffer

__all__ = [
    "SNAPSHOT",
    "Begin",
    "Chunk",
    "Finish",
    "Header",
    "Position",
    "Request",
    "decode_pairs",
    "decode_position",
    "decode_request",
    "encode",
    "encode_pairs",
    "is_intact",
]

SNAPSHOT: Final = "snapshot"
"""The method of these calls."""

Pairs = list[bytes]
"""Keys and values in turn."""


class Header(msgspec.Struct, array_like=True, frozen=True):
    """``transfer`` names one frozen view of one leader; another attempt has another one. ``clock``
    is a reading of the sender's clock, at or above every timestamp in the snapshot."""

    cluster_id: str
    sender: NodeId
    clock: int
    transfer: bytes
    offer: SnapshotOffer


class Begin(msgspec.Struct, array_like=True, frozen=True, tag=1):
    header: Header
    configuration: bytes


class Chunk(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """``pairs`` as :func:`encode_pairs` gives them; ``checksum`` is their sha2-256."""

    header: Header
    number: int
    checksum: bytes
    pairs: bytes


class Finish(msgspec.Struct, array_like=True, frozen=True, tag=3):
    """``digest``: the sha2-256 of the checksums of all ``chunks``, in order."""

    header: Header
    chunks: int
    digest: bytes


Request = Begin | Chunk | Finish


class Position(msgspec.Struct, array_like=True, frozen=True):
    """The chunk that is wanted next, all before it being durable; or that nothing is wanted any
    more, since the replica has all that the snapshot holds, durably."""

    next: int
    installed: bool = False


encode = msgspec.msgpack.Encoder().encode
decode_request = msgspec.msgpack.Decoder(Request).decode
decode_position = msgspec.msgpack.Decoder(Position).decode
encode_pairs = encode
decode_pairs = msgspec.msgpack.Decoder(Pairs).decode


def is_intact(pairs: bytes, checksum: bytes) -> bool:
    """Whether encoded pairs are those that the sender made a checksum of."""
    return sha256(pairs).digest() == checksum
