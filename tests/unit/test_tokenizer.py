"""A tokenizer built from ranks is the one that transformers makes of them."""

from __future__ import annotations

import base64
import json
import pickle

from tokenizers import AddedToken
from transformers import Qwen2Tokenizer
from transformers.convert_slow_tokenizer import TikTokenConverter

from preprocessor.models.registry import load_model
from preprocessor.text.tokenizer import TokenTable, encode
from tests.parity.directories import BUILTIN

TABLE = TokenTable(**json.loads((BUILTIN / "qwen3-vl" / "tokens.json").read_text()))


def test_it_equals_that_of_transformers_own_class_and_converter() -> None:
    converter = TikTokenConverter()
    lines = (line.split() for line in TABLE.ranks_file.read_bytes().splitlines())
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    converter.load_tiktoken_bpe = lambda _: ranks
    vocabulary, merges = converter.extract_vocab_merges_from_model(str(TABLE.ranks_file))
    theirs = Qwen2Tokenizer(vocab=vocabulary, merges=merges)
    theirs.backend_tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in TABLE.special]
    )
    theirs.backend_tokenizer.add_tokens([AddedToken(token, normalized=False) for token in TABLE.markup])
    theirs.eos_token = "<|im_end|>"

    ours = load_model("qwen3-vl").tokenizer

    assert json.loads(ours.backend_tokenizer.to_str()) == json.loads(theirs.backend_tokenizer.to_str())
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert len(ours) == len(theirs)


def test_it_goes_to_another_process_whole() -> None:
    tokenizer = load_model("qwen3-vl").tokenizer
    other = pickle.loads(pickle.dumps(tokenizer))
    text = "<|im_start|>user\nÄ video<|video_pad|> of 12 things<|im_end|>"
    assert encode(other, text) == encode(tokenizer, text)
    assert other.eos_token_id == tokenizer.eos_token_id
