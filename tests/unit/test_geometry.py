"""Sizes after resizing: tables, and what holds for every size. Equality with transformers is tested in tests/golden."""

from __future__ import annotations

import re
from functools import partial

import numpy as np
import pytest

from preprocessor.errors import UnsupportedMedia
from preprocessor.models.qwen3_vl import fit_video as fit_qwen3_video
from preprocessor.types.plan import Grid
from preprocessor.vision.geometry import fit_image, fit_video, patch_grid
from preprocessor.vision.spec import PixelSpec, VideoSpec
from tests.golden import oracle

IMAGE_BUDGET = {"factor": 32, "min_pixels": 65_536, "max_pixels": 16_777_216}
VIDEO_BUDGET = {"temporal_factor": 2, "factor": 32, "min_pixels": 4_096, "max_pixels": 25_165_824}
SPEC = PixelSpec(16, 2, 2, 4_096, 25_165_824, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (374, 374, (384, 384)),
        (720, 1280, (704, 1280)),  # 22.5 blocks round to the even 22
        (100, 100, (256, 256)),  # grown to the least
        (8000, 6000, (4704, 3520)),  # shrunk to the most
        (1, 200, (32, 3648)),
    ],
)
def test_an_image_becomes_this_large(height: int, width: int, expected: tuple[int, int]) -> None:
    assert fit_image(height, width, **IMAGE_BUDGET) == expected


@pytest.mark.parametrize(
    ("frame_count", "expected"),
    [(30, (384, 384)), (60, (384, 384)), (120, (384, 384)), (240, (320, 320)), (768, (160, 160))],
)
def test_a_videos_frames_share_the_budget(frame_count: int, expected: tuple[int, int]) -> None:
    assert fit_video(frame_count, 374, 374, **VIDEO_BUDGET) == expected


def test_a_frame_below_one_block_is_grown_to_it() -> None:
    assert fit_video(2, 10, 20, **VIDEO_BUDGET) == (32, 64)


@pytest.mark.parametrize("seed", range(3))
def test_an_image_always_fits_its_budget_in_whole_blocks(seed: int) -> None:
    random = np.random.default_rng(seed)
    for height, width in random.integers(64, 6000, (300, 2)).tolist():
        fitted_height, fitted_width = fit_image(height, width, **IMAGE_BUDGET)
        assert fitted_height % 32 == fitted_width % 32 == 0
        assert 65_536 <= fitted_height * fitted_width <= 16_777_216


def test_an_aspect_ratio_above_200_is_refused() -> None:
    with pytest.raises(UnsupportedMedia) as refused:
        fit_image(10, 2001, **IMAGE_BUDGET)
    assert refused.value.reason == "EXTREME_ASPECT_RATIO"


@pytest.mark.parametrize(("height", "width"), [(3, 601), (601, 3), (327, 65_401), (40, 8_001)])
def test_no_refused_aspect_ratio_is_told_as_the_bound_itself(height: int, width: int) -> None:
    for fit, budget in ((fit_image, IMAGE_BUDGET), (partial(fit_video, 2), VIDEO_BUDGET)):
        with pytest.raises(UnsupportedMedia) as refused:
            fit(height, width, **budget)
        assert f"{width}x{height}" in refused.value.message
        assert re.findall(r"(?<![x\d])\d+(?![x\d])", refused.value.message) == ["200"]


def test_a_size_that_is_enlarged_before_its_ratio_is_judged_is_told_with_both() -> None:
    with pytest.raises(UnsupportedMedia, match="601x3, enlarged to 6410x32"):
        fit_video(2, 3, 601, **VIDEO_BUDGET)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("bound", ["max_pixels", "min_pixels"])
def test_bounds_that_cross_are_applied_as_transformers_applies_them(bound: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    for height, width in random.integers(64, 6000, (100, 2)).tolist():
        crossed = {"max_pixels": 20_000} if bound == "max_pixels" else {"min_pixels": 30_000_000}
        theirs = oracle.fit_image(height, width, **IMAGE_BUDGET | crossed)
        assert fit_image(height, width, **IMAGE_BUDGET | crossed) == theirs


def test_an_aspect_ratio_of_200_is_accepted() -> None:
    assert fit_image(10, 2000, **IMAGE_BUDGET)


@pytest.mark.parametrize(("frame_count", "t"), [(1, 1), (2, 1), (3, 2), (4, 2)])
def test_an_odd_frame_fills_a_temporal_patch_alone(frame_count: int, t: int) -> None:
    assert patch_grid(frame_count, 64, 96, SPEC) == Grid(t, 4, 6)


def test_a_single_frame_is_sized_as_a_whole_temporal_patch() -> None:
    spec = VideoSpec(SPEC, fps=2, min_frames=4, max_frames=768)
    assert fit_qwen3_video(1, 374, 374, spec) == fit_qwen3_video(2, 374, 374, spec)


def test_a_frame_token_cap_bounds_each_frame() -> None:
    spec = VideoSpec(SPEC, fps=2, min_frames=4, max_frames=768, cap_pixels_per_frame=True, max_video_tokens=100)
    height, width = fit_qwen3_video(4, 2000, 2000, spec)
    assert height * width <= 100 * 32 * 32
