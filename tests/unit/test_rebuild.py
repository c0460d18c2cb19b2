"""Frames rebuilt from rows are those that the rows were cut from."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from preprocessor.types.request import PixelForm
from preprocessor.vision.patches import PIXEL_DTYPES, normalization_table, normalize_rows, write_patches
from preprocessor.vision.rebuild import PatchShape, denormalize_rows, rebuild_frames
from preprocessor.vision.spec import PixelSpec

EVEN = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
UNEVEN = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def rows_of(frames: npt.NDArray[np.uint8], shape: PatchShape) -> npt.NDArray[np.uint8]:
    spec = PixelSpec(shape.patch_size, shape.block_size, shape.temporal_patch_size, 1, 10**9, *EVEN)
    rows = np.zeros((frames.shape[1] * frames.shape[2] // shape.patch_size**2, spec.feature_count), np.uint8)
    for place, frame in enumerate(frames):
        write_patches(frame.transpose(2, 0, 1).copy(), spec, rows, slice(place, place + 1))
    return rows


@pytest.mark.parametrize(
    "shape", [PatchShape(16, 2, 2), PatchShape(14, 2, 2), PatchShape(8, 1, 1), PatchShape(4, 3, 4)]
)
def test_frames_come_back_as_they_were(shape: PatchShape) -> None:
    side = shape.patch_size * shape.block_size
    size = (shape.temporal_patch_size, 2 * side, 3 * side, 3)
    frames = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    rows = rows_of(frames, shape)
    rebuilt = rebuild_frames(rows, 2 * shape.block_size, 3 * shape.block_size, shape)
    np.testing.assert_array_equal(rebuilt, frames)


def test_rows_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="reshape"):
        rebuild_frames(np.zeros((3, 1536), np.uint8), 2, 2, PatchShape(16, 2, 2))


def test_channels_may_come_last() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (1, 8, 12, 3), np.uint8)
    rows = np.stack([frame[0, y : y + 4, x : x + 4].ravel() for y in (0, 4) for x in (0, 4, 8)])
    np.testing.assert_array_equal(rebuild_frames(rows, 2, 3, PatchShape(4, 1, 1, is_channels_last=True)), frame)


@pytest.mark.parametrize("scale", [EVEN, UNEVEN], ids=["even", "uneven"])
@pytest.mark.parametrize(("form", "tolerance"), [(PixelForm.FP32, 0), (PixelForm.FP16, 0), (PixelForm.BF16, 1)])
def test_normalized_values_come_back_up_to_their_rounding(
    scale: tuple[tuple[float, float, float], tuple[float, float, float]], form: PixelForm, tolerance: int
) -> None:
    rows = np.arange(256, dtype=np.uint8).repeat(3).reshape(256, 3)
    normalized = np.empty(rows.shape, PIXEL_DTYPES[form])
    normalize_rows(rows, normalization_table(PixelSpec(1, 1, 1, 1, 1, *scale), form), normalized)
    back = denormalize_rows(normalized, *scale)
    assert np.abs(back.astype(int) - rows).max() <= tolerance
