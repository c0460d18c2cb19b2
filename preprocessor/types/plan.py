"""A prompt before its pixels: all that is known without decoding a frame."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocessor.types.request import Modality, PixelForm
from preprocessor.types.source import ClipInfo, FrameChoice, ImageInfo
from preprocessor.types.timing import Timings


@dataclass(frozen=True, slots=True)
class Grid:
    """Patches along time, height and width."""

    t: int
    h: int
    w: int

    @property
    def patch_count(self) -> int:
        return self.t * self.h * self.w


@dataclass(frozen=True, slots=True, eq=False)
class ItemPlan:
    """One medium of a request, planned.

    Attributes:
        source: Header facts; a `ClipInfo` for a video.
        decoder: The libraries that decode it, with versions.
        frames: The frames chosen of a video; None for an image.
        padded_frame_count: Frames appended by repeating the last, to fill the last temporal patch.
        row_start: First row of this item in the pixel tensor.
        content_sha256: Digest of the file.
        digest: SHA-256 of the caller's salt and of everything that can change one of its pixels, for caches.
    """

    key: str
    modality: Modality
    source: ImageInfo | ClipInfo
    decoder: str
    frames: FrameChoice | None
    padded_frame_count: int
    grid: Grid
    width_px: int
    height_px: int
    row_start: int
    token_count: int
    content_sha256: bytes
    digest: bytes


@dataclass(frozen=True, slots=True, eq=False)
class ExpandedPrompt:
    """Token ids int32 [L] with placeholders expanded, and `spans` int32 [S, 3]: item index, offset, length."""

    token_ids: npt.NDArray[np.int32]
    spans: npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class PixelPlan:
    """The pixel tensor to be made: all that decoding needs beside the files.

    Attributes:
        items: In prompt order.
        row_count, feature_count: Shape of the tensor.
        size_bytes: Its size in the asked form; 0 where none is to be made.
        video_decoder: A name in `media.video.VIDEO_BACKENDS`.
        max_file_cpu_seconds: What decoding one of the files may use.
    """

    items: tuple[ItemPlan, ...]
    row_count: int
    feature_count: int
    form: PixelForm
    size_bytes: int
    video_decoder: str
    max_file_cpu_seconds: float = math.inf

    @property
    def name(self) -> str:
        """What the answer to a caller calls the tensor. An engine gets every form as the contract's `pixel_patches`."""
        return "pixel_patches" if self.form is PixelForm.UINT8 else "pixel_values"


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """All of a prepared prompt but its pixels, known before a frame is decoded.

    Attributes:
        mrope_position_ids: int32 [3, L], time, height and width positions.
        mrope_position_delta: Next text position minus L.
        tensors: Every tensor of the result but the pixels, by the engine contract's names.
    """

    pixels: PixelPlan
    prompt: ExpandedPrompt
    mrope_position_ids: npt.NDArray[np.int32]
    mrope_position_delta: int
    tensors: Mapping[str, npt.NDArray[Any]] = field(repr=False)
    timings: Timings

    @property
    def items(self) -> tuple[ItemPlan, ...]:
        """In prompt order."""
        return self.pixels.items

    @property
    def pixel_bytes(self) -> int:
        return self.pixels.size_bytes

    @property
    def token_count(self) -> int:
        return len(self.prompt.token_ids)
