"""Qwen2.5-Omni's images and videos: as Qwen3-Omni's, with whole positions. Prompts with sound take the generic path."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocessor.models import qwen2_vl, qwen3_omni
from preprocessor.models.family import ModelSettings
from preprocessor.types.plan import ExpandedPrompt, ItemPlan
from preprocessor.types.request import Modality
from preprocessor.vision.positions import clock_mrope_tensors

_UNNAMED = {Modality.IMAGE: "<|IMAGE|>", Modality.VIDEO: "<|VIDEO|>", Modality.AUDIO: "<|AUDIO|>"}


def prompt_tensors(
    prompt: ExpandedPrompt, items: Sequence[ItemPlan], model: ModelSettings
) -> dict[str, npt.NDArray[Any]]:
    """Source: transformers 5.23, get_rope_index of Qwen2.5-Omni's thinker, which drops fractions."""
    steps = [qwen3_omni.step_positions(item, model).astype(np.int32) for item in items]
    return clock_mrope_tensors(
        len(prompt.token_ids), prompt.spans, qwen2_vl.merged_grids(items, model), steps, np.int32
    )


FAMILY = dataclasses.replace(
    qwen3_omni.FAMILY,
    name="qwen2_5_omni",
    model_types=("qwen2_5_omni",),
    read_pixels=partial(qwen3_omni.read_pixels, token_side=28),
    read_placeholders=partial(qwen3_omni.read_placeholders, unnamed=_UNNAMED),
    prompt_tensors=prompt_tensors,
)
