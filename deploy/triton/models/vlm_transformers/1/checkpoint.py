"""Which model to serve: a real checkpoint, or, asked for by name, a tiny one made on the spot."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    GenerationConfig,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

# `engine_client.contract` checks Qwen3-VL's prompts: one span a temporal step of a video. Its mixture-of-experts sister is left
# out: transformers 5.23 switches the experts' implementation on the model itself while it decodes, so two prompts generating
# at once could leave the memory-hungry one in place for the next long prefill.
SUPPORTED_FAMILIES = ("qwen3_vl",)
END_OF_TURN_TOKEN_ID = 151645  # <|im_end|> of Qwen3's tokenizer
RANDOM_WEIGHTS = "random-weights"  # in the place of a checkpoint; no hub id lacks its owner


def load_checkpoint(checkpoint: str, device: torch.device) -> Any:
    """Load a checkpoint for inference.

    Args:
        checkpoint: A local path or a hub id; `RANDOM_WEIGHTS` makes the tiny model.
        device: Where it will run.
    Returns:
        A transformers model in evaluation mode, in the checkpoint's own dtype.
    Raises:
        ValueError: none is named, or it is of a family that this model does not know.
        OSError: the checkpoint cannot be found or read.
    """
    if not checkpoint:
        raise ValueError(
            "no checkpoint is set: name a local path or a hub id in the parameter `checkpoint` of config.pbtxt or in "
            f"VLM_CHECKPOINT, or {RANDOM_WEIGHTS} for a tiny random model that is good for trials only"
        )
    if checkpoint == RANDOM_WEIGHTS:
        return build_tiny_model().to(device)

    family = AutoConfig.from_pretrained(checkpoint).model_type
    if family not in SUPPORTED_FAMILIES:
        raise ValueError(f"checkpoint {checkpoint} is of family {family}; supported: {', '.join(SUPPORTED_FAMILIES)}")
    return AutoModelForImageTextToText.from_pretrained(checkpoint, dtype="auto").to(device).eval()


def build_tiny_model(seed: int = 0) -> Qwen3VLForConditionalGeneration:
    """Make a Qwen3-VL of 20 million random weights, float32 on the CPU; the same for the same seed and torch release.

    Real where a prompt can tell: vocabulary, special tokens, patch, merge and temporal sizes. Its weights are spread
    wider than a model's usually are at first, so that its answer depends on the pixels and not on the last token alone.
    """
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": 151936,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "initializer_range": 0.2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [4, 2, 2]},
        },
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 4,
            "out_hidden_size": 64,
            "deepstack_visual_indexes": [0, 1],
            "initializer_range": 0.2,
        },
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(eos_token_id=[END_OF_TURN_TOKEN_ID])
    return model.eval()
