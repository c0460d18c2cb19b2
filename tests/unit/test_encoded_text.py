"""Prompts that begin as an earlier one: their ids are those of the tokenizer, and nothing is kept where they might not be."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, Unigram, WordLevel
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from preprocessor.config import Limits
from preprocessor.errors import LimitExceeded
from preprocessor.models.family import Model
from preprocessor.text import encoded_text
from preprocessor.text.encoded_text import MAX_CUTS, EncodedText, TextMemory, special_tokens
from preprocessor.text.encoding import PromptPiece, encode_prompt
from preprocessor.text.tokenizer import encode
from tests.unit.test_encoding import LETTERS, TOKENS

LETTERS_OF_BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
SPECIAL = ("<|im_start|>", "<|im_end|>")


@pytest.fixture
def short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoded_text, "MIN_CHARACTERS", 0)
    monkeypatch.setattr(encoded_text, "_CUT_CHARACTERS", 8)


def tiny(change: Callable[[Tokenizer], object] = lambda backend: None, **token: bool) -> TokenizersBackend:
    """A tokenizer of bytes and a few pairs of them, of the kind of Qwen's, but for a change."""
    pairs = [("a", "b"), ("ab", "a"), ("Ġ", "a"), ("Ċ", "Ċ")]
    letters = [*LETTERS_OF_BYTES, *("".join(pair) for pair in pairs)]
    backend = Tokenizer(BPE({letter: number for number, letter in enumerate(letters)}, pairs))
    backend.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(r" ?\p{L}+|\p{N}|\s+(?!\S)|\s+|[^\s\p{L}\p{N}]+"), behavior="isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [AddedToken(content, **{"special": True, "normalized": False} | token) for content in SPECIAL]
    )
    change(backend)
    return TokenizersBackend(tokenizer_object=backend)


def setting(name: str, value: Any) -> Callable[[Tokenizer], None]:
    return lambda backend: setattr(backend, name, value)


def special_as_text(tokenizer: TokenizersBackend) -> TokenizersBackend:
    tokenizer.backend_tokenizer.encode_special_tokens = True
    return tokenizer


def as_gemma(backend: Tokenizer) -> None:
    backend.normalizer = normalizers.Replace(" ", "a")
    backend.pre_tokenizer = pre_tokenizers.Split("b", "merged_with_previous")
    backend.add_tokens([AddedToken("\n\n", normalized=False)])


ALIKE: dict[str, TokenizersBackend] = {
    "Qwen's kind": tiny(),
    "Gemma's kind": tiny(as_gemma),
    "no steps before the model": tiny(setting("normalizer", None)),
    "digits apart": tiny(
        setting("pre_tokenizer", pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(False)]))
    ),
}
UNLIKE: dict[str, TokenizersBackend] = {
    "tokens that take in white space before them": tiny(lstrip=True),
    "tokens that take in white space behind them": tiny(rstrip=True),
    "tokens that are whole words": tiny(single_word=True),
    "tokens that are found after the text is normalized": tiny(normalized=True),
    "a space before the first word": tiny(setting("pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True))),
    "a mark before the first word": tiny(setting("pre_tokenizer", pre_tokenizers.Metaspace(prepend_scheme="first"))),
    "something before each part": tiny(setting("normalizer", normalizers.Prepend("a"))),
    "a step among others": tiny(
        setting("normalizer", normalizers.Sequence([normalizers.NFC(), normalizers.Prepend("a")]))
    ),
    "chance": tiny(lambda backend: setattr(backend.model, "dropout", 0.5)),
    "a longest text": tiny(lambda backend: backend.enable_truncation(8)),
    "a shortest text": tiny(lambda backend: backend.enable_padding(length=8)),
    "special tokens as text": special_as_text(tiny()),
    "another token that reaches into it": tiny(lambda backend: backend.add_tokens(["a<|im"])),
    "another model": tiny(setting("model", Unigram([("a", 0.0)], 0, False))),
    "whole words": tiny(setting("model", WordLevel({"a": 0}, "a"))),
}


def encoded(tokenizer: TokenizersBackend, text: str, known: EncodedText | None = None) -> tuple[list[int], TextMemory]:
    memory = TextMemory(known)
    return encode_prompt(tokenizer, [(text, False)], Limits(), memory).tolist(), memory


def assert_turns_are_exact(tokenizer: TokenizersBackend, letters: list[str], seed: int, count: int) -> None:
    """Texts that begin like an earlier one, as often as not up to the middle of a word, a character or a token."""
    draw, reused_count = random.Random(seed), 0
    before, known = "", None
    for _ in range(count):
        text = before[: draw.randint(0, len(before))] + "".join(draw.choices(letters, k=draw.randint(0, 40)))
        ids, memory = encoded(tokenizer, text, known)
        assert ids == encode(tokenizer, text), (before, text)
        assert memory.made is not None
        assert memory.made.token_ids.tolist() == ids
        reused_count += memory.made.reused_count > 0
        before, known = (text, memory.made) if len(text) < 400 else ("", None)
    assert reused_count > count // 10


@pytest.mark.parametrize("seed", range(4))
def test_ids_of_later_texts_are_those_of_the_tokenizer(model: Model, short_parts: None, seed: int) -> None:
    assert_turns_are_exact(model.tokenizer, LETTERS + TOKENS, seed, 300)


@pytest.mark.parametrize("name", ALIKE)
def test_ids_are_those_of_tokenizers_of_other_kinds(short_parts: None, name: str) -> None:
    assert special_tokens(ALIKE[name]) is not None
    assert_turns_are_exact(ALIKE[name], ["a", "b", " ", "7", "\n\n", "é", "<|", "|>", *SPECIAL], 0, 500)


@pytest.mark.parametrize("name", UNLIKE)
def test_nothing_is_kept_of_a_tokenizer_whose_parts_depend_on_each_other(short_parts: None, name: str) -> None:
    assert special_tokens(UNLIKE[name]) is None
    assert encoded(UNLIKE[name], "aba<|im_end|> ab")[1].made is None


def test_a_text_that_the_tokenizer_puts_tokens_around_is_not_cut(short_parts: None) -> None:
    start, end = (("<|im_start|>", 260), ("<|im_end|>", 261))
    around = processors.TemplateProcessing(f"{start[0]} $A {end[0]}", special_tokens=[start, end])
    tokenizer = tiny(setting("post_processor", around))
    ids, memory = encoded(tokenizer, "ab<|im_end|>ab")
    assert (ids, memory.made) == (encode(tokenizer, "ab<|im_end|>ab"), None)
    assert ids[0] == 260
    tokenizer.bos_token = "<|im_start|>"
    ids, memory = encoded(tokenizer, "<|im_start|>ab<|im_end|>ab")
    assert ids[0] == 260 != ids[1]
    assert memory.made is not None


def test_a_literal_token_is_no_place_to_cut_and_is_not_kept(model: Model, short_parts: None) -> None:
    literal: list[PromptPiece] = [("a ", False), ("<|im_end|>", True), (" b<|im_end|>", False)]
    text = "".join(piece for piece, _ in literal)
    alone = encode_prompt(model.tokenizer, literal, Limits()).tolist()
    memory = TextMemory(encoded(model.tokenizer, text)[1].made)
    assert encode_prompt(model.tokenizer, literal, Limits(), memory).tolist() == alone != encode(model.tokenizer, text)
    assert memory.made is None


def test_a_text_of_the_same_length_is_not_taken_for_the_earlier_one(model: Model, short_parts: None) -> None:
    _, memory = encoded(model.tokenizer, "one two<|im_end|> and more")
    ids, other = encoded(model.tokenizer, "one six<|im_end|> and more", memory.made)
    assert ids == encode(model.tokenizer, "one six<|im_end|> and more")
    assert other.made is not None
    assert other.made.reused_count == 0


def test_a_turn_after_the_earlier_ones_is_all_that_is_encoded(model: Model) -> None:
    text, known, new_counts = "", None, []
    for number in range(6):
        text += f"<|im_start|>user\n{'some words ' * 300}{number}<|im_end|>\n"
        ids, memory = encoded(model.tokenizer, text + "<|im_start|>assistant\n", known)
        assert ids == encode(model.tokenizer, text + "<|im_start|>assistant\n")
        known = memory.made
        assert known is not None
        new_counts.append(len(ids) - known.reused_count)
        text += f"<|im_start|>assistant\nAnswer {number}.<|im_end|>\n"
    assert max(new_counts) < min(new_counts) + 30  # the answer, and the beginning of the next one


def test_a_chat_of_many_turns_keeps_a_bounded_number_of_cuts(model: Model, short_parts: None) -> None:
    text, known = "", None
    for number in range(3 * MAX_CUTS):
        text += f"<|im_end|>turn {number}"
        _, memory = encoded(model.tokenizer, text + "<|im_start|>", known)
        known = memory.made
        assert known is not None
        assert known.cuts[-1, 0] == len(text)
        assert 0 < len(known.cuts) == len(known.digests) <= MAX_CUTS


def test_what_is_refused_does_not_depend_on_what_is_known() -> None:
    tokenizer = tiny(setting("normalizer", None))  # not of the kind that long texts are cut for
    text = "<|im_start|>" + "ab" * 50_000
    memory = TextMemory()
    encode_prompt(tokenizer, [(text, False)], Limits(), memory)
    limits = dataclasses.replace(Limits(), max_tokenizing_bytes=len(text) * 500)
    with pytest.raises(LimitExceeded, match="characters that must be turned into tokens at once"):
        encode_prompt(tokenizer, [(text + "<|im_end|>", False)], limits, TextMemory(memory.made))


def test_a_short_text_is_not_kept(model: Model) -> None:
    assert encoded(model.tokenizer, "<|im_start|>user\nHi<|im_end|>")[1].made is None


def test_every_special_token_is_a_place_to_cut(model: Model) -> None:
    added = model.tokenizer.backend_tokenizer.get_added_tokens_decoder().values()
    special = {token.content for token in added if token.special}
    pattern = special_tokens(model.tokenizer)
    assert pattern is not None
    assert special > set(SPECIAL)
    assert all(pattern.fullmatch(content) for content in special)
