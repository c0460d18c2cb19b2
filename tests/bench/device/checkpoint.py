"""Random weights in the shape of a real Qwen3-VL, saved as a checkpoint that Triton's model and the direct calls both load.

python -m tests.bench.device.checkpoint FOLDER [--tiny] [--dtype float32]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

import tests.golden.huggingface  # noqa: F401  # first: it makes torchvision importable, which transformers looks for
from tests.engine.model_files import model_file

from transformers import GenerationConfig, Qwen3VLConfig, Qwen3VLForConditionalGeneration  # isort: skip

# Qwen/Qwen3-VL-2B-Instruct, config.json; `initializer_range` is wider than its 0.02, with which a long prompt is
# answered by one token again and again.
_TEXT_2B = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 262144,
    "tie_word_embeddings": True,
    "initializer_range": 0.04,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]},
}
_VISION_2B = {
    "depth": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_heads": 16,
    "out_hidden_size": 2048,
    "deepstack_visual_indexes": [5, 11, 17],
    "initializer_range": 0.04,
}
END_OF_TURN_TOKEN_ID = 151645  # <|im_end|> of Qwen3's tokenizer


def write_checkpoint(folder: Path, dtype: torch.dtype, *, is_tiny: bool) -> Any:
    """Save the model; the same for the same seed, torch release and kind of device.

    Returns:
        The model, on the device where it was made: the GPU where there is one.
    """
    if is_tiny:
        model = model_file("vlm_transformers", "checkpoint").build_tiny_model(seed=1).to(dtype)
    else:
        config = Qwen3VLConfig(text_config=_TEXT_2B, vision_config=_VISION_2B, tie_word_embeddings=True)
        torch.manual_seed(1)
        torch.set_default_dtype(dtype)  # made in it at once: half the memory of float32
        try:
            with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
                model = Qwen3VLForConditionalGeneration(config)
        finally:
            torch.set_default_dtype(torch.float32)
        model.generation_config = GenerationConfig(eos_token_id=[END_OF_TURN_TOKEN_ID])
    model.save_pretrained(folder)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.device.checkpoint", description="Write a checkpoint.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tiny", action="store_true", help="the tests' model of 20 million weights")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    arguments = parser.parse_args()
    began = time.monotonic()
    model = write_checkpoint(arguments.folder, getattr(torch, arguments.dtype), is_tiny=arguments.tiny)
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{count / 1e9:.2f} billion weights, {arguments.dtype}, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
