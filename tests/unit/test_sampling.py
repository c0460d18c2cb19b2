"""Which frames of a clip are used: tables."""

from __future__ import annotations

import pytest

from preprocessor.errors import InvalidRequest
from preprocessor.media.sampling import check_sampling, count_for_fps, spread_evenly
from preprocessor.types import Sampling


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
    ],
)
def test_frames_are_spread_from_first_to_last(total: int, count: int, expected: list[int]) -> None:
    assert spread_evenly(total, count).tolist() == expected


def test_more_frames_than_there_are_give_each_once() -> None:
    assert spread_evenly(3, 10).tolist() == [0, 1, 2]


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan"), float("inf")])
def test_an_impossible_fps_is_refused(fps: float) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_sampling(Sampling(fps=fps), "clip")
    assert refused.value.reason == "INVALID_SAMPLING"


@pytest.mark.parametrize("count", [0, -1])
def test_an_impossible_frame_count_is_refused(count: int) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_sampling(Sampling(frame_count=count), "clip")
    assert refused.value.reason == "INVALID_SAMPLING"


def test_fps_and_frame_count_together_are_refused() -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_sampling(Sampling(fps=1, frame_count=4), "clip")
    assert refused.value.reason == "SAMPLING_CONFLICT"


def test_a_refusal_names_the_medium() -> None:
    with pytest.raises(InvalidRequest, match="clip-7") as refused:
        check_sampling(Sampling(fps=0), "clip-7")
    assert refused.value.metadata == {"media_key": "clip-7"}
