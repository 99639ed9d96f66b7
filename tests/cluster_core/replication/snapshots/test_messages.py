from __future__ import annotations

from hashlib import sha256

import msgspec
import pytest

from cluster_core.replication.snapshots.messages import (
    Begin,
    Chunk,
    Finish,
    Header,
    Request,
    decode_pairs,
    decode_request,
    encode,
    encode_pairs,
    is_intact,
)
from cluster_core.wire.messages import SnapshotOffer

HEADER = Header("cluster", "node1", 7, b"transfer", SnapshotOffer(1, 1, 2, 3, 4, 3))


@pytest.mark.parametrize(
    "request_", [Begin(HEADER, b"c"), Chunk(HEADER, 0, b"sum", b"pairs"), Finish(HEADER, 1, b"d")]
)
def test_a_request_travels(request_: Request) -> None:
    assert decode_request(encode(request_)) == request_


def test_what_is_no_request_is_refused() -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_request(b"\x93\x09\x01\x02")


def test_pairs_travel_in_order_and_a_changed_bit_is_noticed() -> None:
    pairs = encode_pairs([b"key", b"value", b"other", b""])
    checksum = sha256(pairs).digest()
    assert decode_pairs(pairs) == [b"key", b"value", b"other", b""]
    assert is_intact(pairs, checksum)
    assert not is_intact(pairs[:-1] + bytes([pairs[-1] ^ 1]), checksum)
