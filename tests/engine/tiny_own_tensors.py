"""Tiny models whose own processor's tensors vLLM takes: a processor of `tests.tiny_processors`, and a whole `config.json`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tests.golden.huggingface  # noqa: F401  # first: it makes torchvision importable, which transformers looks for
from tests.tiny_processors import save_gemma3, save_internvl

from transformers import AutoTokenizer, Gemma3Config, InternVLConfig  # isort: skip

TEXT: Mapping[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 8192,
}
VISION: Mapping[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def _write_gemma3(folder: Path) -> None:
    save_gemma3(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["\n" * count for count in range(1, 5)])  # the model has them, and vLLM looks for them
    tokenizer.save_pretrained(folder)
    template = folder / "chat_template.jinja"  # vLLM 0.32 does not find an image before a line break
    template.write_text(template.read_text().replace("}}\n{% endif %}", "}}{% endif %}"))
    ids = tokenizer.convert_tokens_to_ids
    Gemma3Config(
        text_config=dict(TEXT),
        vision_config={**VISION, "image_size": 28, "patch_size": 7},
        mm_tokens_per_image=4,
        image_token_index=ids("<image_soft_token>"),
        boi_token_index=ids("<boi>"),
        eoi_token_index=ids("<eoi>"),
        architectures=["Gemma3ForConditionalGeneration"],
    ).save_pretrained(folder)


def _write_internvl(folder: Path) -> None:
    save_internvl(folder)
    ids = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids
    InternVLConfig(
        text_config={**TEXT, "model_type": "qwen2"},
        vision_config={**VISION, "image_size": [28, 28], "patch_size": [7, 7]},
        image_token_id=ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        architectures=["InternVLForConditionalGeneration"],
    ).save_pretrained(folder)


WRITERS: Mapping[str, Callable[[Path], None]] = {"gemma3": _write_gemma3, "internvl": _write_internvl}
"""By model type; each writes a folder that vLLM and this service load."""
