"""A tiny Voxtral: a Tekken tokenizer with a token a byte and some words, in the format of mistral-common, and mel features."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers

# As in the published tekken.json of Voxtral; transformers' VoxtralProcessor has 24 in its code.
_SPECIAL: Mapping[int, str] = {
    **dict(enumerate(("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"))),
    7: "[TOOL_RESULTS]",
    8: "[/TOOL_RESULTS]",
    9: "[TOOL_CALLS]",
    10: "[IMG]",
    11: "<pad>",
    12: "[IMG_BREAK]",
    13: "[IMG_END]",
    14: "[PREFIX]",
    15: "[MIDDLE]",
    16: "[SUFFIX]",
    17: "[SYSTEM_PROMPT]",
    18: "[/SYSTEM_PROMPT]",
    19: "[TOOL_CONTENT]",
    24: "[AUDIO]",
    25: "[BEGIN_AUDIO]",
    32: "[ARGS]",
    33: "[CALL_ID]",
    34: "[TRANSCRIBE]",
    35: "[THINK]",
    36: "[/THINK]",
}
_SPECIAL_COUNT = 40
_WORDS = (b"th", b"the", b" th", b" the", b"af", b"aft", b"er", b"after")  # each is two of those before it, or bytes


def save_voxtral(directory: Path, version: str = "v11", mel_bins: int = 8) -> None:
    """
    Args:
        version: Of the tokenizer; from v11 a chat may have a system prompt beside sounds.
        mel_bins: Published models have 128.
    """
    extractor = transformers.WhisperFeatureExtractor(feature_size=mel_bins)
    directory.mkdir(parents=True, exist_ok=True)
    extractor.save_pretrained(directory)
    settings = directory / "preprocessor_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"processor_class": "VoxtralProcessor"}))
    (directory / "config.json").write_text('{"model_type": "voxtral"}')
    (directory / "tekken.json").write_text(json.dumps(_tekken(version, mel_bins)))


def _tekken(version: str, mel_bins: int) -> dict[str, Any]:
    tokens = [*(bytes([byte]) for byte in range(256)), *_WORDS]
    vocabulary = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": token.decode("utf-8", "ignore")}
        for rank, token in enumerate(tokens)
    ]
    special = [
        {"rank": rank, "token_str": _SPECIAL.get(rank, f"<SPECIAL_{rank}>"), "is_control": True}
        for rank in range(_SPECIAL_COUNT)
    ]
    return {
        "config": {
            "pattern": r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+",
            "num_vocab_tokens": len(tokens),
            "default_vocab_size": len(tokens) + _SPECIAL_COUNT,
            "default_num_special_tokens": _SPECIAL_COUNT,
            "version": version,
        },
        "vocab": vocabulary,
        "special_tokens": special,
        "audio": {
            "sampling_rate": 16_000,
            "frame_rate": 12.5,
            "chunk_length_s": 30.0,
            "audio_encoding_config": {"num_mel_bins": mel_bins, "hop_length": 160, "window_size": 400},
        },
    }
