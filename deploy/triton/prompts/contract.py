"""The engine contract's tensors, checked.

Pure: arrays in, arrays out; no Triton and no engine, so that every rule here is tested by table. What must hold
for a prompt is checked here, once, before the model sees any of it: on a GPU a token id beyond the vocabulary does not
raise an exception that a request could survive, it ends the process's CUDA context.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import InvalidPrompt

IMAGE, VIDEO = 1, 2  # item_modality; transformers 5.23 uses the same numbers in mm_token_type_ids
CHANNEL_COUNT = 3
PIXELS = "pixel_patches"
FIRST_ROW = "first_row"
SAMPLING_TENSORS = ("max_tokens", "temperature", "top_p", "top_k", "seed", "stop_token_ids")
STOP, LENGTH = "stop", "length"  # finish_reason
CANCELLED = "cancelled"  # no finish reason: nobody is left to read it
VISION_TENSORS: Mapping[str, tuple[type[np.generic], tuple[int | None, ...]]] = {
    PIXELS: (np.uint8, (None, None)),
    "pixel_mean": (np.float32, (CHANNEL_COUNT,)),
    "pixel_std": (np.float32, (CHANNEL_COUNT,)),
    "grid_thw": (np.int64, (None, 3)),
    "item_modality": (np.int32, (None,)),
    "item_spans": (np.int32, (None, 3)),
}


@dataclass(frozen=True, slots=True)
class ModelLayout:
    """What a checkpoint's configuration fixes about its prompts; lengths in tokens, sizes in pixels or frames."""

    patch_size: int
    temporal_patch_size: int
    merge_size: int
    image_token_id: int
    video_token_id: int
    vocabulary_size: int
    max_positions: int
    one_span_a_video: bool = False
    """Whether a video is one run of placeholders (Qwen2-VL, Qwen2.5-VL), or one a temporal step (Qwen3-VL)."""

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


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose tokens; the defaults are those of `engine_client.SamplingParameters`."""

    max_tokens: int = 16
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop_token_ids: tuple[int, ...] = ()

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray]) -> Sampling:
        """Read the sampling tensors that are there.

        Raises:
            InvalidPrompt: a value is out of its range, or a tensor does not hold exactly one value.
        """
        values: dict[str, Any] = {}
        for name in SAMPLING_TENSORS[:-1]:
            if name in tensors:
                _require(tensors[name].size == 1, f"{name} holds {tensors[name].size} values; it takes one")
                values[name] = tensors[name].reshape(-1)[0].item()
        if "stop_token_ids" in tensors:
            values["stop_token_ids"] = tuple(tensors["stop_token_ids"].reshape(-1).tolist())
        sampling = cls(**values)
        _require(sampling.max_tokens >= 1, f"max_tokens is {sampling.max_tokens}; it must be at least 1")
        _require(
            math.isfinite(sampling.temperature) and sampling.temperature >= 0,
            f"temperature is {sampling.temperature}; it must be 0 (greedy) or above",
        )
        _require(0 < sampling.top_p <= 1, f"top_p is {sampling.top_p}; it must be above 0 and at most 1")
        _require(sampling.top_k >= 0, f"top_k is {sampling.top_k}; it must be 0 (off) or above")
        return sampling


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """A prompt that was checked, all but its pixels: those may still be on their way."""

    input_ids: np.ndarray
    """int32 [L], each within the vocabulary."""
    token_types: np.ndarray
    """int32 [L]: 0 text, else the modality that the token stands for."""
    grids: np.ndarray
    """int64 [M, 3]: t, h, w of each item, in patches; M is 0 for text alone."""
    modality: tuple[int, ...]
    """Of each item."""
    mean: np.ndarray | None
    std: np.ndarray | None
    """float32 [3], of values from 0 to 1; None for text alone."""

    @property
    def row_count(self) -> int:
        """Rows of `pixel_patches`."""
        return int(self.row_counts.sum())

    @property
    def row_counts(self) -> np.ndarray:
        """Rows of each item; int64 [M]."""
        counts: np.ndarray = self.grids.prod(axis=1)
        return counts


def check_prompt(tensors: Mapping[str, np.ndarray], layout: ModelLayout) -> Prompt:
    """Check one prompt's tensors; where `pixel_patches` is not among them, its rows are yet to come.

    Args:
        tensors: By contract name; names that this model does not read are ignored.
        layout: Of the model that will read them.
    Raises:
        InvalidPrompt: a tensor is missing, has the wrong type or shape, or contradicts another.
    """
    ids = _checked(tensors, "input_ids", np.int32, (None,))
    _require(ids.size > 0, "input_ids is empty; a prompt has at least one token")
    _require(
        ids.min() >= 0 and ids.max() < layout.vocabulary_size,
        f"input_ids range from {ids.min()} to {ids.max()}; the vocabulary is 0 to {layout.vocabulary_size - 1}",
    )
    grids = tensors.get("grid_thw")
    if grids is None or len(grids) == 0:
        stray = [name for name in VISION_TENSORS if name in tensors and name not in ("pixel_mean", "pixel_std")]
        stray = [name for name in stray if len(tensors[name])]
        _require(not stray, f"{', '.join(stray)} came without grid_thw; send all of {', '.join(VISION_TENSORS)}")
        no_grids = np.empty((0, 3), np.int64)
        return Prompt(
            ids, _token_types(ids, np.empty((0, 3), np.int32), no_grids, [], layout), no_grids, (), None, None
        )

    vision = {name: _checked(tensors, name, *expected) for name, expected in VISION_TENSORS.items() if name != PIXELS}
    grids, modality = vision["grid_thw"], vision["item_modality"].tolist()
    _check_items(grids, modality, layout)
    if PIXELS in tensors:
        rows = _checked(tensors, PIXELS, *VISION_TENSORS[PIXELS])
        needed = (int(grids.prod(axis=1).sum()), layout.feature_count)
        _require(rows.shape == needed, f"{PIXELS} is {list(rows.shape)}; grid_thw and this model need {list(needed)}")
    _require(bool((vision["pixel_std"] > 0).all()), f"pixel_std is {vision['pixel_std'].tolist()}; it must be above 0")
    types = _token_types(ids, vision["item_spans"], grids, modality, layout)
    return Prompt(ids, types, grids, tuple(modality), vision["pixel_mean"], vision["pixel_std"])


def check_rows(rows: np.ndarray, layout: ModelLayout) -> None:
    """Check a run of rows of `pixel_patches`.

    Raises:
        InvalidPrompt: they have another type or width.
    """
    _checked({PIXELS: rows}, PIXELS, np.uint8, (None, layout.feature_count))


def _require(holds: bool | np.bool_, otherwise: str) -> None:
    if not holds:
        raise InvalidPrompt(otherwise)


def _checked(
    tensors: Mapping[str, np.ndarray], name: str, dtype: type[np.generic], shape: tuple[int | None, ...]
) -> np.ndarray:
    """The tensor of that name, known to have this type and shape (None is any length)."""
    _require(name in tensors, f"{name} is missing")
    array = tensors[name]
    fits = array.ndim == len(shape) and all(want in (None, got) for want, got in zip(shape, array.shape, strict=True))
    wanted = f"{np.dtype(dtype)} [{', '.join('any' if length is None else str(length) for length in shape)}]"
    _require(fits and array.dtype == dtype, f"{name} is {array.dtype} {list(array.shape)}; it must be {wanted}")
    return array


def _check_items(grids: np.ndarray, modality: Sequence[int], layout: ModelLayout) -> None:
    _require(
        len(modality) == len(grids), f"item_modality has {len(modality)} items, grid_thw {len(grids)}; they must agree"
    )
    for index, (kind, (t, h, w)) in enumerate(zip(modality, grids.tolist(), strict=True)):
        _require(kind in (IMAGE, VIDEO), f"item {index} has modality {kind}; this model takes 1 (image) and 2 (video)")
        _require(
            min(t, h, w) > 0 and h % layout.merge_size == 0 and w % layout.merge_size == 0,
            f"item {index} has grid {[t, h, w]}; sides must be positive and h, w multiples of {layout.merge_size}",
        )
        _require(kind == VIDEO or t == 1, f"item {index} is an image with grid {[t, h, w]}; an image has t = 1")


def _token_types(
    ids: np.ndarray, spans: np.ndarray, grids: np.ndarray, modality: Sequence[int], layout: ModelLayout
) -> np.ndarray:
    """Mark each token as text (0) or by the modality it stands for; int32 [L].

    The model deals features out to placeholders from left to right, and gives rotary positions to one run of equal
    types after another: an image is one run, a video one run a temporal step (Qwen3-VL `get_rope_index`). So the spans
    must be exactly those runs, in the order of the items.
    """
    types = np.zeros(len(ids), np.int32)
    span_counts = [0] * len(grids)
    last_item, last_end = 0, 0
    for index, (item, offset, length) in enumerate(spans.tolist()):
        where = f"span {index} (item {item}, offset {offset}, length {length})"
        _require(
            last_item <= item < len(grids), f"{where} must name items in order, from {last_item} to {len(grids) - 1}"
        )
        _require(
            last_end <= offset and offset + length <= len(ids),
            f"{where} must follow the span before it, which ends at {last_end}, within {len(ids)} input ids",
        )
        steps_a_span = int(grids[item, 0]) if layout.one_span_a_video else 1
        tokens_a_span = steps_a_span * int(grids[item, 1] * grids[item, 2]) // layout.merge_size**2
        _require(length == tokens_a_span, f"{where} must have length {tokens_a_span}, by grid {grids[item].tolist()}")
        kind = modality[item]
        _require(
            bool((ids[offset : offset + length] == layout.placeholder_ids[kind]).all()),
            f"{where} must cover only the placeholder token {layout.placeholder_ids[kind]}",
        )
        _require(offset == 0 or types[offset - 1] != kind, f"{where} touches the span before it; text must lie between")
        types[offset : offset + length] = kind
        span_counts[item] += 1
        last_item, last_end = item, offset + length
    for index, (count, t) in enumerate(zip(span_counts, grids[:, 0].tolist(), strict=True)):
        wanted = 1 if layout.one_span_a_video else t
        _require(count == wanted, f"item {index} has {count} spans; its grid has t = {t}, which makes {wanted}")
    stray = np.flatnonzero(np.isin(ids, list(layout.placeholder_ids.values())) & (types == 0))
    _require(stray.size == 0, f"{stray.size} placeholder tokens belong to no span, first at {stray[:1].tolist()}")
    return types
