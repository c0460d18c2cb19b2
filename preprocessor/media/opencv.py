"""Decoding by OpenCV's FFmpeg, for pixels as a server has them that decodes with `cv2.VideoCapture`.

Compared with PyAV's frames (OpenCV 5.0, PyAV 18.1, 96x64 shapes, largest and mean difference of a value of 0 to 255):

| pixel format | largest | mean |
|---|---|---|
| yuv420p, yuv422p, yuv444p, 8 bits, even or odd 4:4:4; limited or full range; tagged BT.601, BT.709, BT.2020; GIF, APNG | 0 | 0 |
| yuv420p10le (H.264, HEVC) | 20 | 1.5 |
| yuv422p10le (ProRes) | 3 | 0.7 |
| yuv420p of odd width or height | 18 | 0.5 |

The differences are bicubic (OpenCV) for bilinear (PyAV) chroma, where swscale has no direct conversion.

OpenCV may return another frame than the requested one, or none, without an error. It leaves out frames that it cannot decode, or
ends there; it scales a picture of another size to the first one's; it does not convert an interlaced frame and returns
uninitialized memory. So every frame must pass three checks, or the file is refused with `DECODER_LIMIT`:

* its place: the frames come in the order of the probe, one for one, none left out;
* its time: exactly the probe's, so a file that gives no times is refused;
* its picture: PyAV decodes the chosen frames too. Both must show the same (`_SAME_WITHIN`), and it must not be interlaced.

A file that the PyAV decoder refuses is therefore refused with PyAV's reason (a change of size, damage), and OpenCV's limits are
never called damage. The price is that the chosen frames are decoded twice, and by OpenCV also all before them: use this
decoder for its pixels, not for speed. A damaged file with REPEAT is refused, for OpenCV does not tell which frames are good.
Some wheels (5.0's) have no AV1 decoder.

By default OpenCV opens the files that an ffconcat text names and the ports of an SDP text, even if it reads from memory. The
probe has refused such a file before, with PyAV's FFmpeg; OpenCV's own FFmpeg gets the same allowlist through the environment,
the only way to pass it options.
"""

from __future__ import annotations

import dataclasses
import io
import math
import os
import re
import tempfile
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from preprocessor.errors import CorruptMedia, UnsupportedMedia
from preprocessor.media.clip import IndexedClip
from preprocessor.media.codecs import ALLOWED_DECODERS
from preprocessor.media.container import VIDEO_FORMATS
from preprocessor.media.frames import Choice, Pixels, fill, unreported
from preprocessor.media.pyav import decode_with_pyav
from preprocessor.types.request import OnDamage

_LIMIT = "DECODER_LIMIT"
_CONVERTS_NO_INTERLACED = "converts no interlaced frames"
_TELLS_NO_DAMAGE = "does not say which frames of a damaged file are good"
_CLOCK_TOLERANCE_MS = 1e-3  # both count in the file's own units; only the sums of floats differ
_CELL = 8  # px
_SAME_WITHIN = 8  # of 255, for the mean of a cell
_SHARED_MEMORY = Path("/dev/shm")
_OPEN_FILES = Path("/proc/self/fd")
_OPTIONS = "OPENCV_FFMPEG_CAPTURE_OPTIONS"  # "name;value" parted by "|"; OpenCV 5.0, videoio/src/cap_ffmpeg_impl.hpp

# A file is not to write into the service's log, neither through OpenCV nor through its FFmpeg.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # libavutil/log.h: AV_LOG_QUIET


def decode_with_opencv(data: bytes, clip: IndexedClip, choice: Choice) -> Iterator[Pixels]:
    """See `frames.Decoder`.

    Raises:
        UnsupportedMedia: `DECODER_LIMIT` where only PyAV can do it; else as `decode_with_pyav`.
    """
    if clip.codec == "webp":  # nor does PyAV: see `media.webp`
        raise _limit(choice, "reads no animated WebP")
    if choice.on_damage is OnDamage.REPEAT and clip.is_truncated:
        raise _limit(choice, _TELLS_NO_DAMAGE)
    strict = dataclasses.replace(choice, on_damage=OnDamage.FAIL)
    try:
        yield from _checked(data, clip, strict)
    except CorruptMedia as error:
        if choice.on_damage is OnDamage.FAIL:
            raise
        raise _limit(choice, _TELLS_NO_DAMAGE) from error


def opencv_version() -> str:
    """Of the library and of the FFmpeg in it, which decodes and converts: "OpenCV 5.0.0 / libavcodec 62.28.101"."""
    found = re.search(r"avcodec:\s+YES \(([\d.]+)\)", cv2.getBuildInformation())
    return f"OpenCV {cv2.__version__} / libavcodec {found[1] if found else 'of unknown version'}"


def _checked(data: bytes, clip: IndexedClip, choice: Choice) -> Iterator[Pixels]:
    """OpenCV's frames, each compared with PyAV's before it is given out."""
    seen = deque[av.VideoFrame](maxlen=1)  # the frame of the last picture
    true_pictures = decode_with_pyav(data, clip, dataclasses.replace(choice, decoded=unreported), seen.append)
    try:
        if not len(clip.frame_of_packet):
            raise _limit(choice, "numbers frames by their times, and this file gives none that can be trusted")
        if clip.is_interlaced:
            raise _limit(choice, _CONVERTS_NO_INTERLACED)
        with _capture(data, choice, clip.max_frame_pixels) as capture:
            pictures = fill(_frames(capture, clip, choice), clip.upright, clip, choice)
            for truth in true_pictures:
                if seen[-1].interlaced_frame:  # what is in memory instead may be the frame before, which looks the same
                    raise _limit(choice, _CONVERTS_NO_INTERLACED)
                picture = _next_of(pictures, choice)
                if not _show_the_same(picture, truth):
                    raise _limit(choice, "returns other pictures than the file holds")
                yield picture
    except UnsupportedMedia as error:
        if error.reason == _LIMIT:  # only of a file that PyAV decodes is it true that PyAV should be used
            for _ in true_pictures:
                continue
        raise


def _next_of(pictures: Iterator[Pixels], choice: Choice) -> Pixels:
    try:
        return next(pictures)
    except CorruptMedia as error:  # PyAV has the frame, so the file is not to blame
        raise _limit(choice, "does not decode all of the frames") from error


def _show_the_same(picture: Pixels, truth: Pixels) -> bool:
    """Whether two pictures [height, width, 3] differ by no more than two ways of converting colours do."""
    if picture.shape != truth.shape:
        return False
    height, width, _ = truth.shape
    size = (-(-width // _CELL), -(-height // _CELL))  # means over squares: what chroma filters shift evens out
    means, true_means = (
        cv2.resize(np.ascontiguousarray(one), size, interpolation=cv2.INTER_AREA).astype(np.int16)
        for one in (picture, truth)
    )
    return bool(np.abs(means - true_means).max() <= _SAME_WITHIN)


def _frames(capture: Any, clip: IndexedClip, choice: Choice) -> Iterator[tuple[int, Pixels]]:
    """The chosen frames, as long as OpenCV gives every frame at its own time."""
    wanted = frozenset(choice.indices.tolist())
    times_ms = ((clip.times_seconds - clip.times_seconds[0]) * 1000).tolist()
    for index, true_ms in enumerate(times_ms):
        choice.check()
        if not capture.grab():
            if index == 0:
                raise _limit(choice, f"has no decoder for {clip.codec}, or finds no frame in the file")
            return
        choice.decoded(1)
        time_ms = capture.get(cv2.CAP_PROP_POS_MSEC)  # since the stream's start
        if not math.isclose(time_ms, true_ms, rel_tol=1e-9, abs_tol=_CLOCK_TOLERANCE_MS):
            raise _limit(
                choice, f"gives a frame at {time_ms / 1000:.3f} s where the file has one at {true_ms / 1000:.3f} s"
            )
        if index in wanted:
            is_whole, picture = capture.retrieve()
            if not is_whole:
                return
            yield index, np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))


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
        lists = {"format_whitelist": ",".join(VIDEO_FORMATS), "codec_whitelist": ",".join(ALLOWED_DECODERS)}
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
    return UnsupportedMedia(f"{choice.key}: OpenCV {what}; use the pyav decoder", reason=_LIMIT, media_key=choice.key)
