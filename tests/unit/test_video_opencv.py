"""The OpenCV decoder: PyAV's pixels where the conversions agree, a clear refusal where it cannot do as asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from preprocessor.config import Limits
from preprocessor.errors import PreprocessorError, UnsupportedMedia
from preprocessor.media import opencv
from preprocessor.media.frames import Choice, unreported
from preprocessor.media.video import decode_frames, probe_video
from preprocessor.types.request import OnDamage
from tests.media import damaged, decoded_frames, keyframe_packets, moving_shapes_clip, truncated_clip
from tests.odd_clips import (
    broken_middle,
    closed_group_start,
    encode,
    interlaced,
    joined,
    misstated_webm,
    numbered,
    packed_avi,
    run_of,
    with_gap,
)

LIMITS = Limits()
ONLY_THE_FIRST = Choice(np.zeros(1, np.int64), "clip", lambda: None, OnDamage.FAIL, unreported)
SMALL = {"seconds": 1, "rate": 30, "width": 96, "height": 64}
GROUPS = (("g", "10"),)
X265 = (("x265-params", "log-level=none"),)
EQUAL = {
    "h264": {},
    "h264, ts": {"container": "mpegts"},
    "hevc": {"codec": "libx265", "options": X265},
    "vp9": {"codec": "libvpx-vp9", "container": "webm"},
    "mpeg4": {"codec": "mpeg4"},
    "mjpeg": {"codec": "mjpeg", "container": "mov", "pixel_format": "yuvj420p"},
    "4:2:2": {"pixel_format": "yuv422p"},
    "4:4:4, odd size": {"pixel_format": "yuv444p", "width": 95, "height": 63},
    "full range": {"color_range": 2},
    "BT.709": {"colorspace": 1},
    "turned": {"turn_degrees": 90},
    "mirrored": {"is_mirrored": True},
}
CLOSE = {  # the largest difference that the module's table states
    "10 bits": (20, {"pixel_format": "yuv420p10le"}),
    "prores": (3, {"codec": "prores_ks", "container": "mov", "pixel_format": "yuv422p10le"}),
    "4:2:0, odd size": (18, {"codec": "libvpx-vp9", "container": "webm", "width": 95, "height": 63}),
}


NO_B = {"bf": "0"}
INTERLACED = {"flags": "+ildct+ilme"}
LARGE = (20, 100, 96, 96)
ODD: Mapping[str, Callable[[], bytes]] = {  # files of which OpenCV gives no frame, a wrong one, or one at another time
    "interlaced under a progressive header": interlaced,
    "lower field first": lambda: interlaced(x264="bff=1"),
    "only flagged as interlaced": lambda: interlaced(x264="fake-interlaced=1"),
    "interlaced MPEG-4": lambda: encode(run_of(20), "mpeg4", "avi", options=INTERLACED),
    "interlaced from the middle on": lambda: joined(
        encode(run_of(20), "libx264", "mpegts", options=NO_B), interlaced("mpegts", first=20), "mpegts"
    ),
    "nothing moves in interlaced frames": lambda: encode(
        [numbered(5)] * 10,
        container="matroska",
        options={**INTERLACED, "field_order": "progressive", "x264-params": "tff=1"},
    ),
    "a gap behind the first frame": lambda: with_gap(encode(run_of(40), "libx264", "avi", options=NO_B), 0),
    "a gap in the middle": lambda: with_gap(encode(run_of(40), "libx264", "avi", options=NO_B), 10),
    "late decoding times": lambda: with_gap(
        encode(run_of(40), "libx264", "avi", options={"x264-params": "bframes=2:b-bias=-100:b-adapt=1"}), 0
    ),
    "reordered frames in AVI": lambda: encode(run_of(20), "libx264", "avi", options={"bf": "3"}),
    "packed B-frames": packed_avi,
    "a closed group first": closed_group_start,
    "MPEG-1 in a program stream": lambda: encode(run_of(20), "mpeg1video", "mpeg", rate=25, options={"bf": "2"}),
    "another width stated": misstated_webm,
    "another width stated, VP9": lambda: misstated_webm(codec="libvpx-vp9"),
    "another pixel format from the middle on": lambda: joined(
        encode(run_of(20), "libx264", "mpegts", pix_fmt="yuv444p", options=NO_B),
        encode(run_of(20), "libx264", "mpegts", pix_fmt="yuv420p", options=NO_B),
        "mpegts",
    ),
    "AV1": lambda: clip_of({"codec": "libsvtav1", "options": (("preset", "12"), ("svtav1-params", "lp=1"))}),
    "a damaged frame": lambda: broken_middle(encode(run_of(30), container="matroska", options={"g": "10"}), 14),
}
RESIZED = {
    "h264": ("libx264", "mpegts", "yuv420p", NO_B),
    "h264, mkv": ("libx264", "matroska", "yuv420p", {"bf": "0", "x264-params": "repeat-headers=1"}),
    "hevc": ("libx265", "mpegts", "yuv420p", {}),
    "vp8": ("libvpx", "webm", "yuv420p", {"b:v": "1M"}),
    "vp9": ("libvpx-vp9", "webm", "yuv420p", {"b:v": "1M"}),
    "mjpeg": ("mjpeg", "avi", "yuvj420p", {}),
    "mpeg4": ("mpeg4", "avi", "yuv420p", {}),
    "prores": ("prores_ks", "mov", "yuv422p10le", {}),
    "without times that can be trusted": ("mpeg2video", "mpegts", "yuv420p", NO_B),
    "interlaced": ("libx264", "mpegts", "yuv420p", {**INTERLACED, "bf": "0", "x264-params": "tff=1"}),
}


def clip_of(settings: object) -> bytes:
    return moving_shapes_clip(**{**SMALL, **settings})  # type: ignore[dict-item]


def frames_of(data: bytes, indices: list[int], backend: str, **how: object) -> npt.NDArray[np.uint8]:
    facts = probe_video(data, LIMITS, on_damage=how.get("on_damage", OnDamage.FAIL))  # type: ignore[arg-type]
    frames = decode_frames(data, facts, Choice(np.array(indices), **how), backend=backend)  # type: ignore[arg-type]
    return np.stack([frame.copy() for frame in frames])


@pytest.mark.parametrize("name", EQUAL)
def test_it_gives_the_pixels_of_pyav(name: str) -> None:
    data = clip_of(EQUAL[name])
    indices = [0, 1, 7, 7, 29]
    assert np.array_equal(frames_of(data, indices, "opencv"), frames_of(data, indices, "pyav"))


@pytest.mark.parametrize("name", CLOSE)
def test_where_conversions_differ_it_is_by_what_the_table_states(name: str) -> None:
    largest, settings = CLOSE[name]
    data = clip_of(settings)
    ours = frames_of(data, [0, 29], "pyav").astype(int)
    theirs = frames_of(data, [0, 29], "opencv").astype(int)
    assert 0 < np.abs(ours - theirs).max() <= largest


def test_a_nameless_file_serves_an_opencv_that_reads_no_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    data = clip_of({})
    expected = frames_of(data, [3, 20], "opencv")
    monkeypatch.setattr(cv2, "__version__", "4.12.0")
    assert np.array_equal(frames_of(data, [3, 20], "opencv"), expected)


@pytest.mark.parametrize("shared_memory", [Path("/dev/shm"), Path("/nowhere")])
def test_the_nameless_file_is_in_no_folder_and_gone_afterwards(
    shared_memory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opencv, "_SHARED_MEMORY", shared_memory)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(ZeroDivisionError), opencv._nameless_file(b"content") as path:
        assert path.read_bytes() == b"content"
        assert list(tmp_path.iterdir()) == []
        raise ZeroDivisionError
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize(
    "settings",
    [
        {"container": "avi"},
        {"container": "h264"},
        {"codec": "mpeg4", "container": "avi", "options": (("bf", "2"),)},
        {"options": (("x264-params", "interlaced=1"),)},
    ],
    ids=["avi with reordered frames", "no container", "avi whose clock starts late", "interlaced"],
)
def test_what_it_cannot_do_is_said(settings: object) -> None:
    with pytest.raises(UnsupportedMedia) as caught:
        frames_of(clip_of(settings), [0], "opencv")
    assert caught.value.reason == "DECODER_LIMIT"


def result_of(data: bytes, indices: list[int], backend: str) -> npt.NDArray[np.uint8] | str:
    """The frames, or the reason why not."""
    try:
        return frames_of(data, indices, backend)
    except PreprocessorError as error:
        return error.reason


@pytest.mark.parametrize("name", ODD)
def test_a_chosen_frame_is_that_of_pyav_or_the_file_is_refused_and_not_called_damaged(name: str) -> None:
    data = ODD[name]()
    try:
        frame_count = probe_video(data, LIMITS).frame_count
    except PreprocessorError:
        return  # then no decoder is asked
    last = frame_count - 1
    for indices in [[0], [3], [frame_count // 2], [last], [1, 5, last]]:
        ours, theirs = (result_of(data, indices, backend) for backend in ("pyav", "opencv"))
        if isinstance(theirs, str):
            assert theirs in {"DECODER_LIMIT", ours if isinstance(ours, str) else None}, indices
        else:
            assert np.array_equal(ours, theirs), indices


@pytest.mark.parametrize("name", RESIZED)
def test_both_decoders_refuse_a_change_of_size_alike(name: str) -> None:
    codec, container, pixel_format, options = RESIZED[name]
    small, large = (
        encode(run_of(*of), codec, container, pix_fmt=pixel_format, options=options) for of in ((20,), LARGE)
    )
    data = joined(small, large, container)
    assert [result_of(data, [1, 30], backend) for backend in ("pyav", "opencv")] == ["RESOLUTION_CHANGE"] * 2


def test_a_file_that_pyav_refuses_is_not_recommended_to_it() -> None:
    """OpenCV fails at the first frame, which is interlaced, long before the size changes."""
    small, large = interlaced("mpegts"), encode(run_of(*LARGE), "libx264", "mpegts", options=NO_B)
    with_both = joined(small, large, "mpegts")
    assert result_of(small, [1, 15], "opencv") == "DECODER_LIMIT"
    assert result_of(with_both, [1, 30], "opencv") == "RESOLUTION_CHANGE"


def test_an_empty_packet_is_not_taken_for_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Theora writes one for "as before"; OpenCV takes it for the end of the file."""
    grabs = iter(range(3))
    data = encode(run_of(20), options=NO_B)

    class Ending:
        def __init__(self, capture: object) -> None:
            self._capture = capture

        def __getattr__(self, name: str) -> object:
            return getattr(self._capture, name)

        def grab(self) -> bool:
            return next(grabs, None) is not None and self._capture.grab()  # type: ignore[attr-defined]

    capture = cv2.VideoCapture
    monkeypatch.setattr(cv2, "VideoCapture", lambda *arguments: Ending(capture(*arguments)))
    assert result_of(data, [10], "opencv") == "DECODER_LIMIT"


def test_a_frame_that_it_leaves_out_is_no_other_frame() -> None:
    data = clip_of({"options": GROUPS, "codec": "mpeg4"})
    broken = damaged(data, keyframe_packets(data)[1])
    with pytest.raises(PreprocessorError) as caught:
        frames_of(broken, [10], "opencv")
    assert caught.value.reason == "UNDECODABLE_FRAME"
    assert np.array_equal(frames_of(broken, [9], "opencv")[0], decoded_frames(data)[9])


@pytest.mark.parametrize("make", [truncated_clip, lambda: damaged(clip_of({"codec": "mpeg4"}), 0)])
def test_it_cannot_repair(make: object) -> None:
    with pytest.raises(UnsupportedMedia) as caught:
        frames_of(make(), [0], "opencv", on_damage=OnDamage.REPEAT)  # type: ignore[operator]
    assert caught.value.reason == "DECODER_LIMIT"


def test_an_animated_webp_is_beyond_it() -> None:
    from tests.media import animation

    with pytest.raises(UnsupportedMedia) as caught:
        frames_of(animation(), [0], "opencv")
    assert caught.value.reason == "DECODER_LIMIT"


def test_a_file_that_makes_ffmpeg_seek_to_before_its_beginning_is_read_like_any_other() -> None:
    """OpenCV 5.0 reads a null pointer where a stream's `seek` raises; such files were found by `make fuzz`."""
    data = moving_shapes_clip(**SMALL, codec="mpeg4", container="avi")
    chunk = data.index(b"00dc", data.index(b"movi") + 1000)
    with opencv._capture(data[:chunk] + bytes(300) + data[chunk:], ONLY_THE_FIRST) as capture:
        while capture.grab():
            continue
    seekable = opencv._Seekable(b"0123")
    assert (seekable.seek(2), seekable.seek(-5), seekable.seek(1 << 70), seekable.tell()) == (2, -1, -1, 2)


@pytest.mark.skipif(not opencv._reads_streams(), reason="reads from a file here")
def test_damaged_files_write_nothing_into_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    data = bytearray(moving_shapes_clip(**SMALL, options=(("g", "5"),)))
    data[100:400] = bytes(300)
    with pytest.raises(UnsupportedMedia), opencv._capture(b"no file at all" * 50, ONLY_THE_FIRST):
        pass
    with opencv._capture(bytes(data), ONLY_THE_FIRST) as capture:
        while capture.grab():
            continue
    assert capfd.readouterr().err == ""
