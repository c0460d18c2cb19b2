"""What a file may cost: every format is held to the limits by its header, while it is read, and while it is decoded."""

from __future__ import annotations

import io
import time

import av
import numpy as np
import pytest

from preprocessor.config import Limits, SettingError
from preprocessor.errors import LimitExceeded, PreprocessorError, UnsupportedMedia
from preprocessor.media.audio import extract_audio
from preprocessor.media.checks import within_cpu_seconds
from preprocessor.media.codecs import SOUND_DECODERS, VIDEO_DECODERS
from preprocessor.media.frames import Choice
from preprocessor.media.image import probe_image
from preprocessor.media.image_headers import jpeg_scan_count
from preprocessor.media.streams import open_video
from preprocessor.media.video import decode_frames, probe_video
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.fuzz import dangerous_videos
from tests.fuzz.dangerous_images import many_scans
from tests.fuzz.seeds import SEEDS, file_of
from tests.media import moving_shapes_clip, photo
from tests.pictures import KINDS, animated
from tests.pictures import file_of as picture_of

VIDEOS = [name for name, seed in SEEDS.items() if seed.modality == pb.MODALITY_VIDEO]
SOUNDS = [name for name, seed in SEEDS.items() if seed.modality == pb.MODALITY_AUDIO]


class Stopped(Exception):
    """What a check raises here."""


@pytest.mark.parametrize("name", VIDEOS)
def test_frames_too_large_are_called_that_in_every_format(name: str) -> None:
    with pytest.raises(LimitExceeded) as caught:
        probe_video(file_of(name), Limits(max_frame_pixels=1000))
    assert caught.value.reason == "FRAME_TOO_LARGE"


@pytest.mark.parametrize("name", [*VIDEOS, *SOUNDS])
def test_good_files_of_every_format_have_decoders_on_the_list(name: str) -> None:
    if name in VIDEOS:
        assert probe_video(file_of(name), Limits()).frame_count > 1
    else:
        assert len(extract_audio(file_of(name), 16_000, Limits())) > 1000


def test_what_decoders_are_listed_is_of_the_kind_and_everyday_codecs_are_among_it() -> None:
    for kind, names in (("video", VIDEO_DECODERS), ("audio", SOUND_DECODERS)):
        known = [name for name in names if name in av.codecs_available]
        assert len(known) > len(names) * 0.7
        assert {av.Codec(name, "r").type for name in known} == {kind}


def test_a_codec_that_is_not_listed_is_not_decoded_even_to_look_into_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """What FFmpeg learns from frames alone stays unknown where it may decode none."""
    data = moving_shapes_clip(seconds=0.4, width=64, height=48, container="mpegts", codec="mpeg2video")
    with open_video(data, "clip", 1 << 30) as (_, stream):
        assert stream.codec_context.pix_fmt == "yuv420p"
    with open_video(data, "clip", 1 << 30, decoders=["none"]) as (_, stream):
        assert stream.codec_context.pix_fmt is None
    monkeypatch.setattr("preprocessor.media.streams.VIDEO_DECODERS", VIDEO_DECODERS - {"mpeg2video"})
    with pytest.raises(UnsupportedMedia, match="no decoder") as caught:
        probe_video(data, Limits())
    assert caught.value.reason == "UNSUPPORTED_CODEC"


def test_a_size_that_comes_up_inside_the_file_is_bounded_by_the_decoder() -> None:
    """The frames before it are given, and the large one is never made."""
    data = dangerous_videos.grows_to(1280, 720)
    clip = probe_video(data, Limits(max_frame_pixels=64 * 48))
    small = [index for index in range(clip.frame_count) if index < 8]
    assert len(list(decode_frames(data, clip, Choice(np.array(small))))) == 8
    with pytest.raises(PreprocessorError) as caught:
        list(decode_frames(data, clip, Choice(np.array([clip.frame_count - 1]))))
    assert caught.value.reason == "UNDECODABLE_FRAME"
    roomy = probe_video(data, Limits())
    with pytest.raises(PreprocessorError) as caught:
        list(decode_frames(data, roomy, Choice(np.array([clip.frame_count - 1]))))
    assert caught.value.reason == "RESOLUTION_CHANGE"


@pytest.mark.parametrize("stop_after", [1, 5, 40])
def test_a_check_ends_the_work_inside_one_packet_and_inside_the_header(stop_after: int) -> None:
    """Four megabytes between two packets are 128 reads of FFmpeg's; the check's own error arrives, not "the file ends"."""
    data, calls = dangerous_videos.matroska_of_nothing(), 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == stop_after:
            raise Stopped

    with pytest.raises(Stopped):
        probe_video(data, Limits(), check=check)
    assert calls < stop_after + 4, "and FFmpeg asks for no more of the file"


def test_reading_a_sound_is_checked_inside_a_packet_too() -> None:
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        raise Stopped

    with pytest.raises(Stopped):
        extract_audio(file_of("wav"), 16_000, Limits(), check=check)
    assert calls == 1


def test_streams_that_nobody_asked_for_are_read_over() -> None:
    """Beside the picture lies a sound of a hundred thousand packets; PyAV would pass over each of them in turn."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as output:
        picture = output.add_stream("mpeg4", rate=10)
        picture.width, picture.height, picture.pix_fmt = 32, 32, "yuv420p"
        sound = output.add_stream("pcm_u8", rate=8000, layout="mono")
        output.mux(picture.encode(av.VideoFrame(32, 32, "yuv420p")))
        output.mux(picture.encode(None))
        for at in range(2000):
            packet = av.Packet(b"\x80")
            packet.stream, packet.pts, packet.dts = sound, at, at
            assert sound.time_base is not None
            packet.time_base = sound.time_base
            output.mux(packet)
    with open_video(buffer.getvalue(), "clip", 1 << 30) as (container, stream):
        assert [other.discard.name for other in container.streams if other is not stream] == ["all"]
    assert probe_video(buffer.getvalue(), Limits()).frame_count == 1


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Limits(max_streams=1), "TOO_MANY_STREAMS"),
        (Limits(max_side_px=63), "SIDE_TOO_LONG"),
        (Limits(max_clip_frames=5), "TOO_MANY_FRAMES"),
    ],
)
def test_each_limit_has_a_reason_of_its_own(limits: Limits, reason: str) -> None:
    with pytest.raises(LimitExceeded) as caught:
        probe_video(dangerous_videos.many_streams(2), limits)
    assert caught.value.reason == reason


def test_a_webp_animation_is_held_to_the_same_limits() -> None:
    data = animated("WEBP")
    for limits, reason in (
        (Limits(max_side_px=44), "SIDE_TOO_LONG"),
        (Limits(max_frame_pixels=1000), "FRAME_TOO_LARGE"),
        (Limits(max_clip_frames=2), "TOO_MANY_FRAMES"),
    ):
        with pytest.raises(LimitExceeded) as caught:
            probe_video(data, limits)
        assert caught.value.reason == reason


def test_an_image_may_have_long_sides_or_many_pixels_and_not_too_much_of_either() -> None:
    assert probe_image(photo(64, 48), Limits(max_side_px=64, max_image_pixels=64 * 48)).width_px == 64
    for limits, reason in (
        (Limits(max_side_px=63), "SIDE_TOO_LONG"),
        (Limits(max_image_pixels=3071), "IMAGE_TOO_LARGE"),
    ):
        with pytest.raises(LimitExceeded) as caught:
            probe_image(photo(64, 48), limits)
        assert caught.value.reason == reason


def test_a_file_has_so_much_cpu_and_no_more() -> None:
    check = within_cpu_seconds(0.02, lambda: None, "clip")
    check()
    with pytest.raises(LimitExceeded, match=r"0\.02 CPU seconds") as caught:
        for _ in range(1 << 30):
            check()
    assert caught.value.reason == "FILE_CPU_SECONDS_EXCEEDED"
    asleep = within_cpu_seconds(0.02, lambda: None, "clip")
    time.sleep(0.05)
    asleep()


@pytest.mark.parametrize("value", [0, -1.0, float("inf"), float("nan")])
def test_a_limit_on_cpu_is_a_number_of_seconds(value: float) -> None:
    with pytest.raises(SettingError, match="--max-file-cpu-seconds"):
        Limits(max_file_cpu_seconds=value)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.split()[0] == "jpeg"])
def test_scans_of_good_jpegs_are_counted(kind: str) -> None:
    data = picture_of(kind)
    count = jpeg_scan_count(data, 500)
    assert 1 < count < 15 if "progressive" in kind else count == 1
    assert jpeg_scan_count(data + data * 3, 500) == count, "what follows the picture is not its own"


def test_a_jpeg_has_so_many_scans_and_no_more() -> None:
    data = picture_of("jpeg progressive")
    count = jpeg_scan_count(data, 500)
    probe_image(data, Limits(max_image_scans=count))
    with pytest.raises(LimitExceeded) as caught:
        probe_image(data, Limits(max_image_scans=count - 1))
    assert caught.value.reason == "TOO_MANY_SCANS"


def test_scans_are_counted_through_what_surrounds_them() -> None:
    data = picture_of("jpeg")
    start = data.index(b"\xff\xda")
    assert jpeg_scan_count(data[:2] + b"\xff\xe1\x00\x06\xff\xda\xff\xda" + data[2:], 500) == 1, "a thumbnail"
    assert jpeg_scan_count(data[:start] + b"\xff\xff\xff" + data[start:], 500) == 1, "fill bytes"
    assert jpeg_scan_count(data[:start] + b"rubbish" + data[start:], 500) == 1
    assert jpeg_scan_count(data[:start], 500) == 0
    assert jpeg_scan_count(many_scans(), 10) == 11, "no further than it must"
    assert all(jpeg_scan_count(data[:length], 500) <= 1 for length in range(0, len(data), 7))
    ends_in_a_marker = b"\xff\xff\xa5\xff\xff\xff\x0a\xff"  # found by `make fuzz-guided`
    assert jpeg_scan_count(ends_in_a_marker, 500) == 0
