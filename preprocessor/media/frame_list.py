"""A video that came as a list of frames: image files or raw pixels, one after another in one file, each with its time.

The caller has chosen the frames, so none is left out or repeated. All else is as for a video: the limits on size, number and time
of its frames, and what becomes of a frame that cannot be decoded. A frame's header is read while the request is planned, its
pixels while its rows are written. They are those of transformers' `load_image`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from preprocessor.config import Limits
from preprocessor.errors import CorruptMedia, InvalidRequest, LimitExceeded, PreprocessorError, UnsupportedMedia
from preprocessor.media.clip import undecodable
from preprocessor.media.frames import Choice, Pixels, fill
from preprocessor.media.image import decode_image, probe_image
from preprocessor.media.probe import check_frame_size, check_span
from preprocessor.media.walk import too_many_frames
from preprocessor.types.request import FrameEncoding, FrameList, Media, Modality, OnDamage, Sampling, SamplingBasis
from preprocessor.types.source import FrameChoice, FrameListInfo, ImageInfo

FORMATS = ("JPEG", "PNG", "WEBP")
RGB24 = "RGB24"

_UNREADABLE = frozenset({"NOT_MEDIA", "EMPTY_MEDIA"})  # beside `CorruptMedia`, what damage makes of an image file


def check_frame_list(medium: Media, frames: FrameList, limits: Limits) -> None:
    """Refuse what no file could satisfy, before the file is looked at.

    Raises:
        InvalidRequest: `INVALID_FRAMES`; `SAMPLING_CONFLICT` where the request chooses among the frames.
        LimitExceeded: `TOO_MANY_FRAMES`, `VIDEO_TOO_LONG`, `MEDIA_TOO_LARGE`, `FRAME_TOO_LARGE`, `SIDE_TOO_LONG`.
    """
    key, count = medium.key, len(frames.sizes_bytes)
    if medium.modality is not Modality.VIDEO:
        raise _invalid("only a video takes frames", "", key)
    if medium.sampling != Sampling():
        raise InvalidRequest(
            f"{key}: frames that are given are all used; leave sampling out",
            reason="SAMPLING_CONFLICT",
            field="media[].sampling",
            media_key=key,
        )
    if not count:
        raise _invalid("there are no frames; give at least one", ".sizes_bytes", key)
    if count > limits.max_clip_frames:
        raise too_many_frames(limits, key)
    _check_sizes(frames, limits, key)
    _check_times(frames, key)
    check_span(_end_seconds(frames), limits, key)


def probe_frame_list(medium: Media, frames: FrameList, limits: Limits, check: Callable[[], None]) -> FrameListInfo:
    """Facts of every frame, from its header; no pixel is decoded.

    Args:
        frames: Of this medium, as `check_frame_list` let them through.
        check: Called between frames; raises to stop.
    Raises:
        InvalidRequest: `SIZE_MISMATCH`: the sizes are not those of the file.
        UnsupportedMedia: `RESOLUTION_CHANGE`; `UNSUPPORTED_FORMAT`; `NOT_MEDIA`, `EMPTY_MEDIA`.
        CorruptMedia: A header is damaged. With `OnDamage.REPEAT`, this and the line above hold only where no header can be
            read; of the others `decode_frame_list` says what becomes.
        LimitExceeded: `FRAME_TOO_LARGE`, or as `probe_image`.
    """
    offsets = np.concatenate(([0], np.cumsum(frames.sizes_bytes, dtype=np.int64)))
    if offsets[-1] != len(medium.data):
        raise InvalidRequest(
            f"{medium.key}: the frames' sizes add up to {offsets[-1]} bytes, and the file has {len(medium.data)}",
            reason="SIZE_MISMATCH",
            field="media[].frames.sizes_bytes",
            media_key=medium.key,
        )
    times = _times(frames)
    rate = _rate(frames, times)
    codec, decoder, width, height = RGB24, "", frames.width_px, frames.height_px
    if frames.encoding is FrameEncoding.IMAGE_FILE:
        pictures = _probe_images(medium, offsets, limits, check)
        codec, decoder = (", ".join(dict.fromkeys(values)) for values in zip(*pictures[0], strict=True))
        width, height = pictures[1]
    return FrameListInfo(codec, decoder, width, height, rate, len(times) / rate, times, offsets)


def choose_every_frame(listed: FrameListInfo, frames: FrameList) -> FrameChoice:
    """Every frame once, at the time that the caller has given."""
    return FrameChoice(
        indices=np.arange(listed.frame_count, dtype=np.int64),
        times_seconds=listed.times_seconds,
        prompt_times_seconds=listed.times_seconds,
        sampled_fps=listed.rate,
        basis=SamplingBasis.TIME if frames.fps is None else SamplingBasis.INDEX,
    )


def decode_frame_list(data: bytes, clip: FrameListInfo, choice: Choice) -> Iterator[Pixels]:
    """The chosen frames as `frames.Decoder` gives them.

    Raises:
        CorruptMedia: `UNDECODABLE_FRAME`: a frame cannot be decoded, or is not what its header says (FAIL), or none can (REPEAT).
    """
    if clip.decoder:
        yield from fill(_decoded(data, clip, choice), lambda pixels: pixels, clip, choice)
        return
    pixels = np.empty((clip.height_px, clip.width_px, 3), np.uint8)  # torch takes no memory that cannot be written
    for index in choice.indices.tolist():
        choice.check()
        pixels.reshape(-1)[:] = np.frombuffer(data, np.uint8, pixels.size, int(clip.offsets[index]))
        choice.decoded(1)
        yield pixels


def _decoded(data: bytes, clip: FrameListInfo, choice: Choice) -> Iterator[tuple[int, Pixels]]:
    """(index, pixels) of the chosen frames that can be decoded."""
    for index in dict.fromkeys(choice.indices.tolist()):
        choice.check()
        try:
            pixels = decode_image(data[clip.offsets[index] : clip.offsets[index + 1]], choice.key, is_frame=True)
        except (CorruptMedia, UnsupportedMedia) as error:
            if choice.on_damage is OnDamage.FAIL:
                raise undecodable(clip, index, choice.key) from error
            continue
        if pixels.shape[:2] != (clip.height_px, clip.width_px):
            if choice.on_damage is OnDamage.FAIL:
                raise undecodable(clip, index, choice.key)
            continue
        choice.decoded(1)
        yield index, pixels


def _probe_images(
    medium: Media, offsets: npt.NDArray[np.int64], limits: Limits, check: Callable[[], None]
) -> tuple[list[tuple[str, str]], tuple[int, int]]:
    """(format, decoder) of the image files, each once, and the width and height of all."""
    kinds: dict[tuple[str, str], None] = {}
    first: tuple[int, ImageInfo] | None = None
    damage: PreprocessorError | None = None
    for index, (start, stop) in enumerate(itertools.pairwise(offsets.tolist())):
        check()
        name = f"{medium.key}, frame {index}"
        try:
            image = probe_image(medium.content[start:stop], limits, name)
            check_frame_size(image.width_px, image.height_px, limits, name)
        except (CorruptMedia, UnsupportedMedia, LimitExceeded) as error:
            if error.reason == "NOT_MEDIA":  # whose message names formats that no frame has
                what = f"{name}: not an image that can be read; frames are JPEG, PNG or WebP, or RGB24"
                error = UnsupportedMedia(what, reason=error.reason)
            error.metadata["media_key"] = medium.key
            if medium.on_damage is OnDamage.FAIL or not _is_damage(error):
                raise error
            damage = damage or error
            continue
        if image.format not in FORMATS:
            raise UnsupportedMedia(
                f"{name}: the image is {image.format}; frames are JPEG, PNG or WebP, or RGB24",
                reason="UNSUPPORTED_FORMAT",
                media_key=medium.key,
            )
        first = first or (index, image)
        if (image.width_px, image.height_px) != (first[1].width_px, first[1].height_px):
            raise UnsupportedMedia(
                f"{name} is {image.width_px}x{image.height_px}, and frame {first[0]} {first[1].width_px}x{first[1].height_px}; "
                "the frames of one video have one size",
                reason="RESOLUTION_CHANGE",
                media_key=medium.key,
            )
        kinds[image.format, image.decoder] = None
    if first is None:
        assert damage is not None, "there is at least one frame"
        raise damage
    return list(kinds), (first[1].width_px, first[1].height_px)


def _is_damage(error: PreprocessorError) -> bool:
    return isinstance(error, CorruptMedia) or error.reason in _UNREADABLE


def _times(frames: FrameList) -> npt.NDArray[np.float64]:
    """When each frame is shown, float64 [n], in seconds."""
    if frames.fps is not None:
        return np.arange(len(frames.sizes_bytes)) / frames.fps
    return np.array(frames.times_seconds, np.float64)


def _end_seconds(frames: FrameList) -> float:
    """When the last frame is no longer shown."""
    if frames.fps is not None:
        return len(frames.sizes_bytes) / frames.fps
    times = _times(frames)
    return frames.duration_seconds or float(times[-1]) + 1 / _rate(frames, times)


def _rate(frames: FrameList, times: npt.NDArray[np.float64]) -> float:
    """Frames a second; 1 of a single frame with a time.

    Source: transformers 5.23, VideoMetadata.sampled_fps, where the video's length is known.
    """
    if frames.fps is not None:
        return frames.fps
    if frames.duration_seconds is not None:
        return len(times) / frames.duration_seconds
    return (len(times) - 1) / float(times[-1] - times[0]) if len(times) > 1 else 1.0


def _check_sizes(frames: FrameList, limits: Limits, key: str) -> None:
    width, height = frames.width_px, frames.height_px
    if min(frames.sizes_bytes) < 0:
        raise _invalid(f"a frame of {min(frames.sizes_bytes)} bytes", ".sizes_bytes", key)
    if frames.encoding is FrameEncoding.RGB24:
        if min(width, height) <= 0:
            side = "width_px" if width <= 0 else "height_px"
            raise _invalid(f"RGB24 frames of {width}x{height}; give the width and height in pixels", f".{side}", key)
        check_frame_size(width, height, limits, key)
        wrong = next((index for index, size in enumerate(frames.sizes_bytes) if size != width * height * 3), None)
        if wrong is not None:
            told = f"frame {wrong} has {frames.sizes_bytes[wrong]} bytes; RGB24 of {width}x{height} takes {width * height * 3}"
            raise _invalid(told, ".sizes_bytes", key)
        return
    if width or height:
        side = "width_px" if width else "height_px"
        raise _invalid("width and height are for RGB24; image files state their own", f".{side}", key)
    largest, most_bytes = max(frames.sizes_bytes), limits.max_file_bytes(Modality.IMAGE)
    if largest > most_bytes:
        raise LimitExceeded(
            f"{key}: a frame of {largest} bytes; at most {most_bytes} are accepted",
            reason="MEDIA_TOO_LARGE",
            field="media[].frames.sizes_bytes",
            media_key=key,
        )


def _check_times(frames: FrameList, key: str) -> None:
    times, count = frames.times_seconds, len(frames.sizes_bytes)
    if (frames.fps is None) == (times is None):
        raise _invalid("give either fps or times_seconds", "", key)
    if frames.fps is not None and not (math.isfinite(frames.fps) and frames.fps > 0):
        raise _invalid(f"fps is {frames.fps:g}; give a number above 0", ".fps", key)
    if times is None:
        if frames.duration_seconds is not None:
            raise _invalid("a rate tells the duration; leave duration_seconds out", ".duration_seconds", key)
        return
    if len(times) != count:
        raise _invalid(f"{len(times)} times for {count} frames; give one for each", ".times_seconds", key)
    if not all(map(math.isfinite, times)) or times[0] < 0 or not all(a < b for a, b in itertools.pairwise(times)):
        raise _invalid(
            "the frames' times are finite, at least 0 and ascending, each greater than the one before",
            ".times_seconds",
            key,
        )
    seconds = frames.duration_seconds
    if seconds is not None and not (math.isfinite(seconds) and seconds > times[-1]):
        told = f"duration_seconds is {seconds:g}; give a number above the last frame's time, {times[-1]:g}"
        raise _invalid(told, ".duration_seconds", key)


def _invalid(message: str, field: str, key: str) -> InvalidRequest:
    return InvalidRequest(f"{key}: {message}", reason="INVALID_FRAMES", field=f"media[].frames{field}", media_key=key)
