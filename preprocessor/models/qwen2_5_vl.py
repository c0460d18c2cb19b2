"""Qwen2.5-VL, and Cosmos-Reason 1 which is one: Qwen2-VL with temporal positions spaced by time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocessor.models import qwen2_vl
from preprocessor.models.family import ItemLayout, ModelSettings
from preprocessor.models.probe import ProbedMedium
from preprocessor.types.plan import ExpandedPrompt, ItemPlan
from preprocessor.types.source import FrameChoice
from preprocessor.vision.positions import mrope_tensors


def layout(item: ProbedMedium, model: ModelSettings) -> ItemLayout:
    """As Qwen2-VL; the model also takes `second_per_grid_ts`, float32 [items]."""
    laid_out = qwen2_vl.layout(item, model)
    seconds = np.array([seconds_per_grid(item.frames, model)], np.float32)
    return dataclasses.replace(laid_out, tensors={**laid_out.tensors, "second_per_grid_ts": seconds})


def prompt_tensors(
    prompt: ExpandedPrompt, items: Sequence[ItemPlan], model: ModelSettings
) -> dict[str, npt.NDArray[Any]]:
    """A video's time steps are `tokens_per_second` x seconds a step apart; an image has one step.

    Source: transformers 5.23, Qwen2_5_VLModel.get_rope_index.
    """
    intervals = [
        1.0 if item.frames is None else model.tokens_per_second * seconds_per_grid(item.frames, model) for item in items
    ]
    return mrope_tensors(len(prompt.token_ids), prompt.spans, qwen2_vl.merged_grids(items, model), intervals)


def seconds_per_grid(frames: FrameChoice | None, model: ModelSettings) -> np.float32:
    """Seconds from one temporal patch to the next; 0 for an image, which has one.

    Source: transformers 5.23, Qwen2_5_VLProcessor, which lists videos alone.
    """
    patch = model.video.pixels.temporal_patch_size
    return np.float32(0 if frames is None else patch / frames.sampled_fps)


FAMILY = dataclasses.replace(
    qwen2_vl.FAMILY,
    name="qwen2_5_vl",
    model_types=("qwen2_5_vl",),
    layout=layout,
    prompt_tensors=prompt_tensors,
)
