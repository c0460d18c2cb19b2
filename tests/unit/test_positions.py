"""Multimodal rotary positions of small prompts, written out."""

from __future__ import annotations

import numpy as np

from preprocessor.types.plan import Grid
from preprocessor.vision.positions import mrope_positions

NO_SPANS = np.empty((0, 3), np.int32)


def test_text_alone_counts_up_on_all_axes() -> None:
    positions, _ = mrope_positions(4, NO_SPANS, [])
    assert positions.tolist() == [[0, 1, 2, 3]] * 3


def test_text_alone_has_a_delta_of_zero() -> None:
    assert mrope_positions(4, NO_SPANS, [])[1] == 0


def test_a_picture_spreads_over_its_grid() -> None:
    positions, _ = mrope_positions(8, np.array([[0, 1, 6]], np.int32), [Grid(1, 2, 3)])
    assert positions.tolist() == [
        [0, 1, 1, 1, 1, 1, 1, 4],
        [0, 1, 1, 1, 2, 2, 2, 4],
        [0, 1, 2, 3, 1, 2, 3, 4],
    ]


def test_the_delta_leads_from_length_to_the_next_position() -> None:
    positions, delta = mrope_positions(8, np.array([[0, 1, 6]], np.int32), [Grid(1, 2, 3)])
    assert positions.max() + 1 == 8 + delta


def test_a_span_with_time_counts_frames_on_the_first_axis() -> None:
    positions, _ = mrope_positions(4, np.array([[0, 0, 4]], np.int32), [Grid(2, 1, 2)])
    assert positions.tolist() == [[0, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 1]]


def test_spans_may_touch() -> None:
    spans = np.array([[0, 0, 2], [1, 2, 2]], np.int32)
    positions, _ = mrope_positions(4, spans, [Grid(1, 1, 2), Grid(1, 2, 1)])
    assert positions.tolist() == [[0, 0, 2, 2], [0, 0, 2, 3], [0, 1, 2, 2]]


def test_an_empty_prompt_has_no_positions() -> None:
    positions, delta = mrope_positions(0, NO_SPANS, [])
    assert (positions.shape, delta) == ((3, 0), 0)


def test_positions_are_int32() -> None:
    assert mrope_positions(3, NO_SPANS, [])[0].dtype == np.int32


def test_an_interval_spaces_time_steps_and_is_truncated() -> None:
    spans = np.array([[0, 1, 4]], np.int32)
    positions, _ = mrope_positions(6, spans, [Grid(4, 1, 1)], [1.75])
    assert positions.tolist() == [[0, 1, 2, 4, 6, 2], [0, 1, 1, 1, 1, 2], [0, 1, 1, 1, 1, 2]]


def test_an_interval_below_one_lets_steps_share_a_position() -> None:
    positions, _ = mrope_positions(4, np.array([[0, 0, 4]], np.int32), [Grid(4, 1, 1)], [0.4])
    assert positions[0].tolist() == [0, 0, 0, 1]


def test_the_delta_counts_from_the_largest_position_of_any_axis() -> None:
    # Text goes on one past the grid's larger side, behind the time axis that went further.
    positions, delta = mrope_positions(3, np.array([[0, 0, 2]], np.int32), [Grid(2, 1, 1)], [50.0])
    assert (positions[0].tolist(), delta) == ([0, 50, 1], 48)
