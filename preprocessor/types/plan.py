"""A prompt before its pixels: all that is known without decoding a frame."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocessor.types.request import Modality, PixelForm
from preprocessor.types.source import FrameChoice, ImageInfo, SoundInfo, VideoInfo
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


@dataclass(frozen=True, slots=True)
class ItemRows:
    """The rows of the pixel tensor that one item fills. A row is a patch, a tile or a frame, as the model family has it.

    Rows come in groups of equal size. A group needs no frames but its own, so it can be made by itself.

    Attributes:
        group_count: Groups of the item, in the order of its frames; 0 for an item whose pixels are not written as rows.
        group_rows: Rows in a group.
        group_frames: Frames in a group. Where frames are missing in the last group, its last frame is repeated.
        width_px, height_px: Size of a frame after resizing.
        grid: Where rows are patches: the patches along time, height and width.
    """

    group_count: int
    group_rows: int
    group_frames: int
    width_px: int
    height_px: int
    grid: Grid | None = None

    @property
    def row_count(self) -> int:
        return self.group_count * self.group_rows


NO_ROWS = ItemRows(group_count=0, group_rows=0, group_frames=0, width_px=0, height_px=0)


@dataclass(frozen=True, slots=True, eq=False)
class ItemPlan:
    """One medium of a request, planned.

    Attributes:
        source: Header facts; a `VideoInfo` for a video.
        decoder: The libraries that decode it, with versions.
        frames: The frames chosen of a video; None for an image or a sound.
        content_sha256: Digest of the file.
        digest: SHA-256 of the caller's salt and of everything that can change a value made of it, for caches.
        uint8_digest: `digest` of the same item as uint8, of which rows in every form can be made; empty if it has no rows.
        rows: Its rows of the pixel tensor; `NO_ROWS` where the plan's own tensors hold its pixels.
        row_start: First of these rows in the tensor.
        token_count: Tokens that stand for it in the prompt; 0 where that is not known by item.
    """

    key: str
    modality: Modality
    source: ImageInfo | VideoInfo | SoundInfo
    decoder: str
    frames: FrameChoice | None
    content_sha256: bytes
    digest: bytes
    uint8_digest: bytes = b""
    rows: ItemRows = NO_ROWS
    row_start: int = 0
    token_count: int = 0

    @property
    def picture(self) -> ImageInfo | VideoInfo:
        """The source of an item that has rows, which a sound never has."""
        assert not isinstance(self.source, SoundInfo), "a sound has no rows"
        return self.source

    @property
    def frame_count(self) -> int:
        """Chosen frames; 1 for an image."""
        return 1 if self.frames is None else len(self.frames.indices)

    @property
    def frame_indices(self) -> npt.NDArray[np.int64]:
        """Which of the file's frames were chosen, int64 [frame_count]; an image is frame 0."""
        return np.zeros(1, np.int64) if self.frames is None else self.frames.indices

    @property
    def padded_frame_count(self) -> int:
        """Times that a video's last frame is repeated to fill its last group; 0 for an image."""
        return max(0, self.rows.group_count * self.rows.group_frames - self.frame_count) if self.frames else 0

    def rows_of(self, tensor: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Its rows of a pixel tensor [row_count, feature_count] of the plan; no copy."""
        return tensor[self.row_start : self.row_start + self.rows.row_count]

    def groups_within(self, rows: range) -> range:
        """Its groups whose rows begin in a range of rows of the tensor."""
        first, stop = (-(-(row - self.row_start) // self.rows.group_rows) for row in (rows.start, rows.stop))
        return range(min(max(first, 0), self.rows.group_count), min(max(stop, 0), self.rows.group_count))


@dataclass(frozen=True, slots=True, eq=False)
class ExpandedPrompt:
    """Token ids int32 [L] with placeholders expanded, and `spans` int32 [S, 3]: item index, offset, length."""

    token_ids: npt.NDArray[np.int32]
    spans: npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class PixelPlan:
    """The pixel tensor to be made: all that decoding needs beside the files and the model.

    Attributes:
        items: In prompt order.
        row_count, feature_count: Shape of the tensor.
        size_bytes: Its size in the asked form.
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


@dataclass(frozen=True, slots=True)
class Workload:
    """CPU seconds on one core, and bytes that a worker needs beside the pixel tensor while it works."""

    cpu_seconds: float
    working_bytes: int


@dataclass(frozen=True, slots=True)
class Substitution:
    """A chosen frame that could not be decoded, and the frame used in its place (`OnDamage.REPEAT`)."""

    item_index: int
    frame_index: int
    used_frame_index: int


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A prepared prompt, but for the pixels that are still to be made.

    Attributes:
        items: The media in prompt order.
        tensors: Every tensor of the result but those pixels: by the engine contract's names, or by the names of the model's
            own processor where that ran. `input_ids` int32 [L] is always there, placeholders expanded.
        pixels: The pixel tensor to be made; None where there is none, or where `tensors` holds the pixels already.
        pixel_bytes: Size of the pixels, whether they are still to be made or in `tensors`.
        item_tensors: Where the model's own processor ran: which tokens stand for which item, for engines that ask. Empty where
            that is not known, and on the fast path, whose `tensors` say it.
        substitutions: Damaged frames that were replaced while planning; later ones are in the `PixelReport`.
    """

    items: tuple[ItemPlan, ...]
    tensors: Mapping[str, npt.NDArray[Any]] = field(repr=False)
    timings: Timings
    pixels: PixelPlan | None
    pixel_bytes: int
    substitutions: tuple[Substitution, ...] = ()
    item_tensors: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict, repr=False)

    @property
    def token_ids(self) -> npt.NDArray[Any]:
        """int32 [L], placeholders expanded."""
        return self.tensors["input_ids"]

    @property
    def token_count(self) -> int:
        return len(self.token_ids)
