"""Wishes that no clip could satisfy are refused before a file is looked at."""

from __future__ import annotations

import itertools
import math

import pytest

from preprocessor.errors import InvalidRequest
from preprocessor.media.sampling_checks import check_sampling
from preprocessor.types.request import Sampling

WAYS: dict[str, object] = {
    "fps": 1.0,
    "frame_count": 4,
    "indices": (0, 1),
    "times_seconds": (0.0, 1.0),
    "every_frame": True,
}
BOUNDS: dict[str, object] = {"start_seconds": 1.0, "end_seconds": 2.0}


def refusal(**sampling: object) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as refused:
        check_sampling(Sampling(**sampling), "clip-7")  # type: ignore[arg-type]
    return refused.value


@pytest.mark.parametrize(("one", "other"), [*itertools.combinations(WAYS, 2)])
def test_two_ways_at_once_are_refused_by_name(one: str, other: str) -> None:
    error = refusal(**{one: WAYS[one], other: WAYS[other]})
    assert (error.reason, one in error.message, other in error.message) == ("SAMPLING_CONFLICT", True, True)


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("way", ["indices", "times_seconds"])
def test_named_frames_with_a_window_are_refused(way: str, bound: str) -> None:
    assert refusal(**{way: WAYS[way], bound: BOUNDS[bound]}).reason == "SAMPLING_CONFLICT"


@pytest.mark.parametrize("way", WAYS)
def test_one_way_alone_is_accepted(way: str) -> None:
    check_sampling(Sampling(**{way: WAYS[way]}), "clip")  # type: ignore[arg-type]


@pytest.mark.parametrize("way", [{}, *({way: WAYS[way]} for way in ("fps", "frame_count", "every_frame"))], ids=str)
def test_a_window_is_accepted_with_what_spreads_frames(way: dict[str, object]) -> None:
    check_sampling(Sampling(**way, **BOUNDS), "clip")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "sampling",
    [
        *({"fps": value} for value in (0.0, -1.0, math.nan, math.inf)),
        *({"frame_count": value} for value in (0, -1)),
        *({"indices": value} for value in ((), (-1,), (3, 2), (0, 5, 4))),
        *(
            {"times_seconds": value}
            for value in ((), (-0.1,), (math.nan,), (0.0, math.inf), (2.0, 1.0), (1.0, math.nan))
        ),
        *({name: value} for name in BOUNDS for value in (-0.1, math.nan, math.inf)),
        {"start_seconds": 2.0, "end_seconds": 2.0},
        {"start_seconds": 3.0, "end_seconds": 2.0},
    ],
    ids=str,
)
def test_an_impossible_value_is_refused(sampling: dict[str, object]) -> None:
    assert refusal(**sampling).reason == "INVALID_SAMPLING"


def test_a_refusal_names_the_medium() -> None:
    error = refusal(fps=0.0)
    assert ("clip-7" in error.message, error.metadata) == (True, {"media_key": "clip-7"})


def test_a_long_list_is_cut_short_in_the_message() -> None:
    assert len(refusal(indices=tuple(range(100_000, 0, -1))).message) < 200
