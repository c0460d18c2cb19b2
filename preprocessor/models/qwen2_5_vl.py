"""Qwen2.5-VL, and Cosmos-Reason 1 which is one: Qwen2-VL with temporal positions spaced by time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocessor.models import qwen2_vl
from preprocessor.models.family import Model
from preprocessor.types.plan import ExpandedPrompt, ItemPlan
from preprocessor.vision.positions import mrope_positions


def positions(prompt: ExpandedPrompt, items: Sequence[ItemPlan], model: Model) -> tuple[npt.NDArray[np.int32], int]:
    """A video's time steps are `tokens_per_second` x seconds a step apart; an image has one step.

    Source: transformers 5.23, Qwen2_5_VLModel.get_rope_index.
    """
    seconds = seconds_per_grid(items, model)
    intervals = [
        1.0 if item.frames is None else model.tokens_per_second * s for item, s in zip(items, seconds, strict=True)
    ]
    return mrope_positions(len(prompt.token_ids), prompt.spans, qwen2_vl.merged_grids(items, model), intervals)


def extra_tensors(items: Sequence[ItemPlan], model: Model) -> dict[str, npt.NDArray[Any]]:
    return {"second_per_grid_ts": seconds_per_grid(items, model)} if items else {}


def seconds_per_grid(items: Sequence[ItemPlan], model: Model) -> npt.NDArray[np.float32]:
    """Seconds from one temporal patch to the next, float32 [M]; 0 for an image, which has one.

    Source: transformers 5.23, Qwen2_5_VLProcessor, which lists videos alone.
    """
    patch = model.video.pixels.temporal_patch_size
    return np.array([0 if item.frames is None else patch / item.frames.sampled_fps for item in items], np.float32)


FAMILY = dataclasses.replace(
    qwen2_vl.FAMILY,
    name="qwen2_5_vl",
    model_types=("qwen2_5_vl",),
    positions=positions,
    extra_tensors=extra_tensors,
)
