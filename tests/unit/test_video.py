"""Videos: exactly the wanted frames, and what is refused."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest

from preprocessor.config import Limits
from preprocessor.errors import CorruptMedia, InvalidRequest, LimitExceeded, PreprocessorError, UnsupportedMedia
from preprocessor.media.frames import Choice
from preprocessor.media.video import decode_frames, probe_video
from tests.media import audio_only_clip, moving_shapes_clip, truncated_clip

LIMITS = Limits()
SMALL = {"seconds": 2, "rate": 30, "width": 96, "height": 64}
CODECS: Mapping[str, dict[str, Any]] = {
    "h264 mp4": {},
    "h264 mp4, short groups": {"options": (("g", "8"), ("bf", "3"))},
    "h264 matroska": {"container": "matroska"},
    "h264 mpeg-ts": {"container": "mpegts"},
    "hevc mp4": {"codec": "libx265", "options": (("x265-params", "log-level=none"),)},
    "vp9 webm": {"codec": "libvpx-vp9", "container": "webm"},
    "av1 mp4": {"codec": "libsvtav1", "options": (("preset", "12"),)},
    "mpeg4 avi": {"codec": "mpeg4", "container": "avi"},
    "odd size": {"width": 95, "height": 63, "pixel_format": "yuv444p"},
}
CHOICES = {
    "every frame": list(range(60)),
    "some frames": [0, 2, 15, 29, 30, 31, 59],
    "one frame": [37],
    "the last frame": [59],
}


def clip_of(name: str) -> bytes:
    return moving_shapes_clip(**{**SMALL, **CODECS[name]})


def all_frames(data: bytes) -> list[npt.NDArray[Any]]:
    """A plain decode of every frame."""
    with av.open(io.BytesIO(data), "r") as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def frames_at(data: bytes, indices: list[int]) -> list[npt.NDArray[np.uint8]]:
    clip = probe_video(data, LIMITS)
    return [frame.copy() for frame in decode_frames(data, clip, Choice(np.array(indices)))]


def test_the_clip_used_here_has_frames_to_skip() -> None:
    with av.open(io.BytesIO(clip_of("h264 mp4")), "r") as container:
        kinds = Counter(frame.pict_type for frame in container.decode(video=0))
    assert kinds[av.video.frame.PictureType.B] > 10


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("name", CODECS)
def test_skipping_unwanted_frames_changes_no_pixel(name: str, choice: str) -> None:
    data, indices = clip_of(name), CHOICES[choice]
    whole = all_frames(data)
    assert np.array_equal(frames_at(data, indices), [whole[index] for index in indices])


def test_a_repeated_index_repeats_the_frame() -> None:
    first, second, third = frames_at(clip_of("h264 mp4"), [7, 7, 9])
    assert np.array_equal(first, second)
    assert not np.array_equal(second, third)


@pytest.mark.parametrize("name", CODECS)
def test_the_probe_counts_what_a_decode_gives(name: str) -> None:
    data = clip_of(name)
    assert probe_video(data, LIMITS).frame_count == len(all_frames(data))


def test_the_probe_tells_rate_and_size() -> None:
    clip = probe_video(clip_of("h264 mp4"), LIMITS)
    assert (clip.codec, clip.width_px, clip.height_px, clip.rate, clip.duration_seconds) == ("h264", 96, 64, 30.0, 2.0)


def test_presentation_times_count_up_from_the_first_frame() -> None:
    assert np.allclose(probe_video(clip_of("h264 mp4"), LIMITS).times_seconds, np.arange(60) / 30)


def refused(data: bytes, limits: Limits = LIMITS) -> PreprocessorError:
    with pytest.raises(PreprocessorError) as caught:
        probe_video(data, limits, "clip-7")
    return caught.value


@pytest.mark.parametrize(
    ("make", "kind", "reason"),
    [
        (lambda: b"", UnsupportedMedia, "EMPTY_MEDIA"),
        (lambda: b"not a video at all" * 50, UnsupportedMedia, "NOT_MEDIA"),
        (lambda: bytes(range(256)) * 40, UnsupportedMedia, "NOT_MEDIA"),
        (audio_only_clip, UnsupportedMedia, "NO_VIDEO_STREAM"),
        (truncated_clip, CorruptMedia, "TRUNCATED_MEDIA"),
        (lambda: clip_of("h264 mp4")[:-2000], CorruptMedia, "TRUNCATED_MEDIA"),  # inside its index, which is at the end
    ],
    ids=["empty", "text", "garbage", "audio", "truncated", "no index"],
)
def test_a_file_that_is_no_whole_video_is_refused(make: object, kind: type[PreprocessorError], reason: str) -> None:
    error = refused(make())  # type: ignore[operator]
    assert (type(error), error.reason) == (kind, reason)


def test_a_refusal_names_the_medium() -> None:
    assert "clip-7" in refused(b"").message


def test_a_codec_without_a_decoder_is_unsupported() -> None:
    head, _, tail = clip_of("h264 mp4").rpartition(b"avc1")
    assert isinstance(refused(head + b"zzzz" + tail), UnsupportedMedia)


@pytest.mark.parametrize("safe_name", [False, True])
def test_a_list_of_other_files_opens_none_of_them(
    safe_name: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plain `av.open` follows such a list into the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clip.ts").write_bytes(clip_of("h264 mpeg-ts"))
    name = "clip.ts" if safe_name else str(tmp_path / "clip.ts")
    listing = f"ffconcat version 1.0\nfile {name}\n".encode()
    if safe_name:
        assert len(all_frames(listing)) == 60
    assert refused(listing).reason == "NOT_MEDIA"


@pytest.mark.parametrize(
    "listing",
    [
        b"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXT-X-PLAYLIST-TYPE:VOD\n#EXTINF:2.0,\nclip.ts\n#EXT-X-ENDLIST\n",
        b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nm=video 5004 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n",
        b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT2S"/>',
    ],
    ids=["hls", "sdp", "dash"],
)
def test_a_description_of_a_stream_is_no_media(listing: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clip.ts").write_bytes(clip_of("h264 mpeg-ts"))
    assert refused(listing).reason == "NOT_MEDIA"


def test_an_unknown_decoder_is_refused() -> None:
    data = clip_of("h264 mp4")
    with pytest.raises(InvalidRequest, match="pyav, opencv"):
        decode_frames(data, probe_video(data, LIMITS), Choice(np.array([0])), backend="gstreamer")


def test_a_frame_that_cannot_be_decoded_is_named_by_its_time() -> None:
    data = bytearray(clip_of("h264 mp4"))
    clip = probe_video(bytes(data), LIMITS)
    start = data.index(b"mdat") + 4
    data[start : start + 1500] = bytes(1500)
    with pytest.raises(CorruptMedia, match=r"0\.000 s"):
        list(decode_frames(bytes(data), clip, Choice(np.array([0]))))


def test_more_frames_than_the_limit_are_refused() -> None:
    assert isinstance(refused(clip_of("h264 mp4"), Limits(max_clip_frames=59)), LimitExceeded)


def test_larger_frames_than_the_limit_are_refused() -> None:
    assert isinstance(refused(clip_of("h264 mp4"), Limits(max_frame_pixels=96 * 64 - 1)), LimitExceeded)


class Stopped(Exception):
    pass


def stop_at(count: int) -> tuple[list[int], object]:
    """A check that raises when it is called for the `count`-th time, and its calls."""
    calls: list[int] = []

    def check() -> None:
        calls.append(1)
        if len(calls) == count:
            raise Stopped

    return calls, check


def test_a_check_stops_the_probe_between_packets() -> None:
    calls, check = stop_at(5)
    with pytest.raises(Stopped):
        probe_video(clip_of("h264 mp4"), LIMITS, check=check)  # type: ignore[arg-type]
    assert len(calls) == 5


def test_a_check_stops_the_decode_between_packets() -> None:
    data = clip_of("h264 mp4")
    clip = probe_video(data, LIMITS)
    calls, check = stop_at(5)
    with pytest.raises(Stopped):
        list(decode_frames(data, clip, Choice(np.array([59]), check=check)))  # type: ignore[arg-type]
    assert len(calls) == 5


def test_nothing_is_read_behind_the_last_wanted_frame() -> None:
    data = clip_of("h264 mp4")
    clip = probe_video(data, LIMITS)
    calls, check = stop_at(10**6)
    list(decode_frames(data, clip, Choice(np.array([0]), check=check)))  # type: ignore[arg-type]
    assert len(calls) < clip.frame_count
