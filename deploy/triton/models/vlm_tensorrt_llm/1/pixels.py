"""uint8 rows to the model's floats, by modality, while rows still come.

Pure: no Triton and no TensorRT-LLM. A prompt's rows lie in the order of its items; TensorRT-LLM wants the images' and the
videos' apart, each in one tensor. Both are made once, in their final size, and filled from the first row to the last.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from engine_client.contract.prompt import Prompt
from engine_client.contract.rows import RowBuffer
from engine_client.contract.tensors import IMAGE, VIDEO
from engine_client.triton.backend.rows import normalize_patches

# Names of the pixels and of the grids by modality; modeling_qwen2vl.py, `call_with_text_prompt`.
NAMES = {IMAGE: ("image", "pixel_values", "image_grid_thw"), VIDEO: ("video", "pixel_values_videos", "video_grid_thw")}
# Rows are normalized so many bytes at a time: as float32 in between they take four times that.
SLICE_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class _Part:
    """Where the rows of one item go."""

    start: int
    stop: int
    target: torch.Tensor


class Pixels:
    """The pixel tensors of one prompt.

    Args:
        prompt: Whose rows they are.
        rows: Those that have come, on the device where the floats are to be.
        feature_count: Values in a row.
        dtype: The model's own.
    """

    def __init__(
        self, prompt: Prompt, rows: RowBuffer, feature_count: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._prompt = prompt
        self._rows = rows
        self._feature_count = feature_count
        self._device = device
        self._dtype = dtype
        self._rows_a_slice = max(1, SLICE_BYTES // feature_count)
        self._taken_row_count = 0
        self._tensors: dict[int, torch.Tensor] = {}
        self._parts: tuple[_Part, ...] = ()

    def take_rows(self) -> None:
        """Normalize the rows that have come since the last call."""
        start, stop = self._taken_row_count, self._rows.row_count
        if stop and not self._parts:  # not before the first rows: a prompt that waits for them takes no memory
            self._make_room()
        for part in self._parts:
            for first in range(max(start, part.start), min(stop, part.stop), self._rows_a_slice):
                last = min(first + self._rows_a_slice, stop, part.stop)
                target = part.target[first - part.start : last - part.start]
                target.copy_(normalize_patches(self._rows.between(first, last), *self._prompt.normalization))
        self._taken_row_count = stop

    def data(self) -> dict[str, dict[str, torch.Tensor]]:
        """What `multimodal_data` holds by modality: the pixels, whole once all rows are taken, and the grids."""
        data = {}
        for kind, pixels in self._tensors.items():
            name, pixel_name, grid_name = NAMES[kind]
            chosen = [index for index, item_kind in enumerate(self._prompt.modality) if item_kind == kind]
            data[name] = {pixel_name: pixels, grid_name: torch.from_numpy(self._prompt.grids[chosen])}
        return data

    def _make_room(self) -> None:
        kinds, counts = np.array(self._prompt.modality, np.int32), self._prompt.row_counts
        self._tensors = {
            kind: torch.empty(
                (int(counts[kinds == kind].sum()), self._feature_count), dtype=self._dtype, device=self._device
            )
            for kind in NAMES
            if kind in self._prompt.modality
        }
        self._parts = tuple(_parts(self._prompt.modality, counts.tolist(), self._tensors))


def _parts(modality: tuple[int, ...], row_counts: list[int], tensors: dict[int, torch.Tensor]) -> Iterator[_Part]:
    start, filled = 0, dict.fromkeys(tensors, 0)
    for kind, count in zip(modality, row_counts, strict=True):
        yield _Part(start, start + count, tensors[kind][filled[kind] : filled[kind] + count])
        start += count
        filled[kind] += count
