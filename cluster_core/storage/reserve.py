"""How much room an engine holds in reserve for the database's own bookkeeping. Pure.

The reserve is kept occupied, so that nobody else takes it, and given up a slice at a time, each
only when it is needed: so a disk that was filled to the last byte has some left for what comes
next. A node is full before any of it is given up, and until all of it is held again.
"""

from __future__ import annotations

from typing import Final

__all__ = ["Reserve"]

SLICES: Final = 4


class Reserve:
    """``size`` bytes are wanted, of which ``held`` are occupied: ``0 <= held <= size``."""

    __slots__ = ("has_room", "held", "size")

    def __init__(self, size: int, held: int) -> None:
        assert 0 <= held <= size
        self.size = size
        self.held = held
        self.has_room = True
        """Whether clients may write, as of the last look."""

    @property
    def slice_bytes(self) -> int:
        return -(-self.size // SLICES)

    def look(self, free: int) -> int:
        """How much to hold from now on, with ``free`` bytes left beside what is held."""
        size, held = self.size, self.held
        if self.has_room:
            self.has_room = 2 * free >= size
        else:
            self.has_room = held == size and free >= size
        if free < self.slice_bytes:
            return max(0, held - self.slice_bytes)
        missing = size - held
        return size if missing and free >= size + missing else held

    def before_opening(self, free: int) -> int:
        """How much to hold so that half of the size is free, as far as it goes."""
        missing = max(0, self.size - 2 * free + 1) // 2
        return max(0, self.held - missing)
