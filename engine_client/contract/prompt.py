"""The tensors of one prompt, checked against the configuration of the model that will read them.

Arrays in, arrays out. All that a prompt must satisfy is checked here, once, before the model reads any of it: on a GPU a
token id beyond the vocabulary does not raise an exception that a request could survive, it ends the process's CUDA
context.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engine_client.contract.errors import InvalidPrompt
from engine_client.contract.layout import ModelLayout, RowForm
from engine_client.contract.tensors import (
    CONTRACT_INPUTS,
    IMAGE,
    INPUT_IDS,
    PIXELS,
    TILE_COUNTS,
    VIDEO,
    VISION_TENSORS,
    Array,
    ContractTensor,
)

_VISION: Mapping[str, ContractTensor] = {**VISION_TENSORS, TILE_COUNTS.name: TILE_COUNTS}


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """A prompt that was checked, except for its pixels, which may follow."""

    input_ids: Array
    """int32 [L], each within the vocabulary."""
    token_types: Array
    """int32 [L]: 0 text, else the modality that the token stands for."""
    grids: Array
    """int64 [M, 3]: t, h, w of each item, in patches; of tiles their number, 1, 1. M is 0 for text alone."""
    modality: tuple[int, ...]
    """Of each item."""
    mean: Array | None
    std: Array | None
    """float32 [3], of values from 0 to 1; None for text alone."""

    @property
    def row_count(self) -> int:
        """Rows of `pixel_patches`."""
        return int(self.row_counts.sum())

    @property
    def row_counts(self) -> Array:
        """Rows of each item; int64 [M]."""
        counts: Array = self.grids.prod(axis=1)
        return counts

    @property
    def normalization(self) -> tuple[Array, Array]:
        """`mean` and `std` of a prompt that has pixels."""
        assert self.mean is not None and self.std is not None
        return self.mean, self.std


def check_prompt(tensors: Mapping[str, Array], layout: ModelLayout) -> Prompt:
    """Check one prompt's tensors; where `pixel_patches` is not among them, its rows follow.

    Args:
        tensors: By contract name; names that this model does not read are ignored.
        layout: Of the model that will read them.
    Raises:
        InvalidPrompt: a tensor is missing, has the wrong type or shape, or contradicts another.
    """
    ids = _checked(tensors, CONTRACT_INPUTS[INPUT_IDS])
    _require(ids.size > 0, "input_ids is empty; a prompt has at least one token")
    _require(
        ids.min() >= 0 and ids.max() < layout.vocabulary_size,
        f"input_ids range from {ids.min()} to {ids.max()}; the vocabulary is 0 to {layout.vocabulary_size - 1}",
    )
    counts_name = "tile_counts" if layout.form is RowForm.TILES else "grid_thw"
    needed = [counts_name, *(name for name in VISION_TENSORS if name != "grid_thw")]
    if counts_name not in tensors or len(tensors[counts_name]) == 0:
        stray = [name for name in needed if name in tensors and name not in ("pixel_mean", "pixel_std")]
        stray = [name for name in stray if len(tensors[name])]
        _require(not stray, f"{', '.join(stray)} came without {counts_name}; send all of {', '.join(needed)}")
        no_grids = np.empty((0, 3), np.int64)
        return Prompt(
            ids, _token_types(ids, np.empty((0, 3), np.int32), no_grids, [], layout), no_grids, (), None, None
        )

    vision = {name: _checked(tensors, _VISION[name]) for name in needed if name != PIXELS}
    grids, modality = vision[counts_name], vision["item_modality"].tolist()
    if layout.form is RowForm.TILES:
        grids = np.stack([grids, np.ones_like(grids), np.ones_like(grids)], axis=1)
    _check_items(grids, modality, layout)
    if PIXELS in tensors:
        rows = _checked(tensors, VISION_TENSORS[PIXELS])
        shape = (int(grids.prod(axis=1).sum()), layout.feature_count)
        _require(
            rows.shape == shape, f"{PIXELS} is {list(rows.shape)}; {counts_name} and this model need {list(shape)}"
        )
    _require(bool((vision["pixel_std"] > 0).all()), f"pixel_std is {vision['pixel_std'].tolist()}; it must be above 0")
    types = _token_types(ids, vision["item_spans"], grids, modality, layout)
    return Prompt(ids, types, grids, tuple(modality), vision["pixel_mean"], vision["pixel_std"])


def check_rows(rows: Array, layout: ModelLayout) -> None:
    """Check a run of rows of `pixel_patches`.

    Raises:
        InvalidPrompt: they have another type or width.
    """
    _checked({PIXELS: rows}, ContractTensor(PIXELS, VISION_TENSORS[PIXELS].dtype, (-1, layout.feature_count)))


def _require(holds: bool | np.bool_, otherwise: str) -> None:
    if not holds:
        raise InvalidPrompt(otherwise)


def _checked(tensors: Mapping[str, Array], expected: ContractTensor) -> Array:
    """The tensor of that name, known to have that type and shape."""
    name = expected.name
    _require(name in tensors, f"{name} is missing")
    array = tensors[name]
    fits = array.ndim == len(expected.shape) and all(
        want in (-1, got) for want, got in zip(expected.shape, array.shape, strict=True)
    )
    _require(
        fits and array.dtype == expected.dtype, f"{name} is {array.dtype} {list(array.shape)}; it must be {expected}"
    )
    return array


def _check_items(grids: Array, modality: Sequence[int], layout: ModelLayout) -> None:
    _require(
        len(modality) == len(grids), f"item_modality has {len(modality)} items, grid_thw {len(grids)}; they must agree"
    )
    for index, (kind, (t, h, w)) in enumerate(zip(modality, grids.tolist(), strict=True)):
        _require(kind in (IMAGE, VIDEO), f"item {index} has modality {kind}; this model takes 1 (image) and 2 (video)")
        complaint = layout.grid_complaint(kind, (t, h, w))
        _require(not complaint, f"item {index} has grid {[t, h, w]}; {complaint}")


def _token_types(ids: Array, spans: Array, grids: Array, modality: Sequence[int], layout: ModelLayout) -> Array:
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
        _, tokens_a_span = layout.span_shape(modality[item], grids[item].tolist())
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
    for index, (count, grid) in enumerate(zip(span_counts, grids.tolist(), strict=True)):
        wanted, _ = layout.span_shape(modality[index], grid)
        size = f"h, w = {grid[1:]}" if layout.form is RowForm.LINES else f"t = {grid[0]}"
        _require(count == wanted, f"item {index} has {count} spans; its grid has {size}, which makes {wanted}")
    stray = np.flatnonzero(np.isin(ids, list(layout.placeholder_ids.values())) & (types == 0))
    _require(stray.size == 0, f"{stray.size} placeholder tokens belong to no span, first at {stray[:1].tolist()}")
    return types
