"""The model families of which vLLM's inputs are known: what their rows are, and by which names vLLM takes them.

The one place that says so, for the client of vLLM's own gRPC service and for the Triton model around vLLM.

Source: vLLM 0.32, model_executor/models, `_get_mm_fields_config` and `_get_prompt_updates` of qwen2_vl.py, qwen3_vl.py,
glm4_1v.py, gemma3_mm.py, gemma4_mm.py, mistral3.py, llava.py and interns1.py (InternVL in Hugging Face's form).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine_client.contract.layout import ModelLayout, RowForm


@dataclass(frozen=True, slots=True)
class VllmFamily:
    """What is the same for all models of one type.

    Attributes:
        name: Of the family, as fingerprints have it.
        has_videos: Whether vLLM takes videos of it.
        has_stamps: Each temporal step of a video has a time stamp and markers, which vLLM looks for.
        has_seconds: Positions in a video are of seconds: without `second_per_grid_ts` vLLM takes 1 s for each step.
        one_span_a_video, one_span_an_image: See `ModelLayout`.
        videos_have_image_pads: The placeholders of a video are an image's.
        tile_counts: vLLM's name for the number of tiles of each item; `{}` stands for the modality.
        tile_tokens: The entry of `config.json` that says how many tokens a tile becomes.
        token_id: vLLM's name for the placeholder, where it asks for it beside the pixels.
        vision_type: What `vision_config` must be, where the model type alone does not tell.
    """

    name: str
    form: RowForm = RowForm.PATCHES
    has_videos: bool = True
    has_stamps: bool = False
    has_seconds: bool = False
    one_span_a_video: bool = False
    one_span_an_image: bool = False
    videos_have_image_pads: bool = False
    tile_counts: str = ""
    tile_tokens: str = ""
    token_id: str = ""
    vision_type: str = ""

    @property
    def needs_layout(self) -> bool:
        """Whether a prompt cannot be checked without the model's `ModelLayout`."""
        return self.form is not RowForm.PATCHES or self.videos_have_image_pads


_QWEN3 = VllmFamily("qwen3_vl", has_stamps=True)
_GLM = VllmFamily("glm4v", videos_have_image_pads=True)
_GLM46 = VllmFamily("glm46v", videos_have_image_pads=True)

FAMILIES: Mapping[str, VllmFamily] = {
    "qwen2_vl": VllmFamily("qwen2_vl", one_span_a_video=True),
    "qwen2_5_vl": VllmFamily("qwen2_5_vl", one_span_a_video=True, has_seconds=True),
    "qwen3_vl": _QWEN3,
    "qwen3_vl_moe": _QWEN3,
    "qwen3_5": _QWEN3,
    "qwen3_5_moe": _QWEN3,
    "glm4v": _GLM,
    "glm4v_moe": _GLM,
    "glm_ocr": _GLM46,
    "gemma3": VllmFamily(
        "gemma3", RowForm.TILES, has_videos=False, tile_counts="num_patches", tile_tokens="mm_tokens_per_image"
    ),
    "gemma4": VllmFamily("gemma4", RowForm.PADDED),
    "internvl": VllmFamily(
        "internvl",
        RowForm.TILES,
        one_span_an_image=True,
        videos_have_image_pads=True,
        tile_counts="{}_num_patches",
        tile_tokens="image_seq_length",
        token_id="{}_token_id",
    ),
    "mistral3": VllmFamily("mistral3", RowForm.LINES, has_videos=False),
    "llava": VllmFamily("mistral3", RowForm.LINES, has_videos=False, vision_type="pixtral"),
}
"""By model type of Hugging Face."""

_ON_GPUS = "vLLM 0.32 computes it on GPUs alone, where its prompts have not been tried"
REFUSED: Mapping[str, str] = {
    "glm5_next": _ON_GPUS,
    "minimax_m3_vl": _ON_GPUS,
    "kimi_k25": "vLLM takes its pictures as `vision_chunk`, of which neither its gRPC service nor `vlm_vllm` knows",
    "glm46v": "vLLM has no model of this type; the checkpoints as published are of glm4v and glm4v_moe",
    "pixtral": "it was loaded in Mistral's own format, whose inputs differ; serve it in Hugging Face's (mistral3, llava)",
}
"""Families that are prepared on the fast path and cannot be sent to vLLM: why, by model type."""

_PROCESSORS: Mapping[str, str] = {"Glm4vProcessor": "glm4v", "Glm46VProcessor": "glm46v"}
"""Model types of GLM have either's processor, which decides what the family is."""


def why_refused(model_type: str) -> str:
    """What is wrong with a model of a type that is not served; empty where nothing is."""
    if model_type in FAMILIES:
        return ""
    why = REFUSED.get(model_type)
    return why or f"served are {', '.join(FAMILIES)}"


def family_name(model_type: str, processor_class: str) -> str:
    """The name of a model's family, as fingerprints have it.

    Args:
        processor_class: As its files name it; empty where they do not.
    """
    return _PROCESSORS.get(processor_class, FAMILIES[model_type].name)


def read_layout(
    model_type: str, config: Mapping[str, Any], *, vocabulary_size: int, max_positions: int
) -> ModelLayout | None:
    """What a model's `config.json` says of its rows and placeholders.

    Returns:
        None where it does not tell all that a prompt must be checked by, or is of a model that is not served.
    """
    family, vision = FAMILIES.get(model_type), config.get("vision_config")
    if family is None or not isinstance(vision, Mapping) or family.vision_type not in ("", vision.get("model_type")):
        return None
    image_id = config.get("image_token_id", config.get("image_token_index"))
    found = {
        "image_token_id": image_id,
        "video_token_id": image_id if family.videos_have_image_pads else config.get("video_token_id"),
        "temporal_patch_size": 1,
        "merge_size": 1,
        "patch_size": vision.get("patch_size"),
    }
    if family.form is RowForm.PATCHES:
        found |= {
            "merge_size": vision.get("spatial_merge_size"),
            "temporal_patch_size": vision.get("temporal_patch_size"),
        }
    elif family.form is RowForm.TILES:
        found |= {"patch_size": _side(vision.get("image_size")), "tile_tokens": config.get(family.tile_tokens)}
    elif family.form is RowForm.LINES:
        found |= {"merge_size": config.get("spatial_merge_size", 1), "max_side_px": vision.get("image_size")}
    else:
        found |= {"merge_size": vision.get("pooling_kernel_size")}
    if not family.has_videos:
        found["video_token_id"] = image_id
    if not all(isinstance(value, int) and value > 0 for value in found.values()):
        return None
    return ModelLayout(
        vocabulary_size=vocabulary_size,
        max_positions=max_positions,
        one_span_a_video=family.one_span_a_video,
        one_span_an_image=family.one_span_an_image,
        form=family.form,
        **found,
    )


def _side(size: Any) -> Any:
    """Of square tiles; None where they are not square."""
    sides = size if isinstance(size, list | tuple) else (size,)
    return sides[0] if len(set(sides)) == 1 else None
