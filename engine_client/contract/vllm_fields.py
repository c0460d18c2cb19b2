"""The items of one modality as the tensors that vLLM takes: by its names, and in its shapes.

Values are moved, never changed: rows come in as uint8 or as the encoder's floats, and go out as the same. Where vLLM takes the
rows as they are, the array is a view of them.

Source: vLLM 0.32, see `vllm_families`; shapes as transformers 5.23 makes them, whose processors vLLM calls.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engine_client.contract.layout import ModelLayout, RowForm
from engine_client.contract.tensors import CHANNEL_COUNT, IMAGE, VIDEO, Array
from engine_client.contract.vllm_families import VllmFamily
from engine_client.contract.vllm_rules import MODALITY_NAMES

_SOFT_TOKENS = (70, 140, 280, 560, 1120)
"""transformers 5.23, gemma4, _SUPPORTED_SOFT_TOKENS."""
_PADDED_TOKENS: Mapping[int, int] = {IMAGE: 280, VIDEO: 70}
"""To which vLLM's own processing pads an image, or a frame: transformers 5.23, Gemma4ImageProcessor.max_soft_tokens; vLLM 0.32,
gemma4_mm.py, _VIDEO_MAX_SOFT_TOKENS. Padding is masked, so it decides no token."""


class Parts(enum.Enum):
    """How a tensor is divided among the items."""

    ONE_EACH = "one each"
    """Its first axis is of items."""
    BY_COUNT = "by count"
    """Each item has some entries of its first axis: `VllmFields.counts`."""
    SHARED = "shared"
    """All of it belongs to every item."""


@dataclass(frozen=True, slots=True, eq=False)
class Field:
    """A tensor beside the pixels.

    Attributes:
        on_cpu: vLLM reads it there.
    """

    name: str
    array: Array
    parts: Parts = Parts.ONE_EACH
    on_cpu: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class VllmFields:
    """What vLLM is given of the items of one modality.

    Attributes:
        pixels: One array, or one for each item where they differ in size.
        counts_name, counts: How many entries of the first axis of `pixels` each item has, int64 [items]; empty where it is one
            each. The name is a field's where the model reads it, else free.
    """

    pixels: Array | list[Array]
    counts_name: str
    counts: Array
    fields: tuple[Field, ...]


def vllm_fields(
    family: VllmFamily,
    layout: ModelLayout | None,
    modality: int,
    rows: Array,
    grids: Array,
    seconds: Sequence[float] | None = None,
) -> VllmFields:
    """Lay out the items of one modality.

    Args:
        layout: Needed of all families but those of patches.
        rows: Of these items, [rows, features].
        grids: int64 [items, 3], as `Prompt.grids` has them; checked by the same layout.
        seconds: A temporal step, of each video of a family that has them.
    """
    if family.form is RowForm.PATCHES:
        return _patches(modality, rows, grids, seconds)
    assert layout is not None
    if family.form is RowForm.TILES:
        return _tiles(family, layout, modality, rows, grids[:, 0].copy())
    if family.form is RowForm.LINES:
        return VllmFields(_pictures(layout, rows, grids), "", np.empty(0, np.int64), ())
    return _padded(layout, modality, rows, grids)


def _patches(modality: int, rows: Array, grids: Array, seconds: Sequence[float] | None) -> VllmFields:
    """The rows as they are; not copied."""
    name = MODALITY_NAMES[modality]
    fields = [Field(f"{name}_grid_thw", grids)]
    if seconds is not None:
        fields.append(Field("second_per_grid_ts", np.array(seconds, np.float32)))
    return VllmFields(rows, f"patches_per_{name}", grids.prod(axis=1), tuple(fields))


def _tiles(family: VllmFamily, layout: ModelLayout, modality: int, rows: Array, counts: Array) -> VllmFields:
    """[tiles, 3, side, side]; not copied."""
    name = MODALITY_NAMES[modality]
    tiles = rows.reshape(len(rows), CHANNEL_COUNT, layout.patch_size, layout.patch_size)
    fields = [Field(family.tile_counts.format(name), counts)]
    if family.token_id:
        pad = np.array([layout.placeholder_ids[modality]], np.int64)
        fields.append(Field(family.token_id.format(name), pad, Parts.SHARED))
    return VllmFields(tiles, fields[0].name, counts, tuple(fields))


def _pictures(layout: ModelLayout, rows: Array, grids: Array) -> Array | list[Array]:
    """Each image whole again, [3, height, width]; together [items, 3, height, width] where all have one size."""
    patch, starts = layout.patch_size, np.concatenate([[0], np.cumsum(grids.prod(axis=1))])
    sizes = [(h * patch, w * patch) for _, h, w in grids.tolist()]
    if len(set(sizes)) == 1:
        together = np.empty((len(grids), CHANNEL_COUNT, *sizes[0]), rows.dtype)
        pictures = list(together)
    else:
        pictures = [np.empty((CHANNEL_COUNT, *size), rows.dtype) for size in sizes]
    for picture, start, (_, h, w) in zip(pictures, starts, grids.tolist(), strict=False):
        patches = rows[start : start + h * w].reshape(h, w, CHANNEL_COUNT, patch, patch)
        picture.reshape(CHANNEL_COUNT, h, patch, w, patch)[:] = patches.transpose(2, 0, 3, 1, 4)
    return together if len(set(sizes)) == 1 else pictures


def _padded(layout: ModelLayout, modality: int, rows: Array, grids: Array) -> VllmFields:
    """Of each image or frame the patches, zeros behind them, and the column and line of each, -1 behind them."""
    tokens = int((grids[:, 1] * grids[:, 2]).max()) // layout.merge_size**2
    tokens = max(tokens, _PADDED_TOKENS[modality])
    most = next((count for count in _SOFT_TOKENS if count >= tokens), tokens) * layout.merge_size**2
    frame_count = int(grids[:, 0].sum())
    pixels = np.zeros((frame_count, most, rows.shape[1]), rows.dtype)
    positions = np.full((frame_count, most, 2), -1, np.int64)
    frame = row = 0
    for t, h, w in grids.tolist():
        pixels[frame : frame + t, : h * w] = rows[row : row + t * h * w].reshape(t, h * w, -1)
        place = np.arange(h * w)
        positions[frame : frame + t, : h * w] = np.stack([place % w, place // w], axis=1)
        frame, row = frame + t, row + t * h * w
    if modality == IMAGE:
        return VllmFields(pixels, "", np.empty(0, np.int64), (Field("pixel_position_ids", positions, on_cpu=False),))
    counts = grids[:, 0].copy()
    fields = (
        Field("pixel_position_ids_videos", positions, Parts.BY_COUNT, on_cpu=False),
        Field("video_frame_counts", counts),
    )
    return VllmFields(pixels, "video_frame_counts", counts, fields)
