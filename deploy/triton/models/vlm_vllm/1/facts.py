"""What vLLM's own configuration says of the loaded model: all that a prompt is checked against and laid out by.

Read once, after vLLM has resolved its arguments. It needs no import of vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from engine_client.contract.layout import ModelLayout, RowForm
from engine_client.contract.tensors import Array
from engine_client.contract.vllm_families import FAMILIES, VllmFamily, read_layout, why_refused
from engine_client.contract.vllm_rules import MODALITY_NAMES, VisionMarkers


class UnsupportedEngine(RuntimeError):
    """vLLM is missing, or the checkpoint is of a family that this model does not know; the text says which."""


@dataclass(frozen=True, slots=True, eq=False)
class EngineFacts:
    """One loaded model, as vLLM runs it."""

    family: VllmFamily
    model_type: str
    layout: ModelLayout
    """`max_positions` is vLLM's `max_model_len`."""
    dtype: torch.dtype
    """Of the encoder's input where `normalizes` is false."""
    normalizes: bool
    """vLLM takes uint8 patches and normalizes them on its device (0.32 does by default); otherwise it takes floats."""
    mean: Array | None
    std: Array | None
    """float32 [3]: what it normalizes by, of values from 0 to 1; None where it does not say."""
    max_items: Mapping[int, int]
    """Items a prompt, by the contract's `item_modality`."""
    max_item_tokens: int
    """The encoder's budget; vLLM never schedules an item above it."""
    markers: VisionMarkers | None
    """Around each frame of a video; None in families without time stamps."""
    rescales_alone: bool = False
    """Where it takes floats: values are multiplied by the rescale factor, not normalized (Gemma 4)."""


def read_facts(config: Any, encoder_budget: int, image_processor: Any) -> EngineFacts:
    """Read them.

    Args:
        config: A `VllmConfig` (0.32).
        encoder_budget: In tokens.
        image_processor: The checkpoint's own.
    Raises:
        UnsupportedEngine: the checkpoint is of another family, or takes no images and videos.
    """
    model, multimodal = config.model_config, config.model_config.multimodal_config
    own = model.hf_config
    why = why_refused(own.model_type)
    if why:
        raise UnsupportedEngine(f"the checkpoint is of family {own.model_type}; {why}")
    family = FAMILIES[own.model_type]
    layout = read_layout(
        own.model_type,
        own.to_dict(),
        vocabulary_size=own.get_text_config().vocab_size,
        max_positions=model.max_model_len,
    )
    if multimodal is None or layout is None:
        raise UnsupportedEngine(f"the checkpoint of family {own.model_type} takes no pictures that this model knows")
    mean, std = (getattr(image_processor, name, None) for name in ("image_mean", "image_std"))
    return EngineFacts(
        family=family,
        model_type=own.model_type,
        layout=layout,
        dtype=model.dtype,
        normalizes=bool(getattr(multimodal, "mm_device_do_normalize", False)),
        mean=None if mean is None else np.array(mean, np.float32),
        std=None if std is None else np.array(std, np.float32),
        max_items={kind: multimodal.get_limit_per_prompt(name) for kind, name in MODALITY_NAMES.items()},
        max_item_tokens=encoder_budget,
        markers=VisionMarkers(own.vision_start_token_id, own.vision_end_token_id) if family.has_stamps else None,
        rescales_alone=family.form is RowForm.PADDED and not getattr(image_processor, "do_normalize", False),
    )
