"""A checked prompt and its rows as the input of vLLM's engine. Beside `engine.py` the only file that imports vLLM.

vLLM's own processing of text and pixels is left out: token ids are expanded, and rows are as its processor would make them.
Names and shapes of its fields are those of `engine_client.contract.vllm_fields`.
Source: vLLM 0.32, inputs/engine.py, `mm_input`; multimodal/inputs.py.
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
from engine_client.contract.vllm_fields import Field, Parts, vllm_fields
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
    """Make an `EngineInput` of vLLM. Rows are referred to, not copied, except where a prompt has images and videos,
    where vLLM takes floats, and where it takes pictures in another shape.

    Args:
        prompt: Checked.
        items: Of the same prompt.
        pixels: All rows, uint8 [P, F], on the CPU.
        facts: Of the engine that will read them.
    """
    token_ids = prompt.input_ids.tolist()
    if not items:
        return tokens_input(token_ids)
    tensors: dict[str, Any] = {}
    configs: dict[str, MultiModalFieldConfig] = {}
    hashes: dict[str, list[str]] = {}
    ranges: dict[str, list[PlaceholderRange]] = {}
    for kind, name in MODALITY_NAMES.items():
        chosen = [item for item in items if item.modality == kind]
        if not chosen:
            continue
        parts = [pixels[item.first_row : item.first_row + item.row_count] for item in chosen]
        rows = pixels if len(chosen) == len(items) else torch.cat(parts)
        if not facts.normalizes:
            rows = _normalized(rows, prompt, facts)
        seconds = [item.seconds_per_step for item in chosen if item.seconds_per_step is not None]
        grids = np.stack([item.grid for item in chosen])
        made = vllm_fields(facts.family, facts.layout, kind, _as_array(rows), grids, seconds or None)
        tensors[PIXEL_NAMES[kind]] = (
            [_as_tensor(one, rows.dtype) for one in made.pixels]
            if isinstance(made.pixels, list)
            else _as_tensor(made.pixels, rows.dtype)
        )
        counts = torch.from_numpy(made.counts)
        configs[PIXEL_NAMES[kind]] = (
            MultiModalFieldConfig.flat_from_sizes(name, counts)
            if made.counts_name
            else MultiModalFieldConfig.batched(name)
        )
        for field in made.fields:
            tensor = torch.from_numpy(field.array)
            tensors[field.name] = tensor.to(facts.dtype) if tensor.is_floating_point() else tensor  # as vLLM rounds it
            configs[field.name] = _config(field, name, counts, len(chosen))
        hashes[name] = [item.hash for item in chosen]
        ranges[name] = [_range(item) for item in chosen]
    values = MultiModalKwargsItems.from_hf_inputs(BatchFeature(tensors), configs)
    return mm_input(token_ids, values, hashes, ranges)


def _config(field: Field, name: str, counts: torch.Tensor, item_count: int) -> MultiModalFieldConfig:
    """How vLLM is to divide a tensor among the items of one modality."""
    if field.parts is Parts.ONE_EACH:
        return MultiModalFieldConfig.batched(name, keep_on_cpu=field.on_cpu)
    if field.parts is Parts.BY_COUNT:
        return MultiModalFieldConfig.flat_from_sizes(name, counts, keep_on_cpu=field.on_cpu)
    return MultiModalFieldConfig.shared(name, item_count, keep_on_cpu=field.on_cpu)


def _as_array(rows: torch.Tensor) -> Array:
    """The same memory; numpy knows no BF16, so floats of two bytes come as integers."""
    array: Array = (rows.view(torch.int16) if rows.element_size() == 2 else rows).numpy()
    return array


def _as_tensor(array: Array, dtype: torch.dtype) -> torch.Tensor:
    """Undoes `_as_array`."""
    return torch.from_numpy(array).view(dtype)


def _range(item: Item) -> PlaceholderRange:
    placeholders = None if item.placeholders is None else torch.from_numpy(item.placeholders)
    return PlaceholderRange(offset=item.first_token, length=item.token_count, is_embed=placeholders)


def _normalized(pixels: torch.Tensor, prompt: Prompt, facts: EngineFacts) -> torch.Tensor:
    """uint8 [P, F] as the encoder's floats, for a vLLM that does not normalize on its device."""
    floats = torch.empty(pixels.shape, dtype=facts.dtype)
    step = max(1, SLICE_BYTES // pixels.shape[1])
    for first in range(0, len(pixels), step):
        part = pixels[first : first + step]
        if facts.rescales_alone:
            floats[first : first + step].copy_(part * (1 / 255))  # transformers 5.23, rescale
        else:
            floats[first : first + step].copy_(normalize_patches(part, *prompt.normalization))
    return floats
