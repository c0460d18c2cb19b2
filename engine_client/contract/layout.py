"""What a row of `pixel_patches` is in a family of models, and how an item's rows and placeholders belong together."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine_client.contract.tensors import CHANNEL_COUNT, IMAGE, VIDEO


class RowForm(enum.Enum):
    """What a row is."""

    PATCHES = "patches"
    """Qwen, GLM: a patch; `grid_thw` counts them, and merge_size x merge_size of them become a token."""
    TILES = "tiles"
    """Gemma 3, InternVL: a square tile or a frame; `tile_counts` counts them, and each becomes `tile_tokens` tokens."""
    LINES = "lines"
    """Mistral 3: a patch, line by line; `grid_thw` counts them, and each line of tokens is a run of placeholders."""
    PADDED = "padded"
    """Gemma 4: a patch, line by line, frame by frame; the engine takes a frame with a fixed number of patches."""


@dataclass(frozen=True, slots=True)
class ModelLayout:
    """What a checkpoint's configuration fixes about its prompts; lengths in tokens, sizes in pixels or frames."""

    patch_size: int
    """Of a tile its side."""
    temporal_patch_size: int
    merge_size: int
    image_token_id: int
    video_token_id: int
    vocabulary_size: int
    max_positions: int
    one_span_a_video: bool = False
    """Whether a video is one run of placeholders (Qwen2-VL, Qwen2.5-VL), or one a temporal step (Qwen3-VL)."""
    form: RowForm = RowForm.PATCHES
    tile_tokens: int = 1
    """Tokens that a tile becomes."""
    one_span_an_image: bool = False
    """Whether the tiles of an image are one run of placeholders (InternVL), or one each (Gemma 3)."""
    max_side_px: int = 0
    """Of an image; 0 where there is no limit."""

    @classmethod
    def from_config(cls, config: Any) -> ModelLayout:
        """Read a transformers `Qwen3VLConfig` (5.23)."""
        return cls(
            patch_size=config.vision_config.patch_size,
            temporal_patch_size=config.vision_config.temporal_patch_size,
            merge_size=config.vision_config.spatial_merge_size,
            image_token_id=config.image_token_id,
            video_token_id=config.video_token_id,
            vocabulary_size=config.text_config.vocab_size,
            max_positions=config.text_config.max_position_embeddings,
        )

    @property
    def feature_count(self) -> int:
        """Values in one row of `pixel_patches`: channel, temporal, row, column, in that order."""
        return CHANNEL_COUNT * self.temporal_patch_size * self.patch_size**2

    @property
    def placeholder_ids(self) -> dict[int, int]:
        """Token id that stands for one merged patch, by modality."""
        return {IMAGE: self.image_token_id, VIDEO: self.video_token_id}

    def span_shape(self, modality: int, grid: Sequence[int]) -> tuple[int, int]:
        """How many runs of placeholders an item has, and how many tokens each.

        Args:
            grid: Of the item, as `Prompt.grids` has it.
        """
        t, h, w = grid
        if self.form is RowForm.TILES:
            is_one = modality == IMAGE and self.one_span_an_image
            return (1, t * self.tile_tokens) if is_one else (t, self.tile_tokens)
        if self.form is RowForm.LINES:
            return h // self.merge_size, w // self.merge_size
        tokens = h * w // self.merge_size**2
        return (1, t * tokens) if self.one_span_a_video else (t, tokens)

    def grid_complaint(self, modality: int, grid: Sequence[int]) -> str:
        """What is wrong with the grid of an item; empty where nothing is."""
        t, h, w = grid
        if min(t, h, w) <= 0 or h % self.merge_size or w % self.merge_size:
            return f"sides must be positive and h, w multiples of {self.merge_size}"
        if modality == IMAGE and t != 1 and self.form is not RowForm.TILES:
            return "an image has t = 1"
        if self.max_side_px and max(h, w) * self.patch_size > self.max_side_px:
            return f"a side of this model's images has at most {self.max_side_px} px"
        return ""
