"""CAR archives, version 1: blocks of IPLD one after another, each behind its CID.

    header    varint(length)  DAG-CBOR {"roots": [links], "version": 1}
    section   varint(length of CID and block)  CID  block          …until the end of the file

See https://ipld.io/specs/transport/car/carv1/. The roots stand first but are known last; since a
CID of ours has a fixed length, the header's place is kept free and filled in the end.
"""

from __future__ import annotations

from hashlib import sha256
from typing import BinaryIO, Final

from cluster_core.graph.blocks import digest_of, encode_content, link_of
from cluster_core.graph.cid import cid_bytes, cid_text
from cluster_core.types import Digest

__all__ = ["BadBlock", "CarWriter"]


class BadBlock(Exception):
    """Bytes that are not what their CID says."""


class CarWriter:
    """Writes blocks to a stream that can seek, and in the end the one root."""

    def __init__(self, stream: BinaryIO) -> None:
        self.blocks = 0
        self._stream = stream
        self._start = stream.tell()
        stream.write(_header(_NO_ROOT))

    def add(self, digest: Digest, block: bytes) -> None:
        """A block that somebody else made. Raises BadBlock unless it is the one that ``digest``
        names."""
        if sha256(block).digest() != digest:
            raise BadBlock(f"the block of {cid_text(digest)} has another hash")
        cid = cid_bytes(digest)
        self._stream.write(_varint(len(cid) + len(block)) + cid + block)
        self.blocks += 1

    def add_content(self, content: object) -> Digest:
        """A block of our own; its digest."""
        block = encode_content(content)
        digest = digest_of(block)
        self.add(digest, block)
        return digest

    def finish(self, root: Digest) -> None:
        """Name the root. Nothing can be added any more."""
        end = self._stream.tell()
        self._stream.seek(self._start)
        self._stream.write(_header(root))
        self._stream.seek(end)


_NO_ROOT: Final = bytes(32)


def _header(root: Digest) -> bytes:
    content = encode_content({"roots": [link_of(root)], "version": 1})
    return _varint(len(content)) + content


def _varint(number: int) -> bytes:
    """Unsigned LEB128."""
    groups = bytearray()
    while number >= 0x80:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    groups.append(number)
    return bytes(groups)
