"""Frames survive any way of cutting the stream that carries them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.internal.framing import FRAME_BYTES_MAX, KEEP_ALIVE, FrameReader, frame_header
from cluster_core.errors import TooLarge


def stream_of(frames: list[bytes]) -> bytes:
    return b"".join(frame_header(frame) + frame for frame in frames)


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=20), st.data())
def test_frames_come_out_as_they_went_in_however_the_stream_is_cut(
    frames: list[bytes], data: st.DataObject
) -> None:
    stream = stream_of(frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=30)))
    reader = FrameReader()
    out: list[bytes] = []
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        out += reader.feed(stream[begin:end])
    assert out == frames


def test_a_chunk_gives_all_its_frames_at_once() -> None:
    assert FrameReader().feed(stream_of([b"a", b"bc", b"def"])) == [b"a", b"bc", b"def"]


def test_keep_alives_are_not_handed_on() -> None:
    assert FrameReader().feed(KEEP_ALIVE + stream_of([b"a"]) + KEEP_ALIVE) == [b"a"]


def test_a_frame_beyond_the_bound_is_refused_by_its_header() -> None:
    with pytest.raises(TooLarge):
        FrameReader().feed((FRAME_BYTES_MAX + 1).to_bytes(4, "big"))
