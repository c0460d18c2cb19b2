"""Videos as lists of frames, made in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from preprocessor.types.request import (
    ChatPrompt,
    FrameEncoding,
    FrameList,
    Media,
    MediaPart,
    Message,
    Modality,
    PreparationRequest,
    TextPart,
)
from tests.media import photo


def image_files(
    count: int, width: int = 90, height: int = 60, image_format: str = "JPEG", **options: Any
) -> list[bytes]:
    """As many image files, each with another picture."""
    return [photo(width, height, image_format, seed=number, **options) for number in range(count)]


def listed(pictures: Sequence[bytes], key: str = "v", frames: FrameList | None = None, **settings: Any) -> Media:
    """A medium of image files; 4 a second unless `frames` says otherwise, whose sizes are filled in."""
    return Media(key, Modality.VIDEO, b"".join(pictures), frames=sized(pictures, frames), **settings)


def sized(pictures: Sequence[bytes], frames: FrameList | None = None) -> FrameList:
    """The list with the sizes of these pictures."""
    frames = frames or FrameList((), fps=4.0)
    return dataclasses.replace(frames, sizes_bytes=tuple(map(len, pictures)))


def at_times(*times_seconds: float, duration_seconds: float | None = None) -> FrameList:
    return FrameList((), times_seconds=times_seconds, duration_seconds=duration_seconds)


def raw(count: int, width: int = 90, height: int = 60, fps: float = 4.0, **settings: Any) -> Media:
    """RGB24 frames of noise."""
    pixels = np.random.default_rng(7).integers(0, 256, (count, height, width, 3), np.uint8)
    frames = FrameList((), fps=fps, encoding=FrameEncoding.RGB24, width_px=width, height_px=height)
    return listed([frame.tobytes() for frame in pixels], frames=frames, **settings)


def asked(*media: Media, **settings: Any) -> PreparationRequest:
    """One user message that shows the media."""
    parts: tuple[TextPart | MediaPart, ...] = (*(MediaPart(one.key) for one in media), TextPart("What happens?"))
    return PreparationRequest(ChatPrompt((Message("user", parts),)), media, **settings)
