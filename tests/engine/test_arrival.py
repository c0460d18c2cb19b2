"""One prompt that comes in pieces, apart from Triton: `deploy/triton/prompts/arrival.py`."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch

from deploy.triton.prompts.arrival import Arrival, State
from deploy.triton.prompts.errors import InvalidPrompt
from tests.engine.prompts import mixed_prompt, text_prompt
from tests.engine.test_contract import LAYOUT

PROMPT = mixed_prompt()
ROWS = PROMPT["pixel_patches"]
OPENING = {name: array for name, array in PROMPT.items() if name != "pixel_patches"}


def arriving(tensors: dict[str, np.ndarray] = OPENING, *, is_whole: bool = False) -> Arrival:
    return Arrival(tensors, None, LAYOUT, torch.device("cpu"), is_whole=is_whole)


def seen(arrival: Arrival, counts: list[int]) -> Callable[[], None]:
    return lambda: counts.append(arrival.rows.row_count)


def test_a_prompt_without_rows_waits_and_one_with_all_is_whole() -> None:
    arrival, counts = arriving(), list[int]()
    assert arrival.claim()
    assert arrival.advance(seen(arrival, counts)) is State.WAITING
    assert arrival.is_waiting
    arrival.add_rows(0, ROWS[:30], is_last=False)
    assert arrival.claim()
    assert arrival.advance(seen(arrival, counts)) is State.WAITING
    arrival.add_rows(30, ROWS[30:], is_last=True)
    assert arrival.claim()
    assert arrival.advance(seen(arrival, counts)) is State.WHOLE
    assert counts == [0, 30, 80]


@pytest.mark.parametrize("tensors", [PROMPT, text_prompt()], ids=["rows", "text"])
def test_a_prompt_that_came_at_once_is_whole_at_once(tensors: dict[str, np.ndarray]) -> None:
    arrival, counts = arriving(tensors, is_whole=True), list[int]()
    assert arrival.claim()
    assert arrival.advance(seen(arrival, counts)) is State.WHOLE
    assert counts == [len(tensors.get("pixel_patches", ()))]


def test_a_whole_prompt_is_answered_by_one_alone() -> None:
    arrival = arriving(PROMPT, is_whole=True)
    assert arrival.claim()
    assert arrival.advance(lambda: None) is State.WHOLE
    assert not arrival.claim()
    assert not arrival.is_waiting


def test_what_comes_while_rows_are_taken_is_not_missed() -> None:
    arrival, counts = arriving(), list[int]()

    def take() -> None:
        counts.append(arrival.rows.row_count)
        if arrival.rows.row_count < len(ROWS):
            first = arrival.rows.row_count
            arrival.add_rows(first, ROWS[first : first + 40], is_last=False)
            assert not arrival.claim(), "whoever takes these rows takes the next too"

    assert arrival.claim()
    assert arrival.advance(take) is State.WHOLE
    assert counts == [0, 40, 80]


def test_threads_that_bring_news_see_one_of_them_advance() -> None:
    arrival, claims = arriving(), list[bool]()
    threads = [threading.Thread(target=lambda: claims.append(arrival.claim())) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claims) == [False] * 15 + [True]


def test_a_prompt_that_is_stopped_takes_no_more_rows() -> None:
    arrival, counts = arriving(), list[int]()
    arrival.add_rows(0, ROWS, is_last=True)
    arrival.stop()
    assert arrival.claim()
    assert arrival.advance(seen(arrival, counts)) is State.STOPPED
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
    arrival = arriving()
    arrival.add_rows(first_row, rows, is_last=True)
    assert arrival.claim()
    with pytest.raises(InvalidPrompt, match=complaint):
        arrival.advance(lambda: None)


def test_a_message_without_rows_ends_the_prompt_with_what_was_said_of_it() -> None:
    arrival = arriving()
    arrival.refuse("no rows in it")
    assert arrival.claim()
    with pytest.raises(InvalidPrompt, match="no rows in it"):
        arrival.advance(lambda: None)


def test_a_prompt_that_says_to_be_whole_and_lacks_rows_is_none() -> None:
    with pytest.raises(InvalidPrompt, match="pixel_patches is missing"):
        arriving(is_whole=True)


def test_a_prompt_may_be_as_long_as_the_model_takes_and_no_longer() -> None:
    length = len(OPENING["input_ids"])
    most = {"max_tokens": np.array([LAYOUT.max_positions - length], np.int32)}
    assert arriving(OPENING | most).sampling.max_tokens == LAYOUT.max_positions - length
    with pytest.raises(InvalidPrompt, match=f"make {LAYOUT.max_positions + 1} positions"):
        arriving(OPENING | {"max_tokens": most["max_tokens"] + 1})
