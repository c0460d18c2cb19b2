"""Hugging Face's own classes for each model family, set up with the settings that our `Model` read.

They need torchvision, of which only the resize is used, and that is plain torch.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from preprocessor.models.family import Model
from preprocessor.models.generic.torchvision import settle_torchvision
from preprocessor.vision.spec import PixelSpec

if settle_torchvision() == "absent":
    raise ImportError("the oracle needs torchvision: pip install torchvision==0.28.0 (beside torch 2.13.0)")

import transformers
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

logging.getLogger("transformers").setLevel(logging.ERROR)


@dataclass(frozen=True, slots=True)
class FamilyClasses:
    """What transformers registers for a family's model types."""

    processor: type
    video_processor: type
    model: type
    config: type


CLASSES = {
    "qwen2_vl": FamilyClasses(
        transformers.Qwen2VLProcessor, Qwen2VLVideoProcessor, transformers.Qwen2VLModel, transformers.Qwen2VLConfig
    ),
    "qwen2_5_vl": FamilyClasses(
        transformers.Qwen2_5_VLProcessor,
        Qwen2VLVideoProcessor,
        transformers.Qwen2_5_VLModel,
        transformers.Qwen2_5_VLConfig,
    ),
    "qwen3_vl": FamilyClasses(
        transformers.Qwen3VLProcessor, Qwen3VLVideoProcessor, transformers.Qwen3VLModel, transformers.Qwen3VLConfig
    ),
}

_TINY_TEXT = {
    "num_hidden_layers": 1,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
_TINY_VISION = {"depth": 1, "num_heads": 2, "hidden_size": 64, "intermediate_size": 64, "out_hidden_size": 64}


@cache
def processor_of(model: Model) -> Any:
    """The family's processor, with the settings and tokenizer of `model`."""
    return CLASSES[model.family.name].processor(
        image_processor=Qwen2VLImageProcessor(**_settings(model.image)),
        tokenizer=model.tokenizer,
        video_processor=video_processor_of(model),
        chat_template=model.chat_template,
    )


@cache
def video_processor_of(model: Model) -> Any:
    """The family's video processor; `fps` is the model's own, which the Qwen2 classes leave unset."""
    return CLASSES[model.family.name].video_processor(
        **_settings(model.video.pixels),
        fps=model.video.fps,
        min_frames=model.video.min_frames,
        max_frames=model.video.max_frames,
        max_video_tokens=model.video.max_video_tokens,
        cap_pixels_per_frame=model.video.cap_pixels_per_frame,
    )


@cache
def rope_model_of(model: Model) -> Any:
    """The family's model without weights: only its position code is called."""
    classes = CLASSES[model.family.name]
    vision: dict[str, Any] = _TINY_VISION | {
        "spatial_merge_size": model.image.merge_size,
        "patch_size": model.image.patch_size,
    }
    if model.family.name == "qwen2_5_vl":
        vision["tokens_per_second"] = model.tokens_per_second
    with torch.device("meta"):
        return classes.model(classes.config(text_config=dict(_TINY_TEXT), vision_config=vision))


def size_of(spec: PixelSpec) -> dict[str, int]:
    """A pixel budget as Hugging Face spells it."""
    return {"shortest_edge": spec.min_pixels, "longest_edge": spec.max_pixels}


def _settings(spec: PixelSpec) -> dict[str, Any]:
    return {
        "patch_size": spec.patch_size,
        "merge_size": spec.merge_size,
        "temporal_patch_size": spec.temporal_patch_size,
        "image_mean": list(spec.mean),
        "image_std": list(spec.std),
        "rescale_factor": spec.rescale_factor,
        "size": size_of(spec),
    }
