"""The tokenizer of the package mistral-common, which some models' processors have: what loading and reading need of it.

It takes messages, and no rendered text: `mistral_chat` calls it. The package is optional (`vlm-preprocessor[voxtral]`).

Source: transformers 5.23, MistralCommonBackend.
"""

from __future__ import annotations

import copy
from importlib.metadata import version
from typing import Any

from transformers.tokenization_utils_tokenizers import TokenizersBackend
from transformers.utils.import_utils import is_mistral_common_available, is_soundfile_available

_LIBRARIES = ("mistral-common", "soundfile")  # names on the package index of what `missing_libraries` looks for


def missing_libraries() -> list[str]:
    """Which of `_LIBRARIES` cannot be imported, or are too old for this transformers."""
    found = (is_mistral_common_available(), is_soundfile_available())
    return [name for name, is_here in zip(_LIBRARIES, found, strict=True) if not is_here]


def writes_prompts(tokenizer: Any) -> bool:
    """Whether a processor's tokenizer takes messages, and no rendered text."""
    from transformers.tokenization_mistral_common import MistralCommonBackend  # only now: it may import torchvision

    return isinstance(tokenizer, MistralCommonBackend)


def own_versions(tokenizer: Any) -> list[str]:
    """What the fingerprint of a model must hold beside the classes of its processor; empty where another tokenizer writes."""
    return [f"mistral-common {version('mistral-common')}"] if writes_prompts(tokenizer) else []


def reading_tokenizer(tokenizer: Any) -> TokenizersBackend:
    """A copy of a processor's tokenizer for readers; of mistral-common's its vocabulary in the form of `tokenizers`."""
    if not writes_prompts(tokenizer):
        return copy.deepcopy(tokenizer)
    from transformers.integrations.mistral.tokenizer import convert_tekken_tokenizer

    return convert_tekken_tokenizer(str(tokenizer.tokenizer.instruct_tokenizer.tokenizer.file_path), chat_template="")
