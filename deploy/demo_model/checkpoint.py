"""The demo's model: its configuration, and its weights as a folder that transformers, vLLM and the service load.

python -m deploy.demo_model.checkpoint FOLDER
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from deploy.vllm.tiny_checkpoint import complete_folder  # first: it makes transformers importable beside torchvision

from transformers import Qwen3VLConfig  # isort: skip

WEIGHTS = Path(__file__).with_name("weights.safetensors")
VOCABULARY_SIZE = 151936
"""Of Qwen3-VL."""
EMBEDDING = "model.language_model.embed_tokens.weight"
TOKEN_IDS = "token_ids"
"""In `WEIGHTS`: which rows of the vocabulary `EMBEDDING` has there."""

# Heads of 32: vLLM's attention for CPUs knows none smaller.
TEXT: Mapping[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "initializer_range": 0.06,
    "max_position_embeddings": 65536,
    "tie_word_embeddings": True,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [8, 4, 4],
        "mrope_interleaved": True,
    },
}
VISION: Mapping[str, Any] = {
    "depth": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_heads": 2,
    "out_hidden_size": 128,
    "num_position_embeddings": 36,
    "deepstack_visual_indexes": [0],
    "initializer_range": 0.06,
}


def configuration(vocabulary_size: int = VOCABULARY_SIZE) -> Any:
    """transformers' configuration of it."""
    text = {**TEXT, "vocab_size": vocabulary_size}
    return Qwen3VLConfig(text_config=text, vision_config=dict(VISION), tie_word_embeddings=True)


def write_folder(folder: Path, weights: Path = WEIGHTS) -> None:
    """Write the whole checkpoint, in float32. Rows of tokens that the model does not know are zeros."""
    loaded = load_file(weights)
    rows = loaded.pop(EMBEDDING).float()
    token_ids = loaded.pop(TOKEN_IDS)
    embedding = torch.zeros(VOCABULARY_SIZE, rows.shape[1])
    embedding[token_ids.long()] = rows
    whole = {name: weight.float() for name, weight in loaded.items()} | {EMBEDDING: embedding}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})
    config = configuration()
    config.dtype = torch.float32
    config.architectures = ["Qwen3VLForConditionalGeneration"]
    config.save_pretrained(folder)
    ends = {"eos_token_id": [151645, 151643]}
    (folder / "generation_config.json").write_text(json.dumps(ends))
    complete_folder(folder)


if __name__ == "__main__":
    write_folder(Path(sys.argv[1]))
