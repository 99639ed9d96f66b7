"""CAR archives, version 1: blocks of IPLD one after another, each behind its CID.

    header    varint(length)  DAG-CBOR {"roots": [links], "version": 1}
    section   varint(length of CID and block)  CID  block          …until the end of the file

See https://ipld.io/specs/transport/car/carv1/.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from typing import BinaryIO, Final

from cluster_core.graph.blocks import digest_of, encode_content, link_of
from cluster_core.graph.cid import PREFIX, cid_bytes, cid_text
from cluster_core.types import Digest

__all__ = ["BadBlock", "CarWriter", "archive", "archived_blocks"]


class BadBlock(Exception):
    """Bytes that are not what their CID says, or no archive of such."""


def archive(blocks: Sequence[tuple[Digest, bytes]]) -> bytes:
    """An archive of blocks that need not link each other: each is a root."""
    header = _header([digest for digest, _ in blocks])
    return b"".join([header, *(_section(digest, block) for digest, block in blocks)])


def archived_blocks(content: bytes) -> Iterator[tuple[Digest, bytes]]:
    """The blocks of an archive as they lie there, not verified. Raises BadBlock."""
    size, at = _read_varint(content, 0)
    at += size
    while at < len(content):
        size, at = _read_varint(content, at)
        end, block_at = at + size, at + _CID_BYTES
        if not (content.startswith(PREFIX, at) and block_at <= end <= len(content)):
            raise BadBlock("the node answers with no archive of its blocks")
        yield content[at + len(PREFIX) : block_at], content[block_at:end]
        at = end


class CarWriter:
    """Writes blocks to a stream that can seek, and in the end the one root.

    The root stands first but is known last; since a CID of ours has a fixed length, the header's
    place is kept free and filled in the end.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.blocks = 0
        self._stream = stream
        self._start = stream.tell()
        stream.write(_header([_NO_ROOT]))

    def add(self, digest: Digest, block: bytes) -> None:
        """A block that somebody else made. Raises BadBlock unless it is the one that ``digest``
        names."""
        if sha256(block).digest() != digest:
            raise BadBlock(f"the block of {cid_text(digest)} has another hash")
        self._stream.write(_section(digest, block))
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
        self._stream.write(_header([root]))
        self._stream.seek(end)


_NO_ROOT: Final = bytes(32)
_CID_BYTES: Final = len(PREFIX) + len(_NO_ROOT)
_VARINT_BITS_MAX: Final = 63


def _header(roots: Iterable[Digest]) -> bytes:
    content = encode_content({"roots": [link_of(root) for root in roots], "version": 1})
    return _varint(len(content)) + content


def _section(digest: Digest, block: bytes) -> bytes:
    return _varint(_CID_BYTES + len(block)) + cid_bytes(digest) + block


def _varint(number: int) -> bytes:
    """Unsigned LEB128."""
    groups = bytearray()
    while number >= 0x80:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    groups.append(number)
    return bytes(groups)


def _read_varint(content: bytes, at: int) -> tuple[int, int]:
    """The number at ``at``, and the place after it."""
    number = 0
    for shift, byte in zip(range(0, _VARINT_BITS_MAX, 7), content[at : at + 9], strict=False):
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at + shift // 7 + 1
    raise BadBlock("the node answers with an archive that is cut")
