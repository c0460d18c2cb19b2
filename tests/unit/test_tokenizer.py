"""A tokenizer built from ranks is the one that transformers' own converter makes of them."""

from __future__ import annotations

import base64
import json

from transformers.convert_slow_tokenizer import TikTokenConverter

from preprocessor.models.registry import load_model
from preprocessor.text.tokenizer import TokenTable

TABLE = TokenTable("qwen.tiktoken", "Qwen2Tokenizer", (), ())


def test_vocabulary_and_merges_equal_those_of_transformers_converter() -> None:
    converter = TikTokenConverter()
    lines = (line.split() for line in TABLE.ranks_file.read_bytes().splitlines())
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    converter.load_tiktoken_bpe = lambda _: ranks
    vocabulary, merges = converter.extract_vocab_merges_from_model(str(TABLE.ranks_file))
    built = json.loads(load_model("qwen3-vl").tokenizer.backend_tokenizer.to_str())["model"]
    assert {token: built["vocab"][token] for token in vocabulary} == vocabulary
    assert [tuple(pair) for pair in built["merges"]] == merges
