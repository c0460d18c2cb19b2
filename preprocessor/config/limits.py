"""Limits on one request."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from preprocessor.config.checks import require_positive_int, require_seconds
from preprocessor.config.declare import option_of, setting
from preprocessor.config.values import parse_bytes
from preprocessor.errors import LimitExceeded
from preprocessor.types.request import Modality


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask of the service. Counted in headers before anything is decoded, and again while it is.

    The defaults allow a minute of 4K video or a 256-megapixel image and refuse what only an attack needs.
    """

    max_media_count: int = setting(64, "images and videos in one request")
    max_media_bytes: int = setting(512 << 20, "size of one file", "SIZE", kind=parse_bytes)
    max_request_bytes: int = setting(1 << 30, "size of all files of a request", "SIZE", kind=parse_bytes)
    # Walking a PNG's chunks to its size takes microseconds each.
    max_image_bytes: int = setting(64 << 20, "size of an image file", "SIZE", kind=parse_bytes)
    max_image_pixels: int = setting(256_000_000, "pixels of an image, before resizing")
    # A progressive JPEG may paint its whole picture over and over, at a few hundred bytes a time; encoders write about ten
    # scans. libjpeg-turbo's own fuzzers stop at 500 (fuzz/decompress.cc).
    max_image_scans: int = setting(500, "scans of a JPEG")
    max_frame_pixels: int = setting(8192 * 4320, "pixels of a video frame, before resizing")
    # What the headers of JPEG, GIF and of an mp4's track can say; 65,535 in front of one is a picture all the same.
    max_side_px: int = setting(65_535, "width or height of an image or a video frame, before resizing")
    # Counted by packets: nine hours at 30 frames a second.
    max_clip_frames: int = setting(1_000_000, "frames in a video file")
    max_clip_seconds: int = setting(86_400, "seconds that a video lasts, its last frame's stay included")
    max_streams: int = setting(64, "streams in a file: pictures, sounds, subtitles and all else")
    max_audio_seconds: int = setting(3600, "seconds of a sound")  # 230 MB of samples at 16 kHz
    # DXD, the fastest PCM that is sold, is 352,800; beyond it a resampler's filter takes gigabytes.
    max_audio_rate_hz: int = setting(768_000, "samples a second of a sound", "HZ")
    max_audio_channels: int = setting(64, "channels of a sound")
    # A sixth of it holds the tables of a million frames; their counts are the file's to claim.
    max_header_bytes: int = setting(
        1 << 30, "memory that reading a request's headers may take beside its files", "SIZE", kind=parse_bytes
    )
    max_file_cpu_seconds: float = setting(120.0, "CPU that one file may use in one stage", "S", kind=float)
    max_pixel_bytes: int = setting(2 << 30, "size of the pixel tensor of one request", "SIZE", kind=parse_bytes)
    max_prompt_length: int = setting(4_000_000, "characters of a rendered prompt, or token ids")
    # Of the longest run that cannot be cut: four million letters, a million and a half of ideographs.
    max_tokenizing_bytes: int = setting(
        1 << 30, "memory that turning a prompt into tokens may take", "SIZE", kind=parse_bytes
    )
    max_tokenizing_cpu_seconds: float = setting(60.0, "CPU that turning a prompt into tokens may take", "S", kind=float)

    def max_file_bytes(self, modality: Modality) -> int:
        """Size of one file of that modality."""
        return min(self.max_media_bytes, self.max_image_bytes) if modality is Modality.IMAGE else self.max_media_bytes

    def check_media_count(self, count: int) -> None:
        """Raises:
        LimitExceeded: `LIMIT_EXCEEDED`.
        """
        if count > self.max_media_count:
            raise LimitExceeded(
                f"{count} media in one request; at most {self.max_media_count} are accepted", field="media"
            )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if field.metadata["kind"] is float:
                require_seconds(option_of(field), getattr(self, field.name))
            else:
                require_positive_int(option_of(field), getattr(self, field.name))
