"""Every everyday kind of file gives the frames of a plain full decode, whichever frames are chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from preprocessor.config import Limits
from preprocessor.errors import PreprocessorError
from preprocessor.media.video import decode_frames, probe_video
from tests.media import (
    animation,
    clip_with_cover,
    decoded_frames,
    keyframe_packets,
    moving_shapes_clip,
    remuxed,
)

LIMITS = Limits()
SMALL = {"seconds": 1, "rate": 30, "width": 96, "height": 64}
GROUPS = (("g", "10"),)
OPEN_X264 = (("g", "10"), ("x264-params", "open-gop=1:bframes=3:b-adapt=0:scenecut=0"))
OPEN_X265 = (("x265-params", "log-level=none:keyint=10:min-keyint=10:open-gop=1:bframes=3:b-adapt=0:scenecut=0"),)
ALTREF = (("auto-alt-ref", "1"), ("lag-in-frames", "16"), ("g", "15"))


def clip(**settings: object) -> Callable[[], bytes]:
    return lambda: moving_shapes_clip(**{**SMALL, **settings})  # type: ignore[arg-type]


FILES: Mapping[str, Callable[[], bytes]] = {
    # codecs
    "h264": clip(options=GROUPS),
    "h264, b-pyramid": clip(options=(("g", "15"), ("x264-params", "bframes=5:b-pyramid=normal:b-adapt=0"))),
    "h264, open groups": clip(options=OPEN_X264),
    "h264, open groups, mkv": clip(options=OPEN_X264, container="matroska"),
    "h264, open groups, ts": clip(options=OPEN_X264, container="mpegts"),
    "h264, intra refresh, mkv": clip(options=(("g", "10"), ("x264-params", "intra-refresh=1")), container="matroska"),
    "h264, interlaced": clip(options=(("g", "10"), ("x264-params", "interlaced=1:bframes=2"))),
    "hevc": clip(codec="libx265", options=(("x265-params", "log-level=none:keyint=10:open-gop=0"),)),
    "hevc, open groups": clip(codec="libx265", options=OPEN_X265),
    "hevc, open groups, ts": clip(codec="libx265", options=OPEN_X265, container="mpegts"),
    "vp8": clip(codec="libvpx", container="webm", options=ALTREF, grain=20),
    "vp9": clip(codec="libvpx-vp9", container="webm", options=ALTREF, grain=20),
    "av1": clip(codec="libsvtav1", options=(("preset", "12"), *GROUPS)),
    "av1, mkv": clip(codec="libsvtav1", container="matroska", options=(("preset", "12"), *GROUPS)),
    "mpeg4": clip(codec="mpeg4", options=(("g", "10"), ("bf", "2"))),
    "mpeg2, ts": clip(codec="mpeg2video", container="mpegts", options=(("g", "10"), ("bf", "2"))),
    "mjpeg, mov": clip(codec="mjpeg", container="mov", pixel_format="yuvj420p"),
    "prores, mov": clip(codec="prores_ks", container="mov", pixel_format="yuv422p10le"),
    # containers that say little about time
    "h264, avi": clip(container="avi", options=GROUPS),
    "mpeg4, avi": clip(codec="mpeg4", container="avi", options=(("g", "10"), ("bf", "2"))),
    "mjpeg, avi": clip(codec="mjpeg", container="avi", pixel_format="yuvj420p"),
    "h264, no container": clip(container="h264", options=GROUPS),
    "hevc, no container": clip(codec="libx265", container="hevc", options=OPEN_X265),
    "av1, ivf": clip(codec="libsvtav1", container="ivf", options=(("preset", "12"), *GROUPS)),
    "gif": clip(rate=10, seconds=3, codec="gif", container="gif", pixel_format="rgb8"),
    "gif, partly painted frames": lambda: animation("GIF", (100,) * 30),
    "apng": lambda: animation("PNG", (100,) * 30),
    # colours
    "4:2:2": clip(pixel_format="yuv422p"),
    "4:4:4": clip(pixel_format="yuv444p"),
    "10 bits": clip(pixel_format="yuv420p10le"),
    "10 bits, hevc": clip(codec="libx265", pixel_format="yuv420p10le", options=OPEN_X265),
    "full range": clip(pixel_format="yuvj420p"),
    "full range, by its tag": clip(color_range=2),
    "BT.601": clip(colorspace=6),
    "BT.709": clip(colorspace=1),
    "BT.709, full range": clip(colorspace=1, color_range=2),
    "BT.2020, 10 bits": clip(colorspace=9, pixel_format="yuv420p10le"),
    "odd size": clip(width=95, height=63, pixel_format="yuv444p"),
    "odd size, 4:2:0": clip(width=95, height=63, codec="libvpx-vp9", container="webm"),
    "cropped by the codec": clip(width=98, height=70),
    # times
    "first time above zero": lambda: remuxed(FILES["h264"](), "matroska", shift=50_000),
    "edit list, delayed": lambda: remuxed(FILES["h264"](), "mp4", shift=5_000),
    "edit list, beginning inside a group": lambda: remuxed(FILES["h264, open groups"](), "mp4", shift=-7_000),
    "first time below zero": lambda: remuxed(FILES["h264"](), "mov", shift=-400),
    "uneven times": clip(container="matroska", times_ms=tuple(range(0, 600, 40)) + tuple(range(700, 4450, 250))),
    "two frames of one time": lambda: remuxed(FILES["vp9"](), "matroska", repeat_time_at=12),
    "cut before a keyframe, mkv": lambda: cut(FILES["h264, open groups, mkv"](), "matroska", 0),
    "cut before a keyframe, hevc": lambda: cut(FILES["hevc, open groups"](), "matroska", 0),
    "cut inside a group, hevc": lambda: cut(FILES["hevc, open groups"](), "matroska", -3),
    "cut inside a group": lambda: cut(FILES["h264"](), "matroska", -3),
    "cut before a keyframe, mpeg4": lambda: cut(FILES["mpeg4"](), "matroska", 0),
    "cover picture": clip_with_cover,
    "one frame": clip(seconds=1 / 30),
    "one frame, mkv": clip(seconds=1 / 30, container="matroska"),
    "one frame, ts": clip(seconds=1 / 30, container="mpegts"),
    "one frame, gif": lambda: animation("GIF", (100,)),
}


def cut(data: bytes, container: str, offset: int) -> bytes:
    """The file from its second keyframe on, or `offset` packets from there."""
    return remuxed(data, container, first_packet=keyframe_packets(data)[1] + offset)


def choices(count: int) -> list[list[int]]:
    """Every frame; a few; one in the middle; the last; each tenth, which with groups of ten are alike in their groups."""
    few = sorted({0, min(1, count - 1), count // 3, count // 2, count - 1})
    return [list(range(count)), few, [count // 2], [count - 1], list(range(7 % count, count, 10))]


@pytest.mark.parametrize("name", FILES)
def test_the_chosen_frames_are_those_of_a_full_decode(name: str) -> None:
    data = FILES[name]()
    whole = decoded_frames(data)
    facts = probe_video(data, LIMITS)
    assert facts.frame_count == len(whole)
    for indices in choices(len(whole)):
        found = [frame.copy() for frame in decode_frames(data, facts, np.array(indices))]
        assert [np.array_equal(a, whole[b]) for a, b in zip(found, indices, strict=True)] == [True] * len(indices)


@pytest.mark.parametrize("name", FILES)
def test_sizes_and_times_are_those_of_the_frames(name: str) -> None:
    data = FILES[name]()
    facts = probe_video(data, LIMITS)
    first = decoded_frames(data)[0]
    assert (facts.height_px, facts.width_px, 3) == first.shape
    assert np.all(np.diff(facts.pts) >= 0)
    assert 0 < facts.rate < 1000


@pytest.mark.parametrize(
    "name", ["h264", "h264, open groups, ts", "hevc, open groups", "vp9", "mpeg4", "av1, mkv", "mjpeg, avi"]
)
def test_times_and_rate_are_the_files_own(name: str) -> None:
    facts = probe_video(FILES[name](), LIMITS)
    times = facts.times_seconds - facts.times_seconds[0]
    assert np.allclose(times, np.arange(30) / 30, atol=0.001)  # matroska counts milliseconds
    assert facts.rate == pytest.approx(30, abs=0.1)


@pytest.mark.parametrize("name", ["h264, no container", "hevc, no container"])
def test_frames_without_times_are_spaced_by_the_rate_of_the_bitstream(name: str) -> None:
    facts = probe_video(FILES[name](), LIMITS)
    assert facts.rate == 30
    assert np.allclose(facts.times_seconds, np.arange(30) / 30)


def test_a_first_time_above_zero_is_kept() -> None:
    assert probe_video(FILES["edit list, delayed"](), LIMITS).times_seconds[0] > 0.3


def test_uneven_times_are_kept() -> None:
    expected = [*range(0, 600, 40), *range(700, 4450, 250)]
    facts = probe_video(FILES["uneven times"](), LIMITS)
    assert np.allclose(facts.times_seconds * 1000, expected, atol=1)


def test_frames_before_the_begin_of_an_edit_list_are_not_counted() -> None:
    assert probe_video(FILES["edit list, beginning inside a group"](), LIMITS).frame_count < 30


def test_a_cut_group_gives_no_frames_that_refer_over_the_cut() -> None:
    data = FILES["cut before a keyframe, hevc"]()
    facts = probe_video(data, LIMITS)
    assert facts.frame_count < len(facts.frame_of_packet)


@pytest.mark.parametrize("durations_ms", [(100,) * 8, (40, 200, 1000, 40), (100,)])
def test_an_animated_webp_is_a_video(durations_ms: tuple[int, ...]) -> None:
    """FFmpeg reads none; the lossless file holds the very pictures of the lossless PNG that FFmpeg does read."""
    data = animation("WEBP", durations_ms)
    whole = decoded_frames(animation("PNG", durations_ms))
    facts = probe_video(data, LIMITS)
    starts = np.cumsum((0, *durations_ms[:-1])) / 1000
    assert np.allclose(facts.times_seconds, starts)
    assert (facts.width_px, facts.height_px, facts.duration_seconds) == (96, 64, sum(durations_ms) / 1000)
    for indices in choices(len(whole)):
        found = decode_frames(data, facts, np.array(indices))
        assert [np.array_equal(a, whole[b]) for a, b in zip(found, indices, strict=True)] == [True] * len(indices)


def test_sound_with_a_cover_picture_is_no_video() -> None:
    with pytest.raises(PreprocessorError) as caught:
        probe_video(clip_with_cover(has_video=False), LIMITS)
    assert caught.value.reason == "NO_VIDEO_STREAM"


def test_a_picture_that_changes_its_size_is_refused() -> None:
    data = clip(container="h264")() + clip(container="h264", width=128)()
    facts = probe_video(data, LIMITS)
    assert facts.frame_count == 60
    assert len(list(decode_frames(data, facts, np.arange(30)))) == 30
    with pytest.raises(PreprocessorError) as caught:
        list(decode_frames(data, facts, np.array([0, 59])))
    assert caught.value.reason == "RESOLUTION_CHANGE"
