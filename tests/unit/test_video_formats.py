"""Every everyday kind of file gives the frames of a plain full decode, whichever frames are chosen."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from preprocessor.config import Limits
from preprocessor.errors import PreprocessorError
from preprocessor.media.frames import Choice
from preprocessor.media.video import decode_frames, probe_video
from tests.media import (
    animation,
    clip_with_cover,
    decoded_frames,
    keyframe_packets,
    moving_shapes_clip,
    remuxed,
)
from tests.odd_clips import (
    OPEN_HEVC,
    Packet,
    apng,
    boxes,
    closed_group_start,
    encode,
    misstated_webm,
    mux_packets,
    numbers_in,
    open_group_start,
    packed_avi,
    packets_of,
    patched,
    read_number,
    remux,
    run_of,
    segment,
    two_tracks,
)

LIMITS = Limits()
SMALL = {"seconds": 1, "rate": 30, "width": 96, "height": 64}
GROUPS = (("g", "10"),)
OPEN_X264 = (("g", "10"), ("x264-params", "open-gop=1:bframes=3:b-adapt=0:scenecut=0"))
OPEN_X265 = (("x265-params", "log-level=none:keyint=10:min-keyint=10:open-gop=1:bframes=3:b-adapt=0:scenecut=0"),)
ALTREF = (("auto-alt-ref", "1"), ("lag-in-frames", "16"), ("g", "15"))


def clip(**settings: Any) -> Callable[[], bytes]:
    return lambda: moving_shapes_clip(**{**SMALL, **settings})


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
    # codecs of archives and of the older web
    "msmpeg4v2, avi": clip(codec="msmpeg4v2", container="avi", options=GROUPS),
    "msmpeg4, avi": clip(codec="msmpeg4", container="avi", options=GROUPS),
    "wmv1, asf": clip(codec="wmv1", container="asf", options=GROUPS),
    "wmv2, asf": clip(codec="wmv2", container="asf", options=GROUPS),
    "sorenson h263, flv": clip(codec="flv", container="flv", options=GROUPS),
    "h263, 3gp": clip(codec="h263", container="3gp", width=176, height=144, options=GROUPS),
    "screen video, flv": clip(codec="flashsv", container="flv", pixel_format="bgr24"),
    "screen video 2, flv": clip(codec="flashsv2", container="flv", pixel_format="bgr24"),
    "cinepak, mov": clip(seconds=0.3, codec="cinepak", container="mov", pixel_format="rgb24"),
    "qtrle, mov": clip(codec="qtrle", container="mov", pixel_format="rgb24"),
    "svq1, mov": clip(codec="svq1", container="mov", pixel_format="yuv410p"),
    "dv, avi": clip(seconds=0.2, rate=25, codec="dvvideo", container="avi", width=720, height=576),
    "mpeg1, ps": clip(codec="mpeg1video", container="mpeg", options=(("g", "10"), ("bf", "2"))),
    "mpeg2, ps": clip(codec="mpeg2video", container="vob", options=(("g", "10"), ("bf", "2"))),
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
    "cut before an open group, h264, times below zero": lambda: open_group_start("libx264", "matroska"),
    "cut before an open group, hevc, times below zero": lambda: open_group_start("libx265", "matroska"),
    "cut before an open group, h264, ts": lambda: open_group_start("libx264", "mpegts"),
    "cut before an open group, hevc, ts": lambda: open_group_start("libx265", "mpegts"),
    "cut before an open group, h264, no container": lambda: open_group_start("libx264", "h264"),
    "cut before an open group, hevc, no container": lambda: open_group_start("libx265", "hevc"),
    "cut before a closed group that begins with B-frames, mpeg2": closed_group_start,
    "cut before a closed group that begins with B-frames, mpeg1": lambda: closed_group_start("mpeg1video", "mpeg"),
    "cut before a closed group that begins with B-frames, no container": lambda: closed_group_start(container="raw"),
    # clocks that start anew
    "joined": lambda: segment(0, 33, rate=30) + segment(100, 33, rate=30),
    "joined, with B-frames": lambda: segment(0, 20, bf=2) + segment(100, 20, bf=2),
    "joined, clocks overlap": lambda: segment(0, 75, rate=25) + segment(100, 75, rate=25, offset=2.6),
    "joined, three parts": lambda: b"".join(segment(60 * part, 25, bf=2) for part in range(3)),
    "joined, mpeg2": lambda: b"".join(segment(60 * part, 25, bf=2, codec="mpeg2video") for part in range(2)),
    "joined, hevc": lambda: segment(0, 25, codec="libx265") + segment(100, 25, codec="libx265"),
    "joined, the clock a frame back": lambda: segment(0, 20) + segment(100, 20, offset=1.9),
    # packets that are no frames
    "packed B-frames": packed_avi,
    "packed B-frames, one in the middle": lambda: packed_avi(bf=1),
    "gif, comment behind the last frame": lambda: animation("GIF", (100,) * 3)[:-1] + b"\x21\xfe\x05by us\0;",
    "gif, comments between frames": lambda: gif_with_comments(),
    "apng, first frame laid over": lambda: apng(((0, 1), (0, 0))),
    "apng, first frame laid over, behind a cover": lambda: apng(((0, 1), (0, 0)), has_cover=True),
    "apng, frames taken away": lambda: apng(((0, 1), (1, 1), (2, 1), (0, 1))),
    "hevc, a packet of nothing but a delimiter": lambda: with_packet(b"\0\0\0\3\x46\1\x50", "libx265"),
    "mpeg2, a packet of nothing but user data": lambda: with_packet(b"\0\0\1\xb2by us", "mpeg2video"),
    "hevc, the sequence ends before an open group": lambda: hevc_sequences(),
    "mpeg4, every sample marked as keyframe": lambda: all_marked("mpeg4"),
    "mpeg2, every sample marked as keyframe": lambda: all_marked("mpeg2video"),
    "edit list, a part twice": lambda: edited((0, 1), (0, 1)),
    "edit list, parts in another order": lambda: edited((1, 2), (0, 1)),
    "edit list, a gap inside": lambda: edited((0, 1), (2, 1)),
    "edit list, the end hidden, mpeg2": lambda: edited((0, 2), codec="mpeg2video"),
    "bytes behind an mkv": lambda: FILES["cut inside a group"]() + bytes(range(256)),
    "bytes behind a ts": lambda: FILES["one frame, ts"]() + bytes(100),
    "bytes behind an flv": lambda: FILES["sorenson h263, flv"]() + bytes(100),
    "flv, another size stated": lambda: FILES["sorenson h263, flv"]().replace(b"filesize\0\x40", b"filesize\0\x60"),
    "avi, an empty packet": lambda: avi_with_a_gap(),
    "last sample empty": lambda: last_sample_empty(),
    "another size than the container says": misstated_webm,
    "riff size counts itself": lambda: riff(lambda data: len(data)),
    "riff size unwritten": lambda: riff(lambda _: 1 << 30),
    "cover picture": clip_with_cover,
    "one frame": clip(seconds=1 / 30),
    "one frame, mkv": clip(seconds=1 / 30, container="matroska"),
    "one frame, ts": clip(seconds=1 / 30, container="mpegts"),
    "one frame, gif": lambda: animation("GIF", (100,)),
}


def gif_with_comments() -> bytes:
    data = animation("GIF", (100,) * 3)
    second = data.index(b"\x21\xf9", data.index(b"\x21\xf9") + 1)
    return data[:second] + b"\x21\xfe\x05by us\0" + data[second:]


def avi_with_a_gap() -> bytes:
    """A recorder left out the second picture: an empty chunk stands in its place."""
    source = encode(run_of(40), "libx264", "avi", options={"bf": "0"})
    packets, unit = packets_of(source)
    late = [Packet(one.data, at + (at > 0), at + (at > 0), one.is_key) for at, one in enumerate(packets)]
    return mux_packets(source, "avi", late, unit)


def with_packet(data: bytes, codec: str) -> bytes:
    """An mkv with a packet in the middle that holds no picture."""
    source = encode(run_of(24), codec, "matroska", options={"bf": "0", "g": "12"})
    packets, unit = packets_of(source)
    packets = [dataclasses.replace(one, pts=100 * at, dts=100 * at) for at, one in enumerate(packets)]
    packets.insert(20, Packet(data, 1950, 1950, False))
    return mux_packets(source, "matroska", packets, unit)


def hevc_sequences() -> bytes:
    """A raw stream in which a sequence ends before its third keyframe, whose group is open."""
    packets, _ = packets_of(encode(run_of(80), "libx265", "hevc", options=OPEN_HEVC))
    third = [at for at, packet in enumerate(packets) if packet.is_key][2]
    parts = [packet.data for packet in packets]
    return b"".join([*parts[:third], b"\0\0\1\x48\1", *parts[third:]])


def all_marked(codec: str) -> bytes:
    """An mp4 without a list of its keyframes: every sample counts as one."""
    data = encode(run_of(40), codec, "mp4", options={"g": "12", "bf": "2", "q:v": "2"})
    return patched(data, (boxes(data, b"stss")[0] - 4, b"free"))


def edited(*parts: tuple[int, int], codec: str = "libx264") -> bytes:
    """An mp4 of 4 s in groups of 1 s that shows these parts: begin and length in seconds."""
    options = {"g": "10", "bf": "2"} | ({} if codec == "libx264" else {"q:v": "2"})
    data = encode(run_of(40), codec, "mp4", options=options)
    old, mvhd, mdhd = (boxes(data, kind)[0] for kind in (b"elst", b"mvhd", b"mdhd"))
    movie_scale, media_scale = (int.from_bytes(data[at + 12 : at + 16], "big") for at in (mvhd, mdhd))
    first = int.from_bytes(data[old + 12 : old + 16], "big")  # media time of the first frame
    entries = [
        struct.pack(">IiI", length * movie_scale, first + begin * media_scale, 1 << 16) for begin, length in parts
    ]
    box = struct.pack(">I4s", 16 + 12 * len(parts), b"elst") + struct.pack(">II", 0, len(parts)) + b"".join(entries)
    start, end = old - 8, old + 8 + 12
    grown = len(box) - (end - start)
    sizes = [
        (at - 8, (int.from_bytes(data[at - 8 : at - 4], "big") + grown).to_bytes(4, "big"))
        for at in (boxes(data, kind)[0] for kind in (b"moov", b"trak", b"edts"))
    ]
    return patched(data[:start], *sizes) + box + data[end:]


def last_sample_empty() -> bytes:
    """An mp4 whose index lists a sample of no bytes at its end."""
    data = encode(run_of(20), options={"bf": "0"})
    table = boxes(data, b"stsz")[0] + 12
    return patched(data, (table + 19 * 4, bytes(4)))


def riff(size: Callable[[bytes], int]) -> bytes:
    """A whole AVI that states another size than it has."""
    data = encode(run_of(20), "mjpeg", "avi", pix_fmt="yuvj420p")
    return patched(data, (4, size(data).to_bytes(4, "little")))


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
        found = [frame.copy() for frame in decode_frames(data, facts, Choice(np.array(indices)))]
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
        found = decode_frames(data, facts, Choice(np.array(indices)))
        assert [np.array_equal(a, whole[b]) for a, b in zip(found, indices, strict=True)] == [True] * len(indices)


def test_sound_with_a_cover_picture_is_no_video() -> None:
    with pytest.raises(PreprocessorError) as caught:
        probe_video(clip_with_cover(has_video=False), LIMITS)
    assert caught.value.reason == "NO_VIDEO_STREAM"


def test_a_picture_that_changes_its_size_is_refused() -> None:
    data = clip(container="h264")() + clip(container="h264", width=128)()
    facts = probe_video(data, LIMITS)
    assert facts.frame_count == 60
    assert len(list(decode_frames(data, facts, Choice(np.arange(30))))) == 30
    with pytest.raises(PreprocessorError) as caught:
        list(decode_frames(data, facts, Choice(np.array([0, 59]))))
    assert caught.value.reason == "RESOLUTION_CHANGE"


@pytest.mark.parametrize(
    ("make", "first"),
    [
        (lambda: two_tracks(default=1), 100),
        (lambda: two_tracks(default=0), 0),
        (lambda: two_tracks("matroska", default=1), 100),
        (lambda: two_tracks("matroska", default=1, sizes=(64, 64), codecs=("ffv1", "libx264")), 100),
        (lambda: remux(encode(run_of(20), options={"bf": "0"}), "matroska", empty_tracks=1), 0),
        (lambda: remux(encode(run_of(20), options={"bf": "0"}), "mp4", empty_tracks=2), 0),
    ],
    ids=["default second", "default first", "mkv", "first unreadable", "first empty", "two empty"],
)
def test_of_several_tracks_that_is_taken_which_ffmpeg_takes(make: Callable[[], bytes], first: int) -> None:
    data = make()
    facts = probe_video(data, LIMITS)
    frames = list(map(read_number, decode_frames(data, facts, Choice(np.arange(facts.frame_count)))))
    assert frames == list(range(first, first + facts.frame_count))
    assert facts.frame_count == (30 if first else 20)


def test_joined_clips_are_shown_one_behind_the_other() -> None:
    """The second one's clock starts at 0 again; its frames come a usual interval after the first one's."""
    facts = probe_video(FILES["joined"](), LIMITS)
    times = facts.times_seconds - facts.times_seconds[0]
    assert np.allclose(times, np.arange(66) / 30, atol=0.001)


def test_the_default_choice_of_joined_clips_lies_in_file_order() -> None:
    data = FILES["joined"]()
    facts = probe_video(data, LIMITS)
    chosen = np.array([0, 22, 43, 65])
    numbers = list(map(read_number, decode_frames(data, facts, Choice(chosen))))
    assert numbers == [numbers_in(data)[index] for index in chosen]
