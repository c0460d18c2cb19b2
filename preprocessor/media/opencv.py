"""Decoding by OpenCV's FFmpeg, for comparison and for builds whose PyAV lacks a codec.

Compared with PyAV's frames (OpenCV 5.0, PyAV 18.1, 96x64 shapes, largest and mean difference of a value of 0 to 255):

| pixel format | largest | mean |
|---|---|---|
| yuv420p, yuv422p, yuv444p, 8 bits, even or odd 4:4:4; limited or full range; tagged BT.601, BT.709, BT.2020; GIF, APNG | 0 | 0 |
| yuv420p10le (H.264, HEVC) | 20 | 1.5 |
| yuv422p10le (ProRes) | 3 | 0.7 |
| yuv420p of odd width or height | 18 | 0.5 |

The differences are bicubic (OpenCV) for bilinear (PyAV) chroma, where swscale has no direct conversion. Interlaced frames it
cannot convert at all, and its wheels have no software AV1: both are refused.

OpenCV decodes every frame up to the last chosen one, and silently leaves out what it cannot decode, or ends there. So each
frame's time is checked against the probe's, and a file that gives no times is refused. It cannot say what is damaged:
REPEAT on a damaged file is refused, and a picture that FFmpeg patched up passes for good.

Left alone, OpenCV follows an ffconcat text to the files it names and opens the ports of an SDP text, also where it reads from
memory. The probe has refused such a file before, with PyAV's FFmpeg; OpenCV's own is held to the same list, through the one
way that it takes options: its environment.
"""

from __future__ import annotations

import dataclasses
import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from preprocessor.errors import CorruptMedia, UnsupportedMedia
from preprocessor.media.clip import IndexedClip
from preprocessor.media.codecs import DECODERS
from preprocessor.media.container import VIDEO_FORMATS
from preprocessor.media.frames import Choice, Pixels, fill
from preprocessor.types.asked import OnDamage

_SHARED_MEMORY = Path("/dev/shm")
_OPEN_FILES = Path("/proc/self/fd")
_OPTIONS = "OPENCV_FFMPEG_CAPTURE_OPTIONS"  # "name;value" parted by "|"; OpenCV 5.0, videoio/src/cap_ffmpeg_impl.hpp

# A file is not to write into the service's log, neither through OpenCV nor through its FFmpeg.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # libavutil/log.h: AV_LOG_QUIET


def decode_with_opencv(data: bytes, clip: IndexedClip, choice: Choice) -> Iterator[Pixels]:
    """See `frames.Decoder`.

    Raises:
        UnsupportedMedia: `DECODER_LIMIT`, `RESOLUTION_CHANGE`.
    """
    if not len(clip.frame_of_packet):
        raise _limit(choice, "numbers frames by their times, and this file gives none that can be trusted")
    if clip.is_interlaced:  # OpenCV 5.0 prints "Cannot convert interlaced to progressive frames" and returns black
        raise _limit(choice, "converts no interlaced frames")
    if choice.on_damage is OnDamage.REPEAT and clip.is_truncated:
        raise _limit(choice, "does not say which frames of a damaged file are good")
    with _capture(data, choice, clip.max_frame_pixels) as capture:
        try:
            strict = dataclasses.replace(choice, on_damage=OnDamage.FAIL)
            yield from fill(_frames(capture, clip, choice), clip.upright, clip, strict)
        except CorruptMedia as error:
            if choice.on_damage is OnDamage.FAIL:
                raise
            raise _limit(choice, "does not say which frames of a damaged file are good") from error


def _frames(capture: Any, clip: IndexedClip, choice: Choice) -> Iterator[tuple[int, Pixels]]:
    """The chosen frames that OpenCV finds, by their times."""
    wanted = frozenset(choice.indices.tolist())
    times_ms = (clip.times_seconds - clip.times_seconds[0]) * 1000
    first_gap_ms = float(times_ms[1]) if clip.frame_count > 1 else 1000.0
    index, is_first = 0, True
    while capture.grab():
        choice.check()
        choice.decoded(1)
        time_ms = capture.get(cv2.CAP_PROP_POS_MSEC)
        if is_first and abs(time_ms) > first_gap_ms / 2:
            raise _limit(choice, "does not begin with the file's first frame")
        is_first = False
        while index < clip.frame_count - 1 and abs(times_ms[index + 1] - time_ms) < abs(times_ms[index] - time_ms):
            index += 1
        if index in wanted:
            is_whole, picture = capture.retrieve()
            if not is_whole:
                return
            width, height = clip.coded_size
            if picture.shape[:2] != (height, width):
                raise UnsupportedMedia(
                    f"{choice.key}: the picture changes from {width}x{height} to {picture.shape[1]}x{picture.shape[0]} inside "
                    "the file; re-encode it to one size",
                    reason="RESOLUTION_CHANGE",
                    media_key=choice.key,
                )
            yield index, np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
        index += 1
        if index == clip.frame_count:
            return
    if is_first:
        raise _limit(choice, f"has no decoder for {clip.codec}, or finds no frame in the file")


class _Seekable(io.BytesIO):
    """A file in memory that says -1 to a place that is none. Where `seek` raises, OpenCV 5.0 reads a null pointer."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError, OSError):
            return -1


@contextmanager
def _capture(data: bytes, choice: Choice, max_frame_pixels: int = 1 << 31) -> Iterator[Any]:
    """A capture over the bytes in memory, or over a nameless file where OpenCV is older than 4.13."""
    with _nameless_file(data) if not _reads_streams() else _Seekable(data) as source:
        # `source` must outlive the capture, which does not hold it: OpenCV would read freed memory
        target: Any = source if isinstance(source, io.BytesIO) else str(source)
        protocol = "none" if target is source else "file"
        lists = {"format_whitelist": ",".join(VIDEO_FORMATS), "codec_whitelist": ",".join(DECODERS)}
        options = {**lists, "protocol_whitelist": protocol, "max_pixels": str(max_frame_pixels)}
        os.environ[_OPTIONS] = "|".join(f"{name};{value}" for name, value in options.items())
        capture: Any = cv2.VideoCapture(target, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        try:
            if not capture.isOpened():
                raise _limit(choice, "cannot open the file")
            capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 0)  # ours mirrors too
            yield capture
        finally:
            capture.release()


def _reads_streams() -> bool:
    major, minor = (int(part) for part in cv2.__version__.split(".")[:2])
    return (major, minor) >= (4, 13)


@contextmanager
def _nameless_file(data: bytes) -> Iterator[Path]:
    """A path to the bytes that no other process sees and that is gone with the last reader, even if this one is killed."""
    folder = None
    if _SHARED_MEMORY.is_dir():
        room = os.statvfs(_SHARED_MEMORY)
        folder = _SHARED_MEMORY if room.f_bavail * room.f_frsize > 2 * len(data) else None
    if not _OPEN_FILES.is_dir():  # no Linux: the file has a name for as long as it is read
        with tempfile.NamedTemporaryFile() as named:
            named.write(data)
            named.flush()
            yield Path(named.name)
        return
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(data)
        file.flush()
        yield _OPEN_FILES / str(file.fileno())


def _limit(choice: Choice, what: str) -> UnsupportedMedia:
    return UnsupportedMedia(
        f"{choice.key}: OpenCV {what}; use the pyav decoder", reason="DECODER_LIMIT", media_key=choice.key
    )
