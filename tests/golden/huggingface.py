"""Hugging Face's own classes for each model family, set up with the settings that our `Model` read, or by themselves from its
directory.

They need torchvision, of which only the resize is used, and that is plain torch.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from preprocessor.models.family import Model
from preprocessor.models.generic.torchvision import settle_torchvision
from preprocessor.types.request import Sampling
from preprocessor.vision.spec import PixelSpec

if settle_torchvision() == "absent":
    raise ImportError("the oracle needs torchvision: pip install torchvision==0.28.0 (beside torch 2.13.0)")

import transformers
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

logging.getLogger("transformers").setLevel(logging.ERROR)

_GLM = (transformers.Glm4vVideoProcessor, transformers.Glm46VVideoProcessor, transformers.Glm5NextVideoProcessor)


Budget = Callable[[Any, int | None, int | None], dict[str, Any]]
"""(an image or video processor, the caller's least and most pixels) → arguments of a call that say so."""


def size_budget(processor: Any, least: int | None, most: int | None) -> dict[str, Any]:
    size = processor.size
    least, most = (
        size["shortest_edge"] if least is None else least,
        size["longest_edge"] if most is None else most,
    )
    return {"size": {"shortest_edge": least, "longest_edge": most}}


def token_budget(processor: Any, least: int | None, most: int | None) -> dict[str, Any]:
    """In tokens, of which the asked pixels must be a multiple."""
    factor = processor.patch_size * processor.merge_size * processor.patch_expand_factor
    pixels = processor.temporal_patch_size * factor**2
    asked = {"min_image_tokens": least, "max_image_tokens": most}
    assert not any((value or 0) % pixels for value in asked.values()), asked
    return {name: value // pixels for name, value in asked.items() if value is not None}


def minimax_budget(processor: Any, least: int | None, most: int | None) -> dict[str, Any]:
    if not isinstance(processor, transformers.MiniMaxM3VLVideoProcessor):
        return size_budget(processor, least, most)
    budget = {name: value for name, value in (("min_pixels", least), ("max_pixels", most)) if value is not None}
    return {"do_resize": True, **budget}


def omni_budget(token_side: int) -> Budget:
    """The processor's own budget of a video goes before its video processor's."""
    own = {"shortest_edge": 128 * token_side**2, "longest_edge": 768 * token_side**2}

    def budget(processor: Any, least: int | None, most: int | None) -> dict[str, Any]:
        if least is most is None:
            return {}
        asked = size_budget(processor, least, most)
        if isinstance(processor, Qwen2VLVideoProcessor):
            asked["size"] = own | {
                name: asked["size"][name] for name, bound in zip(own, (least, most), strict=True) if bound
            }
        return asked

    return budget


def patch_budget(processor: Any, least: int | None, most: int | None) -> dict[str, Any]:
    """Kimi's has no least."""
    return {} if most is None else {"max_patches": most // processor.patch_size**2}


@dataclass(frozen=True, slots=True)
class FamilyClasses:
    """What transformers registers for a family's model types.

    Attributes:
        model: None where tokens have plain positions.
        budget: See `Budget`.
        chunk_count: (the video processor, frames) → the rows of `video_grid_thw` that a video has.
    """

    processor: type
    video_processor: type
    model: type | None = None
    config: type | None = None
    budget: Budget = size_budget
    chunk_count: Callable[[Any, int], int] = lambda processor, frame_count: 1


# Families whose settings differ in kind from Qwen2-VL's: transformers reads their directories itself.
_READ_FROM_DIRECTORY = {"glm4v", "glm46v", "glm5_next", "kimi_k25", "minimax_m3_vl", "qwen3_omni", "qwen2_5_omni"}
_OMNI = {"qwen3_omni", "qwen2_5_omni"}  # their seconds and positions are other arguments of other methods

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
    "glm4v": FamilyClasses(
        transformers.Glm4vProcessor, transformers.Glm4vVideoProcessor, transformers.Glm4vModel, transformers.Glm4vConfig
    ),
    "glm46v": FamilyClasses(
        transformers.Glm46VProcessor,
        transformers.Glm46VVideoProcessor,
        transformers.Glm46VModel,
        transformers.Glm46VConfig,
    ),
    "glm5_next": FamilyClasses(
        transformers.Glm5NextProcessor, transformers.Glm5NextVideoProcessor, budget=token_budget
    ),
    "kimi_k25": FamilyClasses(
        transformers.Kimi_K25Processor,
        transformers.Kimi_K25VideoProcessor,
        budget=patch_budget,
        chunk_count=lambda processor, frame_count: -(-frame_count // processor.temporal_patch_size),
    ),
    "qwen3_omni": FamilyClasses(
        transformers.Qwen3OmniMoeProcessor,
        Qwen2VLVideoProcessor,
        transformers.Qwen3OmniMoeThinkerForConditionalGeneration,
        transformers.models.qwen3_omni_moe.Qwen3OmniMoeThinkerConfig,
        budget=omni_budget(32),
    ),
    "qwen2_5_omni": FamilyClasses(
        transformers.Qwen2_5OmniProcessor,
        Qwen2VLVideoProcessor,
        transformers.Qwen2_5OmniThinkerForConditionalGeneration,
        transformers.models.qwen2_5_omni.Qwen2_5OmniThinkerConfig,
        budget=omni_budget(28),
    ),
    "minimax_m3_vl": FamilyClasses(
        transformers.MiniMaxM3VLProcessor,
        transformers.MiniMaxM3VLVideoProcessor,
        budget=minimax_budget,
        chunk_count=lambda processor, frame_count: (
            -(-frame_count // (processor.temporal_patch_size * processor.vision_segment_max_frames))
        ),
    ),
}

# Further models of a family, whose directories transformers reads itself: `model_type` of config.json → model and configuration.
_OTHER_MODELS = {"qwen4_exp": (transformers.Qwen4ExpModel, transformers.Qwen4ExpConfig)}

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
    if _is_read_from_directory(model):
        processor = transformers.AutoProcessor.from_pretrained(model.name)
        if is_omni(model):
            processor.video_processor.fps = model.video.fps
        return processor
    return CLASSES[model.family.name].processor(
        image_processor=Qwen2VLImageProcessor(**_settings(model.image)),
        tokenizer=model.tokenizer,
        video_processor=video_processor_of(model),
        chat_template=model.chat_template,
    )


@cache
def video_processor_of(model: Model) -> Any:
    """The family's video processor; `fps` is the model's own, which the Qwen2 classes leave unset."""
    if _is_read_from_directory(model):
        return processor_of(model).video_processor
    return CLASSES[model.family.name].video_processor(
        **_settings(model.video.pixels),
        fps=model.video.fps,
        min_frames=model.video.min_frames,
        max_frames=model.video.max_frames,
        max_video_tokens=model.video.max_video_tokens,
        cap_pixels_per_frame=model.video.cap_pixels_per_frame,
    )


def sample_frames(processor: Any, metadata: Any, sampling: Sampling) -> Any:
    """The frames that a video processor samples.

    The GLM classes heed no number of frames, and GLM-4.6V's no fps: what they would do is written here by other code of theirs.
    """
    count, fps = sampling.frame_count, sampling.fps
    if isinstance(processor, _GLM) and count is not None:
        indices = np.unique(np.linspace(0, metadata.total_num_frames - 1, count, dtype=int))
        return np.append(indices, indices[-1:]) if len(indices) % 2 else indices
    if isinstance(processor, transformers.Glm46VVideoProcessor) and fps is not None:
        capped = min(metadata.duration, 2_400)
        return transformers.Glm5NextVideoProcessor(max_frames=640, max_duration=capped).sample_frames(metadata, fps=fps)
    return processor.sample_frames(metadata, num_frames=count, fps=fps)


@cache
def rope_model_of(model: Model) -> Any:
    """The family's model without weights: only its position code is called. None where it has none."""
    classes = CLASSES[model.family.name]
    if classes.model is None or classes.config is None:
        return None
    if is_omni(model):
        return _omni_rope_model(model, classes.model, classes.config)
    if (other := _OTHER_MODELS.get(_model_type(model))) is not None:
        kind, config = other
        return _bare(kind, config(vision_config={"spatial_merge_size": model.image.merge_size}))
    vision: dict[str, Any] = _TINY_VISION | {
        "spatial_merge_size": model.image.merge_size,
        "patch_size": model.image.patch_size,
    }
    if model.family.name == "qwen2_5_vl":
        vision["tokens_per_second"] = model.tokens_per_second
    with torch.device("meta"):
        return classes.model(classes.config(text_config=dict(_TINY_TEXT), vision_config=vision))


def is_omni(model: Model) -> bool:
    return model.family.name in _OMNI


def _omni_rope_model(model: Model, kind: type, config: type) -> Any:
    def token(name: str) -> int:
        return int(model.tokenizer.convert_tokens_to_ids(getattr(model.tokenizer, f"{name}_token")))

    ids = {f"{name}_token_id": token(name) for name in ("image", "video", "audio")}
    starts = {f"{name}_start_token_id": token(f"{name}_bos") for name in ("vision", "audio")}
    settings = config(position_id_per_seconds=model.details.positions_per_second, **ids, **starts)
    bare = _bare(kind, settings)
    bare.spatial_merge_size = model.image.merge_size
    return bare


def _bare(kind: type, config: Any) -> Any:
    """A model without its dozens of layers, of which the position code needs none."""
    bare: Any = object.__new__(kind)
    torch.nn.Module.__init__(bare)
    bare.config = config
    return bare


def _is_read_from_directory(model: Model) -> bool:
    return model.family.name in _READ_FROM_DIRECTORY or _model_type(model) in _OTHER_MODELS


def _model_type(model: Model) -> str:
    """As the config.json of a directory says it; empty for a built-in."""
    path = Path(model.name) / "config.json"
    return str(json.loads(path.read_text())["model_type"]) if path.is_file() else ""


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
