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

import tests.golden.huggingface  # noqa: F401  # first: it makes torchvision importable, which transformers looks for
from preprocessor.models import registry
from preprocessor.text.tokenizer import TokenTable, build_tokenizer

from transformers import (  # isort: skip
    GenerationConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
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


_MODELS: Mapping[str, Callable[[], Any]] = {"qwen2-vl": _qwen2_vl, "qwen2.5-vl": _qwen2_5_vl, "qwen3-vl": _qwen3_vl}


def write_folder(folder: Path, model: str = "qwen3-vl") -> None:
    """Write it; the same for the same torch release.

    Args:
        model: A built-in model of this service, whose tokenizer and settings it has.
    """
    torch.manual_seed(1)
    made = _MODELS[model]()
    settings = _BUILTIN / model
    ends = json.loads((settings / "generation_config.json").read_text())["eos_token_id"]
    made.generation_config = GenerationConfig(eos_token_id=ends)
    made.save_pretrained(folder)
    complete_folder(folder, model)


def complete_folder(folder: Path, model: str = "qwen3-vl") -> None:
    """Add to the weights and `config.json` of a model all else that vLLM reads."""
    settings = _BUILTIN / model
    tokens = json.loads((settings / "tokens.json").read_text())
    build_tokenizer(TokenTable(**tokens)).save_pretrained(folder)
    for name in ("preprocessor_config.json", "video_preprocessor_config.json", "chat_template.jinja"):
        if (settings / name).exists():
            shutil.copy(settings / name, folder)
    if model == "qwen3-vl":
        config = json.loads((folder / "config.json").read_text())
        config["text_config"]["rope_parameters"]["mrope_interleaved"] = True  # vLLM reads positions in no other order
        (folder / "config.json").write_text(json.dumps(config, indent=2))


if __name__ == "__main__":
    write_folder(Path(sys.argv[1]), *sys.argv[2:])
