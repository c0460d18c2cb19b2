"""A checked prompt and its rows as the input of vLLM's engine. Beside `engine.py` the only file that imports vLLM.

vLLM's own processing of text and pixels is left out: token ids are expanded, and rows are as its processor would make them.
Source: vLLM 0.32, inputs/engine.py, `mm_input`; multimodal/inputs.py; model_executor/models/qwen2_vl.py,
`_create_qwen2vl_field_factory` (names of fields, and what stays on the CPU).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature
from vllm.inputs.engine import mm_input, tokens_input
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems, PlaceholderRange

from engine_client.contract.prompt import Prompt
from engine_client.contract.tensors import IMAGE, VIDEO, Array
from engine_client.contract.vllm_rules import MODALITY_NAMES
from engine_client.triton.backend.rows import normalize_patches

from .facts import EngineFacts
from .items import Item

PIXEL_NAMES = {IMAGE: "pixel_values", VIDEO: "pixel_values_videos"}
# Rows are normalized so many bytes at a time: as float32 in between they take four times that.
SLICE_BYTES = 4 << 20


class OwnedArray:
    """An array whose memory belongs to another object, which lives as long as any array or tensor that is made of it.

    vLLM sends large tensors without a copy, some time after it has taken them, and holds them until then.
    """

    def __init__(self, array: Array, owner: object) -> None:
        self.__array_interface__ = array.__array_interface__
        self._owner = (array, owner)

    @classmethod
    def wrap(cls, array: Array, owner: object) -> Array:
        """The same array, now an owner of its memory."""
        return np.asarray(cls(array, owner))


def build_input(prompt: Prompt, items: Sequence[Item], pixels: torch.Tensor, facts: EngineFacts) -> Any:
    """Make an `EngineInput` of vLLM. Rows are referred to, not copied, except where a prompt has images and videos.

    Args:
        prompt: Checked.
        items: Of the same prompt.
        pixels: All rows, uint8 [P, F], on the CPU.
        facts: Of the engine that will read them.
    """
    token_ids = prompt.input_ids.tolist()
    if not items:
        return tokens_input(token_ids)
    if not facts.normalizes:
        pixels = _normalized(pixels, prompt, facts.dtype)
    tensors: dict[str, torch.Tensor] = {}
    fields: dict[str, MultiModalFieldConfig] = {}
    hashes: dict[str, list[str]] = {}
    ranges: dict[str, list[PlaceholderRange]] = {}
    for kind, name in MODALITY_NAMES.items():
        chosen = [item for item in items if item.modality == kind]
        if not chosen:
            continue
        parts = [pixels[item.first_row : item.first_row + item.row_count] for item in chosen]
        tensors[PIXEL_NAMES[kind]] = pixels if len(chosen) == len(items) else torch.cat(parts)
        sizes = torch.tensor([item.row_count for item in chosen])
        fields[PIXEL_NAMES[kind]] = MultiModalFieldConfig.flat_from_sizes(name, sizes)
        grids = f"{name}_grid_thw"
        tensors[grids] = torch.from_numpy(np.stack([item.grid for item in chosen]))
        fields[grids] = MultiModalFieldConfig.batched(name, keep_on_cpu=True)
        seconds = [item.seconds_per_step for item in chosen if item.seconds_per_step is not None]
        if seconds:
            tensors["second_per_grid_ts"] = torch.tensor(seconds, dtype=facts.dtype)  # as vLLM rounds it
            fields["second_per_grid_ts"] = MultiModalFieldConfig.batched(name, keep_on_cpu=True)
        hashes[name] = [item.hash for item in chosen]
        ranges[name] = [_range(item) for item in chosen]
    values = MultiModalKwargsItems.from_hf_inputs(BatchFeature(tensors), fields)
    return mm_input(token_ids, values, hashes, ranges)


def _range(item: Item) -> PlaceholderRange:
    placeholders = None if item.placeholders is None else torch.from_numpy(item.placeholders)
    return PlaceholderRange(offset=item.first_token, length=item.token_count, is_embed=placeholders)


def _normalized(pixels: torch.Tensor, prompt: Prompt, dtype: torch.dtype) -> torch.Tensor:
    """uint8 [P, F] as the encoder's floats, for a vLLM that does not normalize on its device."""
    floats = torch.empty(pixels.shape, dtype=dtype)
    step = max(1, SLICE_BYTES // pixels.shape[1])
    for first in range(0, len(pixels), step):
        floats[first : first + step].copy_(normalize_patches(pixels[first : first + step], *prompt.normalization))
    return floats
