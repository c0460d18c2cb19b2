"""Rows that come in pieces, without Triton: `engine_client.contract.rows`, and `steps.py` of `vlm_transformers`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from engine_client.contract.errors import InvalidPrompt
from engine_client.contract.prompt import check_prompt
from engine_client.contract.rows import RowBuffer
from engine_client.triton.backend.rows import TorchRows
from tests.engine.model_files import model_file
from tests.engine.prompts import FEATURE_COUNT, mixed_prompt
from tests.engine.test_contract import LAYOUT

steps = model_file("vlm_transformers", "steps")
CPU = torch.device("cpu")


def buffer() -> Any:
    prompt = mixed_prompt()  # grids [1, 4, 4], [2, 6, 4], [1, 2, 8]: 16 + 2 · 24 + 16 rows
    return RowBuffer(check_prompt(prompt, LAYOUT), LAYOUT, TorchRows(CPU))


def values(count: int, value: int = 0) -> np.ndarray:
    return np.full((count, FEATURE_COUNT), value, np.uint8)


@pytest.mark.parametrize(
    ("start", "row_count", "expected"),
    [
        (0, 0, None),
        (0, 15, None),
        (0, 16, (0, 16, ((1, 4, 4),))),
        (0, 39, (0, 16, ((1, 4, 4),))),
        (0, 40, (0, 40, ((1, 4, 4), (1, 6, 4)))),
        (16, 79, (16, 64, ((2, 6, 4),))),
        (40, 80, (40, 80, ((1, 6, 4), (1, 2, 8)))),
        (0, 80, (0, 80, ((1, 4, 4), (2, 6, 4), (1, 2, 8)))),
        (64, 79, None),
        (80, 80, None),
    ],
)
def test_a_run_is_all_whole_steps_that_have_come(start: int, row_count: int, expected: tuple[Any, ...] | None) -> None:
    plan = steps.StepPlan(mixed_prompt()["grid_thw"])
    run = plan.run(start, row_count)
    assert (run and (run.start, run.stop, run.grids)) == expected


def test_runs_leave_out_the_steps_of_skipped_items() -> None:
    grids = np.array([[1, 4, 4], [2, 6, 4], [1, 2, 8], [3, 4, 4]])  # rows 0-16, 16-64, 64-80, 80-128
    runs, start = [], 0
    plan = steps.StepPlan(grids, {1, 2})
    while (run := plan.run(start, 112)) is not None:
        runs.append((run.start, run.stop, run.grids, run.items))
        start = run.stop
    assert runs == [(0, 16, ((1, 4, 4),), (0,)), (80, 112, ((2, 4, 4),), (3,))]
    assert steps.StepPlan(grids, {0, 1, 2, 3}).run(0, 128) is None
    assert steps.StepPlan(grids, {0}).run(0, 30) is None


def test_text_alone_has_no_runs_and_lacks_no_rows() -> None:
    prompt = check_prompt({"input_ids": np.array([1], np.int32)}, LAYOUT)
    assert steps.StepPlan(prompt.grids).run(0, 0) is None
    assert RowBuffer(prompt, LAYOUT, TorchRows(CPU)).is_complete


def test_rows_are_where_they_belong_and_complete_with_the_last() -> None:
    collected = buffer()
    for first_row, count in ((0, 30), (30, 1), (31, 49)):
        assert not collected.is_complete
        collected.add(first_row, values(count, first_row))
    assert collected.is_complete
    assert collected.between(0, 80)[:, 0].tolist() == [0] * 30 + [30] + [31] * 49


def test_taken_rows_may_be_overwritten_by_their_sender() -> None:
    collected, sent = buffer(), values(80, 1)
    collected.add(0, sent)
    sent[:] = 2
    assert collected.between(0, 80).unique().tolist() == [1]


@pytest.mark.parametrize(
    ("first_row", "piece", "complaint"),
    [
        (11, values(1), "first_row is 11; 10 rows have come"),
        (9, values(1), "first_row is 9; 10 rows have come"),
        (-10, values(1), "first_row is -10"),
        (10, values(71), "has 81 rows; grid_thw needs 80"),
        (10, values(1)[:, 1:], r"must be uint8 \[any, 1536\]"),
        (10, values(1).astype(np.int8), r"must be uint8 \[any, 1536\]"),
        (10, values(1)[0], r"must be uint8 \[any, 1536\]"),
    ],
)
def test_a_piece_that_does_not_follow_is_named(first_row: int, piece: np.ndarray, complaint: str) -> None:
    collected = buffer()
    collected.add(0, values(10))
    with pytest.raises(InvalidPrompt, match=complaint):
        collected.add(first_row, piece)
    assert collected.row_count == 10


def test_rows_that_have_not_come_cannot_be_read() -> None:
    collected = buffer()
    collected.add(0, values(10))
    with pytest.raises(IndexError, match="of 10 that have come"):
        collected.between(5, 11)
