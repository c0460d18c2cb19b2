"""Qwen3-Omni's images and videos: Qwen2-VL's patches and frames, Qwen2.5-VL's seconds, positions by the clock. No talker.

A video is one run of placeholders. Its temporal positions are seconds times `position_id_per_seconds`, not rounded, and the text
behind it follows the largest of its positions in time, height and width. Prompts with sound take the generic path (`WithSound`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocessor.models import qwen2_5_vl, qwen2_vl
from preprocessor.models.family import Configuration, ModelSettings
from preprocessor.text.placeholders import Placeholders
from preprocessor.types.plan import ExpandedPrompt, ItemPlan
from preprocessor.types.request import Modality
from preprocessor.vision.positions import clock_mrope_tensors
from preprocessor.vision.spec import PixelSpec, VideoSpec

_UNNAMED = {Modality.IMAGE: "<|image_pad|>", Modality.VIDEO: "<|video_pad|>", Modality.AUDIO: "<|audio_pad|>"}
_POSITIONS_PER_SECOND = 25
"""transformers 5.23, Qwen3OmniMoeThinkerConfig and Qwen2_5OmniThinkerConfig; Qwen3-Omni is published with 13."""


@dataclass(frozen=True, slots=True)
class Details:
    """Attributes:
    positions_per_second: Temporal positions in a second of a video.
    """

    positions_per_second: float


def read_pixels(
    image: Mapping[str, Any], video: Mapping[str, Any], name: str, *, token_side: int = 32
) -> tuple[PixelSpec, VideoSpec]:
    """The processor's own pixel budget of a video goes before that of its video processor.

    Args:
        token_side: Side in px of the squares that the processor counts, whatever the model's patches are.
    Source: transformers 5.23, Qwen3OmniMoeProcessor.videos_kwargs and Qwen2_5OmniProcessor.videos_kwargs.
    """
    budget = {"min_pixels": 128 * token_side**2, "max_pixels": 768 * token_side**2}
    return qwen2_vl.read_pixels(image, {**video, **budget}, name)


def read_placeholders(
    configuration: Configuration, modalities: frozenset[Modality], *, unnamed: Mapping[Modality, str] = _UNNAMED
) -> Placeholders:
    """
    Args:
        unnamed: The tokens where the tokenizer does not name them.
    Source: transformers 5.23, Qwen3OmniMoeProcessor.__init__ and Qwen2_5OmniProcessor.__init__.
    """
    tokens = {
        modality: configuration.token_named(f"{modality.name.lower()}_token", unnamed[modality])
        for modality in sorted(modalities)
    }
    return Placeholders(tokens, {modality: configuration.id_of(token) for modality, token in tokens.items()})


def read_details(configuration: Configuration) -> Details:
    thinker = configuration.config.get("thinker_config") or {}
    return Details(thinker.get("position_id_per_seconds", _POSITIONS_PER_SECOND))


def step_positions(item: ItemPlan, model: ModelSettings) -> npt.NDArray[np.float32]:
    """Temporal positions of an item's temporal patches, relative to its first: float32 [t].

    Source: transformers 5.23, get_rope_index of Qwen3-Omni's thinker, which multiplies in this order.
    """
    grid = item.rows.grid
    assert grid is not None, "`patch_rows` gives each item one"
    steps = np.arange(grid.t, dtype=np.float32)
    if item.frames is None:
        return steps * np.float32(model.details.positions_per_second)
    return steps * qwen2_5_vl.seconds_per_grid(item.frames, model) * np.float32(model.details.positions_per_second)


def prompt_tensors(
    prompt: ExpandedPrompt, items: Sequence[ItemPlan], model: ModelSettings
) -> dict[str, npt.NDArray[Any]]:
    """`mrope_position_ids` and `mrope_position_delta` are float32 here."""
    steps = [step_positions(item, model) for item in items]
    return clock_mrope_tensors(len(prompt.token_ids), prompt.spans, qwen2_vl.merged_grids(items, model), steps)


FAMILY = dataclasses.replace(
    qwen2_5_vl.FAMILY,
    name="qwen3_omni",
    model_types=("qwen3_omni_moe",),
    read_pixels=read_pixels,
    read_details=read_details,
    read_placeholders=read_placeholders,
    prompt_tensors=prompt_tensors,
    modalities=frozenset(Modality),
    text_in_parts=True,  # as on the generic path
    else_generic=True,
)
