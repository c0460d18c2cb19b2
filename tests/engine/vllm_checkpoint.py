"""A tiny random Qwen3-VL as a folder that both vLLM and this service load: weights, tokenizer, template and processor settings.

python -m tests.engine.vllm_checkpoint FOLDER
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch

from preprocessor.models import registry
from preprocessor.text.tokenizer import TokenTable, build_tokenizer
from tests.bench.device.checkpoint import END_OF_TURN_TOKEN_ID

from transformers import GenerationConfig, Qwen3VLConfig, Qwen3VLForConditionalGeneration  # isort: skip

# Heads of 32: vLLM's attention for CPUs knows none smaller. Weights are spread wider than usual, so that the answer depends on
# the pixels.
_TEXT = {
    "vocab_size": 151936,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "initializer_range": 0.2,
    "max_position_embeddings": 65536,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [8, 4, 4]},
}
_VISION = {
    "depth": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_heads": 2,
    "out_hidden_size": 64,
    "deepstack_visual_indexes": [0, 1],
    "initializer_range": 0.2,
}
_BUILTIN = Path(registry.__file__).parent / "builtin" / "qwen3-vl"


def write_folder(folder: Path) -> None:
    """Write it; the same for the same torch release."""
    config = Qwen3VLConfig(text_config=_TEXT, vision_config=_VISION)
    torch.manual_seed(1)
    model = Qwen3VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(eos_token_id=[END_OF_TURN_TOKEN_ID])
    model.save_pretrained(folder)
    complete_folder(folder)


def complete_folder(folder: Path) -> None:
    """Add to the weights of a Qwen3-VL all else that vLLM reads."""
    tokens = json.loads((_BUILTIN / "tokens.json").read_text())
    build_tokenizer(TokenTable(**tokens)).save_pretrained(folder)
    for name in ("preprocessor_config.json", "video_preprocessor_config.json", "chat_template.jinja"):
        shutil.copy(_BUILTIN / name, folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["rope_parameters"]["mrope_interleaved"] = True  # vLLM reads positions in no other order
    (folder / "config.json").write_text(json.dumps(config, indent=2))


if __name__ == "__main__":
    write_folder(Path(sys.argv[1]))
