"""Tiny checkpoints of random weights of the families that vLLM takes beside Qwen's: processor, tokenizer and model together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import tests.golden.huggingface  # noqa: F401  # first: it makes torchvision importable, which transformers looks for
from tests.engine.tiny_own_tensors import TEXT, VISION
from tests.engine.tiny_own_tensors import WRITERS as TILE_WRITERS
from tests.golden.make_models import gemma4 as save_gemma4
from tests.parity.small_models import SMALL_MODELS
from tests.tiny_processors import byte_tokenizer, chat_template, save

import transformers  # isort: skip

_GLM_TEXT = {
    **TEXT,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e4,
        "partial_rotary_factor": 0.5,
        "mrope_section": [2, 3, 3],
    },
}
_GLM_SIZES = {"shortest_edge": 2 * 56 * 56, "longest_edge": 2 * 224 * 224}


def _glm(name: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        small = SMALL_MODELS[name]
        videos = {**small.video, "size": {**_GLM_SIZES, "longest_edge": 16 * 224 * 224}}
        dataclasses.replace(small, image={**small.image, "size": _GLM_SIZES}, video=videos).save(folder)
        ids = transformers.AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids
        transformers.Glm4vConfig(
            text_config=_GLM_TEXT,
            vision_config={
                **VISION,
                "depth": 2,
                "num_heads": 2,
                "out_hidden_size": TEXT["hidden_size"],
                "intermediate_size": 128,
            },
            image_token_id=ids("<|image|>"),
            video_token_id=ids("<|video|>"),
            image_start_token_id=ids("<|begin_of_image|>"),
            image_end_token_id=ids("<|end_of_image|>"),
            video_start_token_id=ids("<|begin_of_video|>"),
            video_end_token_id=ids("<|end_of_video|>"),
            architectures=["Glm4vForConditionalGeneration"],
        ).save_pretrained(folder)

    return write


def _save_pixtral(folder: Path, patch: int, merge: int) -> Any:
    processor = transformers.PixtralProcessor(
        image_processor=transformers.PixtralImageProcessor(
            size={"longest_edge": 8 * patch * merge}, patch_size={"height": patch, "width": patch}
        ),
        tokenizer=byte_tokenizer("[IMG]", "[IMG_BREAK]", "[IMG_END]"),
        patch_size=patch,
        spatial_merge_size=merge,
        chat_template=chat_template({"image": "[IMG]"}),
    )
    save(processor, folder)
    return processor.tokenizer.convert_tokens_to_ids("[IMG]")


def _pixtral_vision(patch: int, merge: int) -> dict[str, Any]:
    return {**VISION, "model_type": "pixtral", "head_dim": 32, "patch_size": patch, "image_size": 8 * patch * merge}


def _write_mistral3(folder: Path) -> None:
    transformers.Mistral3Config(
        image_token_index=_save_pixtral(folder, 14, 2),
        text_config={**TEXT, "model_type": "mistral"},
        vision_config=_pixtral_vision(14, 2),
        spatial_merge_size=2,
        architectures=["Mistral3ForConditionalGeneration"],
    ).save_pretrained(folder)


def _write_pixtral(folder: Path) -> None:
    """As Pixtral-12B in Hugging Face's form: a LLaVA with its processor and its encoder."""
    transformers.LlavaConfig(
        image_token_index=_save_pixtral(folder, 16, 1),
        text_config={**TEXT, "model_type": "mistral"},
        vision_config=_pixtral_vision(16, 1),
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        image_seq_length=1,
        architectures=["LlavaForConditionalGeneration"],
    ).save_pretrained(folder)


def _write_gemma4(folder: Path) -> None:
    save_gemma4(folder)
    ids = transformers.AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids
    transformers.Gemma4Config(
        text_config={
            **TEXT,
            "layer_types": ["sliding_attention", "full_attention"],
            "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": TEXT["vocab_size"],
            "pad_token_id": ids("</turn>"),
            "bos_token_id": ids("<bos>"),
            "eos_token_id": ids("</turn>"),
        },
        vision_config={**VISION, "num_key_value_heads": 2, "head_dim": 32, "default_output_length": 280},
        image_token_id=ids("<|image|>"),
        video_token_id=ids("<|video|>"),
        boi_token_id=ids("<|image>"),
        eoi_token_id=ids("<image|>"),
        architectures=["Gemma4ForConditionalGeneration"],
    ).save_pretrained(folder)


WRITERS: Mapping[str, Callable[[Path], None]] = {
    "glm-4.1v": _glm("glm-4.1v"),
    "glm-4.6v": _glm("glm-4.6v"),
    "mistral3": _write_mistral3,
    "pixtral": _write_pixtral,
    "gemma4": _write_gemma4,
    **TILE_WRITERS,
}
"""By name; each writes a folder that vLLM, transformers and this service load, all but its weights."""


def write_family(folder: Path, name: str) -> None:
    """Write it, weights included; the same for the same torch release."""
    torch.manual_seed(1)
    WRITERS[name](folder)
    config = transformers.AutoConfig.from_pretrained(folder)
    model = transformers.AutoModelForImageTextToText.from_config(config)
    with torch.no_grad():  # wider than usual, so that the answer depends on the pixels
        for part, weight in model.named_parameters():
            if weight.ndim > 1:  # Gemma's embeddings are its head too: wide ones would repeat the last token for ever
                weight.normal_(0, 0.02 if "embed_tokens" in part and name.startswith("gemma") else 0.2)
    end = transformers.AutoTokenizer.from_pretrained(folder).eos_token_id
    model.generation_config = transformers.GenerationConfig(eos_token_id=end)
    model.save_pretrained(folder)
    if name == "gemma3":
        _nest_vision_tower(folder / "model.safetensors")


def _nest_vision_tower(path: Path) -> None:
    """As Gemma 3 was published. transformers loads either names and writes the shorter ones, which vLLM does not know."""
    weights = {
        name.replace("vision_tower.", "vision_tower.vision_model."): weight for name, weight in load_file(path).items()
    }
    save_file(weights, path, metadata={"format": "pt"})
