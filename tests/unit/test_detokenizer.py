"""Token ids → text, a piece at a time."""

from __future__ import annotations

import pytest

from preprocessor.models.family import Model
from preprocessor.text.detokenizer import Detokenizer
from preprocessor.text.tokenizer import encode

TEXT = "Two sentences. Naïve 你好，世界 👩‍👩‍👧‍👦🌍 — <b>3.14</b>\n\n\tend"


@pytest.mark.parametrize("step", [1, 2, 5, 1000])
def test_the_pieces_join_to_the_whole_text(model: Model, step: int) -> None:
    ids = encode(model.tokenizer, TEXT)
    detokenizer = Detokenizer(model.tokenizer)
    pieces = [detokenizer.push(ids[start : start + step]) for start in range(0, len(ids), step)]
    assert "".join(pieces) + detokenizer.finish() == TEXT


def test_no_piece_splits_a_character(model: Model) -> None:
    detokenizer = Detokenizer(model.tokenizer)
    pieces = [detokenizer.push([token_id]) for token_id in encode(model.tokenizer, TEXT)]
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)


def test_an_unfinished_character_is_held_back(model: Model) -> None:
    first, *rest = encode(model.tokenizer, "🫠")  # one character of several tokens
    assert rest
    assert Detokenizer(model.tokenizer).push([first]) == ""


def test_finish_marks_a_character_that_never_came_whole(model: Model) -> None:
    ids = encode(model.tokenizer, "ok 🫠")
    detokenizer = Detokenizer(model.tokenizer)
    pushed = detokenizer.push(ids[:-1])
    assert pushed + detokenizer.finish() == "ok \N{REPLACEMENT CHARACTER}"


def test_finish_has_nothing_to_add_to_a_whole_answer(model: Model) -> None:
    detokenizer = Detokenizer(model.tokenizer)
    detokenizer.push(encode(model.tokenizer, TEXT))
    assert detokenizer.finish() == ""


def test_special_tokens_are_left_out(model: Model) -> None:
    detokenizer = Detokenizer(model.tokenizer)
    assert detokenizer.push([*encode(model.tokenizer, "Yes"), model.tokenizer.eos_token_id]) == "Yes"


def test_special_tokens_are_kept_on_demand(model: Model) -> None:
    detokenizer = Detokenizer(model.tokenizer, skip_special_tokens=False)
    assert detokenizer.push([*encode(model.tokenizer, "Yes"), model.tokenizer.eos_token_id]) == "Yes<|im_end|>"


def test_nothing_pushed_is_no_text(model: Model) -> None:
    detokenizer = Detokenizer(model.tokenizer)
    assert detokenizer.push([]) + detokenizer.finish() == ""


@pytest.mark.parametrize(
    ("text", "stops", "expected", "is_stopped"),
    [
        ("one two three", ["two"], "one ", True),
        ("one two three", ["e t", "two"], "on", True),
        ("one two three", ["four"], "one two three", False),
        ("ends with sto", ["stop"], "ends with sto", False),
        ("aaab", ["aab"], "a", True),
        ("naïve 测试 ok", ["测试"], "naïve ", True),
        ("first", ["first"], "", True),
    ],
)
def test_a_stop_string_and_what_follows_do_not_come_out(
    model: Model, text: str, stops: list[str], expected: str, is_stopped: bool
) -> None:
    detokenizer = Detokenizer(model.tokenizer, stops)
    pieces = [detokenizer.push([token_id]) for token_id in encode(model.tokenizer, text)]
    assert "".join(pieces) + detokenizer.finish() == expected
    assert detokenizer.is_stopped is is_stopped


def test_text_that_cannot_begin_a_stop_string_is_not_held_back(model: Model) -> None:
    detokenizer = Detokenizer(model.tokenizer, ["\n\nUser:"])
    assert detokenizer.push(encode(model.tokenizer, "Hello")) == "Hello"
