"""How many frames a rate makes, and the two rules that spread frames over a clip: tables."""

from __future__ import annotations

import pytest

from preprocessor.media.spreads import count_for_fps, spread_by_steps, spread_evenly


@pytest.mark.parametrize(
    ("total", "rate", "fps", "expected"),
    [
        (900, 30, 1, 30),
        (900, 30, 8, 240),
        (45, 30, 2, 4),  # 3 frames a clip of 1.5 s, raised to the least
        (3, 30, 2, 3),  # the least, but no more than there are
        (100_000, 30, 2, 768),  # the most
        (899, 30, 1, 29),  # truncated, not rounded
        (90, 30, 1000, 90),  # no frame twice
        (250, 30_000 / 1001, 1, 8),
        (900, 30, 1e-308, 4),
        (900, 30, 1e308, 768),  # infinitely many, if multiplied first
    ],
)
def test_fps_makes_this_many_frames(total: int, rate: float, fps: float, expected: int) -> None:
    assert count_for_fps(total, rate, fps, least=4, most=768) == expected


@pytest.mark.parametrize(
    ("total", "count", "expected"),
    [
        (10, 1, [0]),
        (10, 2, [0, 9]),
        (10, 4, [0, 3, 6, 9]),
        (6, 3, [0, 2, 5]),  # 2.5 rounds to the even 2
        (8, 3, [0, 4, 7]),  # 3.5 rounds to the even 4
        (3, 3, [0, 1, 2]),
        (1, 1, [0]),
        (3, 10, [0, 1, 2]),  # each once
    ],
)
def test_frames_are_spread_evenly_from_first_to_last(total: int, count: int, expected: list[int]) -> None:
    assert spread_evenly(total, count).tolist() == expected


@pytest.mark.parametrize(
    ("total", "count", "expected"),
    [
        (10, 4, [0, 2, 5, 7]),
        (900, 2, [0, 450]),
        (7, 6, [0, 1, 2, 3, 4, 5]),
        (5, 5, [0, 1, 2, 3, 4]),
        (17, 14, [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 12, 13, 14, 15]),  # torch's arange appends a 17, which is no frame
    ],
)
def test_frames_are_spread_by_steps_from_the_first(total: int, count: int, expected: list[int]) -> None:
    assert spread_by_steps(total, count).tolist() == expected
