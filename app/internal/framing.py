"""Length-prefixed frames in a stream of bytes: 4 bytes of length, big-endian, then the frame.

Pure: chunks in, frames out. An empty frame is a keep-alive; it says that the sender lives and is
not handed on.
"""

from __future__ import annotations

from typing import Final

from cluster_core.errors import TooLarge

__all__ = ["FRAME_BYTES_MAX", "KEEP_ALIVE", "FrameReader", "frame_header"]

FRAME_BYTES_MAX: Final = 64 << 20
"""Four times the largest body that a client may send: room for what surrounds it."""

KEEP_ALIVE: Final = b"\0\0\0\0"

_HEADER: Final = 4


def frame_header(frame: bytes) -> bytes:
    """The four bytes that go before ``frame``."""
    return len(frame).to_bytes(_HEADER, "big")


class FrameReader:
    """Cuts chunks into frames; a frame may begin in one chunk and end many chunks later."""

    __slots__ = ("_held", "_missing")

    def __init__(self) -> None:
        self._held: list[bytes] = []
        self._missing = 0
        # Chunks are held until there are `_missing` more bytes, then joined once: a frame of 5 MB
        # in chunks of 64 KiB costs one copy and not eighty.

    def feed(self, chunk: bytes) -> list[bytes]:
        """The frames that ``chunk`` completes. Raises TooLarge, and is of no use after that."""
        if self._held:
            self._held.append(chunk)
            if len(chunk) < self._missing:
                self._missing -= len(chunk)
                return []
            chunk = b"".join(self._held)
            self._held.clear()
        return self._cut(chunk)

    def _cut(self, chunk: bytes) -> list[bytes]:
        frames: list[bytes] = []
        begin, end = 0, len(chunk)
        missing = 0
        while begin < end:
            body = begin + _HEADER
            if body > end:
                missing = body - end
                break
            length = int.from_bytes(chunk[begin:body], "big")
            if length > FRAME_BYTES_MAX:
                raise TooLarge(
                    f"a frame of {length} bytes; the most is {FRAME_BYTES_MAX}",
                    limit=FRAME_BYTES_MAX,
                )
            if body + length > end:
                missing = body + length - end
                break
            if length:
                frames.append(chunk[body : body + length])
            begin = body + length
        if missing:
            self._held.append(chunk[begin:])
            self._missing = missing
        return frames
