"""Animated WebP as video, by Pillow: FFmpeg 8.1 reads only still ones.

An animation's frames are parts painted over one another, so every frame before a chosen one is decoded. Transparency is
dropped, as FFmpeg's RGB conversion drops that of a GIF. A still WebP is a video of one frame.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, UnidentifiedImageError

from preprocessor.config import Limits
from preprocessor.errors import CorruptMedia, UnsupportedMedia
from preprocessor.media.clip import IndexedClip
from preprocessor.media.container import truncated
from preprocessor.media.frames import Choice, Pixels, fill
from preprocessor.media.image_headers import webp_canvas
from preprocessor.media.probe import check_frame_size, check_span
from preprocessor.media.walk import too_many_frames
from preprocessor.types.request import OnDamage

_UNSTATED_DURATION_MS = 100  # what browsers show where a file states 0


def is_webp(data: bytes) -> bool:
    """Whether these are a WebP file's first bytes."""
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def probe_webp(
    data: bytes, limits: Limits, key: str, check: Callable[[], None], on_damage: OnDamage = OnDamage.FAIL
) -> IndexedClip:
    """Frames and their times from the chunks' headers; see `video.probe_video`."""
    if (canvas := webp_canvas(data)) is not None:  # before libwebp makes room for it
        check_frame_size(*canvas, limits, key)
    try:
        with Image.open(io.BytesIO(data), formats=["WEBP"]) as image:
            width, height = image.size
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        if int.from_bytes(data[4:8], "little") + 8 > len(data):
            raise truncated(key) from error
        raise UnsupportedMedia(
            f"{key}: not a WebP that can be read; send a complete file",
            reason="NOT_MEDIA",
            media_key=key,
        ) from error
    check_frame_size(width, height, limits, key)
    durations: list[int] = []
    for name, start, end in _chunks(data):
        check()
        if end > len(data):
            if on_damage is OnDamage.FAIL:
                raise truncated(key, f", inside frame {len(durations)}")
            break
        if name == b"ANMF":
            durations.append(int.from_bytes(data[start + 12 : start + 15], "little") or _UNSTATED_DURATION_MS)
        elif name in (b"VP8 ", b"VP8L"):
            durations.append(_UNSTATED_DURATION_MS)
        if len(durations) > limits.max_clip_frames:
            raise too_many_frames(limits, key)
    if not durations:
        raise CorruptMedia(f"{key}: the animation holds no frames", media_key=key)
    ends = np.cumsum(durations)
    check_span(int(ends[-1]) / 1000, limits, key)
    return IndexedClip(
        codec="webp",
        width_px=width,
        height_px=height,
        rate=len(durations) * 1000 / int(ends[-1]),
        duration_seconds=int(ends[-1]) / 1000,
        time_base_seconds=0.001,
        pts=(ends - durations).astype(np.int64),
        is_truncated=any(end > len(data) for _, _, end in _chunks(data)),
    )


def decode_webp(data: bytes, clip: IndexedClip, choice: Choice) -> Iterator[Pixels]:
    """See `frames.Decoder`."""
    with Image.open(io.BytesIO(data), formats=["WEBP"]) as image:
        yield from fill(_frames(image, clip, choice), lambda picture: np.asarray(picture.convert("RGB")), clip, choice)


def _frames(image: Image.Image, clip: IndexedClip, choice: Choice) -> Iterator[tuple[int, Image.Image]]:
    for index in range(clip.frame_count):
        choice.check()
        try:
            image.seek(index)
            image.load()
        except (EOFError, OSError):  # libwebp does not go on behind a damaged frame
            return
        choice.decoded(1)
        yield index, image.copy()


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and end of each chunk's content."""
    position, stop = 12, min(len(data), int.from_bytes(data[4:8], "little") + 8)
    while position + 8 <= stop:
        name, size = struct.unpack_from("<4sI", data, position)
        yield name, position + 8, position + 8 + size
        position += 8 + size + size % 2
