"""A tiny random model as a folder that vLLM, transformers and this service load, with its tokenizer, template and settings.

python -m deploy.vllm.tiny_checkpoint FOLDER [MODEL]
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import tests.golden.huggingface  # noqa: F401  # first: it makes torchvision importable, which transformers looks for
from preprocessor.models import registry
from preprocessor.text.tokenizer import TokenTable, build_tokenizer

from transformers import (  # isort: skip
    GenerationConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

_BUILTIN = Path(registry.__file__).parent / "builtin"

# Heads of 32: vLLM's attention for CPUs knows none smaller. Weights are spread wider than usual, so that the answer depends on
# the pixels.
_TEXT: Mapping[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.2,
    "max_position_embeddings": 65536,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [8, 4, 4]},
}
_VISION: Mapping[str, Any] = {"depth": 2, "num_heads": 2, "initializer_range": 0.2}
_VISION_2_5 = {**_VISION, "hidden_size": 64, "intermediate_size": 128, "out_hidden_size": 64}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 96}
# One layer of each kind of attention. vLLM computes the linear one on a CPU with heads of 128, as the models have them.
_TEXT_3_5: Mapping[str, Any] = {
    **_TEXT,
    "head_dim": 64,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "rope_parameters": {**_TEXT["rope_parameters"], "partial_rotary_factor": 0.5},
}
# Of the tokenizer that it gets; its own has others.
_IDS = {
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
}


def _qwen2_vl() -> Any:
    vision = {**_VISION, "embed_dim": 64, "hidden_size": 64}
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=dict(_TEXT), vision_config=vision))


def _qwen2_5_vl() -> Any:
    vision = {**_VISION_2_5, "fullatt_block_indexes": [1], "tokens_per_second": 2}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=dict(_TEXT), vision_config=vision))


def _qwen3_vl() -> Any:
    text = {**_TEXT, "head_dim": 32}
    vision = {**_VISION_2_5, "deepstack_visual_indexes": [0, 1]}
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision))


def _qwen3_vl_moe() -> Any:
    text = {**_TEXT, "head_dim": 32, **_EXPERTS}
    vision = {**_VISION_2_5, "deepstack_visual_indexes": [0, 1]}
    return Qwen3VLMoeForConditionalGeneration(Qwen3VLMoeConfig(text_config=text, vision_config=vision))


def _qwen3_5() -> Any:
    return Qwen3_5ForConditionalGeneration(Qwen3_5Config(text_config=_TEXT_3_5, vision_config=_VISION_2_5, **_IDS))


def _qwen3_5_moe() -> Any:
    text = {**_TEXT_3_5, **_EXPERTS, "shared_expert_intermediate_size": 32}
    return Qwen3_5MoeForConditionalGeneration(Qwen3_5MoeConfig(text_config=text, vision_config=_VISION_2_5, **_IDS))


_PROCESSOR_TYPES: Mapping[str, dict[str, str]] = {
    "preprocessor_config.json": {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen3VLProcessor",
    },
    "video_preprocessor_config.json": {"video_processor_type": "Qwen3VLVideoProcessor"},
}


_MODELS: Mapping[str, tuple[Callable[[], Any], str]] = {
    "qwen2-vl": (_qwen2_vl, "qwen2-vl"),
    "qwen2.5-vl": (_qwen2_5_vl, "qwen2.5-vl"),
    "qwen3-vl": (_qwen3_vl, "qwen3-vl"),
    "qwen3-vl-moe": (_qwen3_vl_moe, "qwen3-vl"),
    "qwen3.5": (_qwen3_5, "qwen3-vl"),
    "qwen3.5-moe": (_qwen3_5_moe, "qwen3-vl"),
}
"""How each is made, and the built-in model whose tokenizer and settings it has."""


def write_folder(folder: Path, model: str = "qwen3-vl") -> None:
    """Write it; the same for the same torch release.

    Args:
        model: One of `_MODELS`.
    """
    torch.manual_seed(1)
    make, builtin = _MODELS[model]
    made = make()
    settings = _BUILTIN / builtin
    ends = json.loads((settings / "generation_config.json").read_text())["eos_token_id"]
    made.generation_config = GenerationConfig(eos_token_id=ends)
    made.save_pretrained(folder)
    complete_folder(folder, builtin)
    if model == "qwen3-vl-moe":
        _change_text_config(folder, norm_topk_prob=True)  # as transformers does always, which does not write it
        _transpose_experts(folder / "model.safetensors")


def complete_folder(folder: Path, model: str = "qwen3-vl") -> None:
    """Add to the weights and `config.json` of a model all else that vLLM reads."""
    settings = _BUILTIN / model
    tokens = json.loads((settings / "tokens.json").read_text())
    build_tokenizer(TokenTable(**tokens)).save_pretrained(folder)
    for name in ("preprocessor_config.json", "video_preprocessor_config.json", "chat_template.jinja"):
        if (settings / name).exists():
            shutil.copy(settings / name, folder)
    if model == "qwen3-vl":
        for (
            name,
            kinds,
        ) in _PROCESSOR_TYPES.items():  # transformers does not know it by the type of a mixture of experts
            found = json.loads((folder / name).read_text())
            (folder / name).write_text(json.dumps(kinds | found))
        config = json.loads((folder / "config.json").read_text())["text_config"]
        # vLLM reads positions in no other order.
        _change_text_config(folder, rope_parameters={**config["rope_parameters"], "mrope_interleaved": True})


def _transpose_experts(path: Path) -> None:
    """As Qwen3-VL's mixtures were published. transformers loads either layout and writes the other, which vLLM does not load."""
    weights = {
        name: weight.transpose(1, 2).contiguous() if ".mlp.experts." in name else weight
        for name, weight in load_file(path).items()
    }
    save_file(weights, path, metadata={"format": "pt"})


def _change_text_config(folder: Path, **changed: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= changed
    (folder / "config.json").write_text(json.dumps(config, indent=2))


if __name__ == "__main__":
    write_folder(Path(sys.argv[1]), *sys.argv[2:])
