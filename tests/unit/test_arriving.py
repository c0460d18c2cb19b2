"""Files of which the rest is still arriving: which can be read so, and that what has not arrived is never taken for the file."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from preprocessor.config import Limits
from preprocessor.errors import CorruptMedia
from preprocessor.media.arriving import ArrivingFile, NotArrived, index_stop
from preprocessor.media.clip import IndexedClip
from preprocessor.media.container import read_packets
from preprocessor.media.frames import Choice
from preprocessor.media.streams import open_video
from preprocessor.media.video import decode_frames, probe_video
from preprocessor.pipeline.early import are_equal
from tests.media import index_in_front, moving_shapes_clip, packet_spans

OPTIONS = (("x264-params", "keyint=10:bframes=2:b-adapt=0:scenecut=0"),)
PLAIN = moving_shapes_clip(seconds=4, rate=10, width=240, height=176, grain=30, options=OPTIONS)
IN_FRONT = index_in_front(PLAIN)
CLIP = probe_video(IN_FRONT, Limits())


def box(name: bytes, size_bytes: int) -> bytes:
    return struct.pack(">I4s", size_bytes, name) + bytes(size_bytes - 8)


MEDIA = struct.pack(">I4s", 1000, b"mdat") + bytes(92)  # 900 bytes of it are still to come


@pytest.mark.parametrize(
    ("head", "stop"),
    [
        (box(b"ftyp", 16) + box(b"moov", 32) + MEDIA, 48),
        (box(b"ftyp", 16) + box(b"free", 8) + box(b"moov", 32) + box(b"free", 24) + MEDIA, 80),
        (box(b"ftyp", 16) + MEDIA, None),  # the index is behind
        (box(b"ftyp", 16) + box(b"moov", 32), None),  # where the media end is not known yet
        ((box(b"ftyp", 16) + box(b"moov", 3000))[:100], None),
        (box(b"ftyp", 16) + box(b"moov", 32) + box(b"moof", 24) + MEDIA, None),
        (box(b"ftyp", 16) + box(b"moov", 32) + box(b"free", 8) * 20 + MEDIA, None),
        (box(b"ftyp", 16) + box(b"moov", 32) + struct.pack(">I4s", 0, b"mdat") + bytes(92), None),
        (b"\x1aE\xdf\xa3" + bytes(100), None),
        (b"", None),
    ],
)
def test_an_index_in_front_of_the_media(head: bytes, stop: int | None) -> None:
    size_bytes = len(head) + 900
    assert index_stop(head, size_bytes) == stop
    assert index_stop(memoryview(bytearray(head)), size_bytes) == stop
    assert index_stop(head, size_bytes + 1) is None


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_clip_is_guessed_from_its_index(share: float) -> None:
    file = ArrivingFile(IN_FRONT[: int(len(IN_FRONT) * share)], len(IN_FRONT), is_padded=True)
    assert are_equal(probe_video(file, Limits()), CLIP)


def test_a_guess_differs_where_the_bytes_tell_otherwise() -> None:
    offset, length = packet_spans(IN_FRONT)[30]  # a keyframe, by the index
    spoiled = IN_FRONT[:offset] + bytes(length) + IN_FRONT[offset + length :]
    file = ArrivingFile(spoiled[: len(spoiled) // 2], len(spoiled), is_padded=True)
    guess, truth = probe_video(file, Limits()), probe_video(spoiled, Limits())
    assert are_equal(guess, CLIP)
    assert not are_equal(guess, truth)


@pytest.mark.parametrize("frame_count", [1, 10, 19])
def test_what_has_arrived_is_decoded_as_of_the_whole_file(frame_count: int) -> None:
    assert isinstance(CLIP, IndexedClip)
    indices = np.arange(frame_count)
    file = ArrivingFile(IN_FRONT[: len(IN_FRONT) * 6 // 10], len(IN_FRONT), is_padded=False)
    ours = [frame.copy() for frame in decode_frames(file, CLIP, Choice(indices))]
    whole = [frame.copy() for frame in decode_frames(IN_FRONT, CLIP, Choice(indices))]
    np.testing.assert_array_equal(ours, whole)
    assert not file.was_missed


def test_no_frame_comes_of_bytes_that_have_not_arrived() -> None:
    """Wherever the file ends, frames are those of the whole file or none."""
    whole = [frame.copy() for frame in decode_frames(IN_FRONT, CLIP, Choice(np.arange(CLIP.frame_count)))]
    stops = [offset + length // 2 for offset, length in packet_spans(IN_FRONT)[4::6]]
    for stop in stops:
        file, count = ArrivingFile(IN_FRONT[:stop], len(IN_FRONT), is_padded=False), 0
        with pytest.raises((NotArrived, CorruptMedia)):
            for frame in decode_frames(file, CLIP, Choice(np.arange(CLIP.frame_count), check=file.check)):
                np.testing.assert_array_equal(frame, whole[count])
                count += 1
        assert file.was_missed
        with pytest.raises(NotArrived):
            file.check()


def test_a_padded_file_has_all_packets_of_the_whole_one() -> None:
    def places(data: bytes) -> list[tuple[int | None, int | None, int]]:
        with open_video(data, "clip", 1 << 30) as (container, stream):
            return [(one.pts, one.dts, one.size) for one in read_packets(container, stream, "clip", lambda: None)]

    assert places(ArrivingFile(IN_FRONT[:5000], len(IN_FRONT), is_padded=True)) == places(IN_FRONT)
