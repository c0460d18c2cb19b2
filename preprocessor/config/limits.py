"""Limits on one request."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from preprocessor.config.checks import require_positive_int
from preprocessor.kinds import parse_bytes
from preprocessor.setting import option_of, setting


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask of the service. Counted in headers before anything is decoded.

    The defaults allow a minute of 4K video or a 256-megapixel image and refuse what only an attack needs.
    """

    max_media_count: int = setting(64, "images and videos in one request")
    max_media_bytes: int = setting(512 << 20, "size of one file", "SIZE", kind=parse_bytes)
    max_request_bytes: int = setting(1 << 30, "size of all files of a request", "SIZE", kind=parse_bytes)
    # Walking a PNG's chunks to its size takes microseconds each.
    max_image_bytes: int = setting(64 << 20, "size of an image file", "SIZE", kind=parse_bytes)
    max_image_pixels: int = setting(256_000_000, "pixels of an image, before resizing")
    max_frame_pixels: int = setting(8192 * 4320, "pixels of a video frame, before resizing")
    # Counted by packets: nine hours at 30 frames a second.
    max_clip_frames: int = setting(1_000_000, "frames in a video file")
    max_audio_seconds: int = setting(3600, "seconds of a sound")  # 230 MB of samples at 16 kHz
    max_pixel_bytes: int = setting(2 << 30, "size of the pixel tensor of one request", "SIZE", kind=parse_bytes)
    max_prompt_length: int = setting(4_000_000, "characters of a rendered prompt, or token ids")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            require_positive_int(option_of(field), getattr(self, field.name))
