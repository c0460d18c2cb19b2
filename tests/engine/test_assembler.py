"""One prompt that comes in pieces, apart from Triton: `engine_client.contract.assembler`."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch

from engine_client.contract.assembler import PromptAssembler, State
from engine_client.contract.errors import InvalidPrompt
from engine_client.triton.backend.rows import TorchRows
from tests.engine.prompts import mixed_prompt, text_prompt
from tests.engine.test_contract import LAYOUT

PROMPT = mixed_prompt()
ROWS = PROMPT["pixel_patches"]
OPENING = {name: array for name, array in PROMPT.items() if name != "pixel_patches"}


def assembling(tensors: dict[str, np.ndarray] = OPENING, *, is_whole: bool = False) -> PromptAssembler:
    return PromptAssembler(tensors, None, LAYOUT, TorchRows(torch.device("cpu")), is_whole=is_whole)


def seen(assembler: PromptAssembler, counts: list[int]) -> Callable[[], None]:
    return lambda: counts.append(assembler.rows.row_count)


def test_a_prompt_without_rows_waits_and_one_with_all_is_whole() -> None:
    assembler, counts = assembling(), list[int]()
    assert assembler.try_begin()
    assert assembler.advance(seen(assembler, counts)) is State.WAITING
    assert assembler.is_waiting
    assembler.add_rows(0, ROWS[:30], is_last=False)
    assert assembler.try_begin()
    assert assembler.advance(seen(assembler, counts)) is State.WAITING
    assembler.add_rows(30, ROWS[30:], is_last=True)
    assert assembler.try_begin()
    assert assembler.advance(seen(assembler, counts)) is State.WHOLE
    assert counts == [0, 30, 80]


@pytest.mark.parametrize("tensors", [PROMPT, text_prompt()], ids=["rows", "text"])
def test_a_prompt_that_came_at_once_is_whole_at_once(tensors: dict[str, np.ndarray]) -> None:
    assembler, counts = assembling(tensors, is_whole=True), list[int]()
    assert assembler.try_begin()
    assert assembler.advance(seen(assembler, counts)) is State.WHOLE
    assert counts == [len(tensors.get("pixel_patches", ()))]


def test_a_whole_prompt_is_answered_by_one_alone() -> None:
    assembler = assembling(PROMPT, is_whole=True)
    assert assembler.try_begin()
    assert assembler.advance(lambda: None) is State.WHOLE
    assert not assembler.try_begin()
    assert not assembler.is_waiting


def test_what_comes_while_rows_are_taken_is_not_missed() -> None:
    assembler, counts = assembling(), list[int]()

    def take() -> None:
        counts.append(assembler.rows.row_count)
        if assembler.rows.row_count < len(ROWS):
            first = assembler.rows.row_count
            assembler.add_rows(first, ROWS[first : first + 40], is_last=False)
            assert not assembler.try_begin(), "whoever takes these rows takes the next too"

    assert assembler.try_begin()
    assert assembler.advance(take) is State.WHOLE
    assert counts == [0, 40, 80]


def test_threads_that_bring_news_see_one_of_them_advance() -> None:
    assembler, begun = assembling(), list[bool]()
    threads = [threading.Thread(target=lambda: begun.append(assembler.try_begin())) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(begun) == [False] * 15 + [True]


def test_a_prompt_that_is_stopped_takes_no_more_rows() -> None:
    assembler, counts = assembling(), list[int]()
    assembler.add_rows(0, ROWS, is_last=True)
    assembler.stop()
    assert assembler.try_begin()
    assert assembler.advance(seen(assembler, counts)) is State.STOPPED
    assert counts == []


@pytest.mark.parametrize(
    ("first_row", "rows", "complaint"),
    [
        (1, ROWS[:5], "first_row is 1; 0 rows have come"),
        (0, ROWS[:79], "79 in all; grid_thw needs more"),
        (0, ROWS[:, :5], "must be uint8"),
    ],
)
def test_wrong_rows_end_the_prompt(first_row: int, rows: np.ndarray, complaint: str) -> None:
    assembler = assembling()
    assembler.add_rows(first_row, rows, is_last=True)
    assert assembler.try_begin()
    with pytest.raises(InvalidPrompt, match=complaint):
        assembler.advance(lambda: None)


def test_a_message_without_rows_ends_the_prompt_with_what_was_said_of_it() -> None:
    assembler = assembling()
    assembler.fail(InvalidPrompt("no rows in it"))
    assert assembler.try_begin()
    with pytest.raises(InvalidPrompt, match="no rows in it"):
        assembler.advance(lambda: None)


def test_a_prompt_that_says_to_be_whole_and_lacks_rows_is_none() -> None:
    with pytest.raises(InvalidPrompt, match="pixel_patches is missing"):
        assembling(is_whole=True)


def test_a_prompt_may_be_as_long_as_the_model_takes_and_no_longer() -> None:
    length = len(OPENING["input_ids"])
    most = {"max_tokens": np.array([LAYOUT.max_positions - length], np.int32)}
    assert assembling(OPENING | most).sampling.max_tokens == LAYOUT.max_positions - length
    with pytest.raises(InvalidPrompt, match=f"make {LAYOUT.max_positions + 1} positions"):
        assembling(OPENING | {"max_tokens": most["max_tokens"] + 1})
