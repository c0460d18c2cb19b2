"""Damaged and truncated files: refused by the first bad time, or the last good frame in place of each bad one."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest

from preprocessor.config import Limits
from preprocessor.errors import CorruptMedia, LimitExceeded, PreprocessorError, UnsupportedMedia
from preprocessor.media.frames import Choice
from preprocessor.media.video import decode_frames, probe_video
from preprocessor.types.request import OnDamage
from tests.media import damaged, decoded_frames, keyframe_packets, moving_shapes_clip, packet_spans, truncated_clip
from tests.odd_clips import open_group_start

LIMITS = Limits()
SMALL = {"seconds": 1, "rate": 30, "width": 96, "height": 64, "grain": 10}
CODECS: Mapping[str, dict[str, Any]] = {
    "h264": {"options": (("g", "10"), ("bf", "2"), ("x264-params", "b-adapt=0:scenecut=0"))},
    "hevc": {"codec": "libx265", "options": (("x265-params", "log-level=none:keyint=10:min-keyint=10:scenecut=0"),)},
    "vp9": {"codec": "libvpx-vp9", "container": "webm", "options": (("g", "10"),)},
    "av1": {"codec": "libsvtav1", "options": (("preset", "12"), ("g", "10"))},
    "mpeg4": {"codec": "mpeg4", "options": (("g", "10"),)},
    "mjpeg": {"codec": "mjpeg", "container": "mov", "pixel_format": "yuvj420p"},
    "h264 without times": {"container": "avi", "options": (("g", "10"), ("bf", "2"))},
}
EVERY = np.arange(30)


def clip_of(name: str) -> bytes:
    return moving_shapes_clip(**{**SMALL, **CODECS[name]})


def repaired(data: bytes, indices: npt.NDArray[np.int64]) -> tuple[list[npt.NDArray[np.uint8]], list[tuple[int, int]]]:
    """Frames of a tolerant decode, and what it says it substituted."""
    facts = probe_video(data, LIMITS, on_damage=OnDamage.REPEAT)
    said: list[tuple[int, int]] = []
    frames = decode_frames(
        data,
        facts,
        Choice(indices, on_damage=OnDamage.REPEAT, substituted=lambda chosen, used: said.append((chosen, used))),
    )
    return [frame.copy() for frame in frames], said


def second_group(data: bytes) -> tuple[int, int]:
    """The first frames of the second and third group."""
    facts = probe_video(data, LIMITS)
    keys = keyframe_packets(data)
    if not len(facts.frame_of_packet):
        return keys[1], keys[2]  # closed groups: as many frames before as packets
    return int(facts.frame_of_packet[keys[1]]), int(facts.frame_of_packet[keys[2]])


@pytest.mark.parametrize("name", CODECS)
def test_a_lost_keyframe_costs_its_group_and_nothing_else(name: str) -> None:
    data = clip_of(name)
    whole = decoded_frames(data)
    start, stop = second_group(data)
    frames, said = repaired(damaged(data, keyframe_packets(data)[1]), EVERY)
    used = dict(said)
    assert len(frames) == 30
    assert set(used) >= {start}
    assert set(used) <= set(range(start - 4, stop))  # hevc: up to four frames before it on screen refer to it
    assert all(index < start for index in used.values())
    assert all(np.array_equal(frames[index], whole[used.get(index, index)]) for index in range(30))


@pytest.mark.parametrize("name", CODECS)
def test_without_tolerance_the_first_bad_time_is_named(name: str) -> None:
    data = clip_of(name)
    broken = damaged(data, keyframe_packets(data)[1])
    facts = probe_video(broken, LIMITS)
    used = dict(repaired(broken, EVERY)[1])
    with pytest.raises(CorruptMedia, match=f"{facts.times_seconds[min(used)]:.3f} s") as caught:
        list(decode_frames(broken, facts, Choice(EVERY)))
    assert caught.value.reason == "UNDECODABLE_FRAME"


@pytest.mark.parametrize("name", ["h264", "mpeg4", "vp9"])
def test_frames_that_need_nothing_bad_are_given_without_tolerance(name: str) -> None:
    data = clip_of(name)
    start, stop = second_group(data)
    broken = damaged(data, keyframe_packets(data)[1])
    chosen = np.array([0, start - 1, stop, 29])
    whole = decoded_frames(data)
    found = decode_frames(broken, probe_video(broken, LIMITS), Choice(chosen))
    assert all(np.array_equal(a, whole[b]) for a, b in zip(found, chosen, strict=True))


def test_a_lost_reference_frame_spoils_the_rest_of_its_group() -> None:
    data = clip_of("mpeg4")
    _, said = repaired(damaged(data, 13), EVERY)
    start, stop = second_group(data)
    assert said == [(index, 12) for index in range(13, stop)]
    assert start < 13 < stop


def test_a_lost_frame_that_no_other_refers_to_spoils_only_itself() -> None:
    data = clip_of("h264")
    facts = probe_video(data, LIMITS)
    with av.open(io.BytesIO(data), "r") as container:
        kinds = [frame.pict_type for frame in container.decode(video=0)]
    bare = (
        next(index for index in range(11, 20) if kinds[index] == kinds[index + 1] == av.video.frame.PictureType.B) + 1
    )
    packet = int(np.flatnonzero(facts.frame_of_packet == bare)[0])
    _, said = repaired(damaged(data, packet, keep_bytes=6), EVERY)
    assert said == [(bare, bare - 1)]


def test_without_a_good_frame_before_the_first_good_one_behind_is_used() -> None:
    data = clip_of("h264")
    whole = decoded_frames(data)
    _, stop = second_group(data)
    keys = keyframe_packets(data)
    frames, said = repaired(damaged(data, *keys[:2]), np.array([0, 3, 3]))
    assert said == [(0, stop), (3, stop), (3, stop)]
    assert all(np.array_equal(frame, whole[stop]) for frame in frames)


@pytest.mark.parametrize("name", CODECS)
def test_a_file_without_a_good_frame_is_corrupt_even_so(name: str) -> None:
    data = clip_of(name)
    with pytest.raises((CorruptMedia, UnsupportedMedia)):  # FFmpeg may not even find the stream
        repaired(damaged(data, *range(30)), np.array([3, 20]))


@pytest.mark.parametrize("name", CODECS)
def test_tolerance_changes_nothing_in_a_whole_file(name: str) -> None:
    data = clip_of(name)
    whole = decoded_frames(data)
    for indices in (EVERY, np.array([4, 17]), np.array([29])):
        frames, said = repaired(data, indices)
        assert said == []
        assert all(np.array_equal(a, whole[b]) for a, b in zip(frames, indices, strict=True))


def test_a_truncated_file_keeps_its_whole_frames_at_their_own_times() -> None:
    data = truncated_clip()
    original = probe_video(moving_shapes_clip(seconds=2, width=160, height=120, seed=7), LIMITS)
    facts = probe_video(data, LIMITS, on_damage=OnDamage.REPEAT)
    assert facts.is_truncated
    assert facts.stated_frame_count == 60
    assert 0 < facts.frame_count < 60
    assert set(facts.times_seconds.tolist()) <= set(original.times_seconds.tolist())
    frames, said = repaired(data, np.arange(facts.frame_count))
    assert said == []
    whole = decoded_frames(moving_shapes_clip(seconds=2, width=160, height=120, seed=7))
    places = np.searchsorted(original.pts, facts.pts)
    assert all(np.array_equal(frame, whole[place]) for frame, place in zip(frames, places, strict=True))


@pytest.mark.parametrize("on_damage", OnDamage)
def test_a_cut_start_of_which_no_decoder_shows_a_frame_is_corrupt(on_damage: OnDamage) -> None:
    """The keyframe of an open group still looks like one, but nothing of it or behind it can be decoded."""
    data = open_group_start("libx265", "matroska", group=1, count=40)
    with pytest.raises(CorruptMedia) as caught:
        probe_video(damaged(data, *range(len(packet_spans(data))), keep_bytes=8), LIMITS, on_damage=on_damage)
    assert caught.value.reason == "CORRUPT_MEDIA"


@pytest.mark.parametrize("container", ["matroska", "avi", "mp4 cut between two frames"])
def test_a_file_shorter_than_it_says_is_refused_without_tolerance(container: str) -> None:
    if container.startswith("mp4"):
        data = truncated_clip()
        offset, length = packet_spans(data)[-2]
        data = data[: offset + length]
    else:
        data = moving_shapes_clip(**SMALL, container=container)
        data = data[: packet_spans(data)[20][0] + 3]
    with pytest.raises(CorruptMedia) as caught:
        probe_video(data, LIMITS)
    assert caught.value.reason == "TRUNCATED_MEDIA"
    facts = probe_video(data, LIMITS, on_damage=OnDamage.REPEAT)
    assert facts.is_truncated
    frames, _ = repaired(data, np.arange(facts.frame_count))
    assert len(frames) == facts.frame_count


def test_a_matroska_file_of_unknown_length_is_not_taken_for_truncated() -> None:
    data = bytearray(moving_shapes_clip(**SMALL, container="matroska"))
    start = data.index(b"\x18\x53\x80\x67") + 4
    data[start : start + 8] = b"\x01" + b"\xff" * 7
    assert probe_video(bytes(data), LIMITS).frame_count == 30


@pytest.mark.parametrize("size", [0, 0x7FFFFFFF, 0xFFFFFFFF])
def test_an_avi_of_unknown_length_is_not_taken_for_truncated(size: int) -> None:
    data = bytearray(moving_shapes_clip(**SMALL, container="avi", codec="mpeg4"))
    data[4:8] = size.to_bytes(4, "little")
    assert probe_video(bytes(data), LIMITS).frame_count == 30


@pytest.mark.parametrize("length", range(0, 4000, 97))
def test_no_truncation_raises_anything_but_our_errors(length: int) -> None:
    data = clip_of("vp9")[:length]
    with pytest.raises(PreprocessorError):
        probe_video(data, LIMITS)


def test_random_damage_raises_nothing_but_our_errors() -> None:
    random = np.random.default_rng(5)
    outcomes = set()
    for name in CODECS:
        data = clip_of(name)
        for _ in range(8):
            spoiled = np.frombuffer(data, np.uint8).copy()
            places = random.integers(0, len(spoiled), 1 + len(spoiled) // 300)
            spoiled[places] = random.integers(0, 256, len(places))
            try:
                facts = probe_video(spoiled.tobytes(), LIMITS, on_damage=OnDamage.REPEAT)
                frames = list(
                    decode_frames(
                        spoiled.tobytes(), facts, Choice(np.arange(facts.frame_count), on_damage=OnDamage.REPEAT)
                    )
                )
                assert len(frames) == facts.frame_count
                outcomes.add("decoded")
            except (CorruptMedia, UnsupportedMedia, LimitExceeded) as error:
                outcomes.add(error.reason)
    assert "decoded" in outcomes
