"""Patch rows beside a slow, obvious reference, and the normalization tables."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
import torch

from preprocessor.types.request import PixelForm
from preprocessor.vision.patches import (
    PIXEL_DTYPES,
    normalization_table,
    normalize_rows,
    write_patches,
)
from preprocessor.vision.spec import PixelSpec

Triple = tuple[float, float, float]
EVEN = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
UNEVEN = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def make_spec(patch: int = 16, merge: int = 2, temporal: int = 2, scale: tuple[Triple, Triple] = EVEN) -> PixelSpec:
    return PixelSpec(patch, merge, temporal, 1, 10**9, *scale)


def make_frames(count: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def slow_patches(frames: npt.NDArray[np.uint8], spec: PixelSpec) -> npt.NDArray[np.uint8]:
    """One patch at a time, in the order that the module's docstring tells."""
    size, merge = spec.patch_size, spec.merge_size
    frames = frames[[min(i, len(frames) - 1) for i in range(spec.temporal_patch_size)]]
    rows = []
    for block_y in range(0, frames.shape[1], spec.factor):
        for block_x in range(0, frames.shape[2], spec.factor):
            for y in range(block_y, block_y + size * merge, size):
                for x in range(block_x, block_x + size * merge, size):
                    patch = frames[:, y : y + size, x : x + size]
                    rows.append(patch.transpose(3, 0, 1, 2).ravel())  # channel, frame, y, x
    return np.stack(rows)


def patches(frames: npt.NDArray[np.uint8], spec: PixelSpec) -> npt.NDArray[np.uint8]:
    row_count = frames.shape[1] * frames.shape[2] // spec.patch_size**2
    out = np.full((row_count, spec.feature_count), 77, np.uint8)
    for position, frame in enumerate(frames):
        is_last = position == len(frames) - 1
        write_patches(frame.transpose(2, 0, 1).copy(), spec, out, slice(position, None if is_last else position + 1))
    return out


@pytest.mark.parametrize("patch", [4, 8, 14, 16])
@pytest.mark.parametrize("merge", [1, 2])
def test_rows_come_in_the_order_of_the_reference(patch: int, merge: int) -> None:
    spec = make_spec(patch, merge)
    frames = make_frames(2, 2 * spec.factor, 3 * spec.factor)
    assert np.array_equal(patches(frames, spec), slow_patches(frames, spec))


@pytest.mark.parametrize("patch", [14, 16])
def test_a_lone_frame_fills_its_temporal_patch(patch: int) -> None:
    spec = make_spec(patch)
    frames = make_frames(1, spec.factor, 2 * spec.factor)
    assert np.array_equal(patches(frames, spec), slow_patches(frames, spec))


def test_a_longer_temporal_patch_repeats_its_last_frame() -> None:
    spec = make_spec(temporal=4)
    frames = make_frames(3, spec.factor, spec.factor)
    assert np.array_equal(patches(frames, spec), slow_patches(frames, spec))


@pytest.mark.parametrize("form", [PixelForm.FP32, PixelForm.BF16, PixelForm.FP16])
def test_a_table_holds_the_forms_dtype(form: PixelForm) -> None:
    table = normalization_table(make_spec(), form)
    assert (table.shape, table.dtype) == ((3, 256), PIXEL_DTYPES[form])


def test_an_even_table_runs_from_minus_one_to_one() -> None:
    table = normalization_table(make_spec(), PixelForm.FP32)
    assert table[:, [0, 255]].tolist() == [[-1.0, 1.0]] * 3


@pytest.mark.parametrize(("form", "dtype"), [(PixelForm.BF16, torch.bfloat16), (PixelForm.FP16, torch.float16)])
def test_a_narrow_table_is_the_torch_cast_of_the_wide_one(form: PixelForm, dtype: torch.dtype) -> None:
    spec = make_spec(scale=UNEVEN)
    expected = torch.from_numpy(normalization_table(spec, PixelForm.FP32).copy()).to(dtype).view(torch.int16).numpy()
    assert np.array_equal(normalization_table(spec, form).view(np.int16), expected)


@pytest.mark.parametrize("scale", [EVEN, UNEVEN], ids=["one table", "a table a channel"])
@pytest.mark.parametrize("form", [PixelForm.FP32, PixelForm.BF16])
def test_each_value_is_looked_up_in_its_channels_table(scale: tuple[Triple, Triple], form: PixelForm) -> None:
    spec = make_spec(scale=scale)
    table = normalization_table(spec, form)
    rows = np.random.default_rng(1).integers(0, 256, (5, spec.feature_count), dtype=np.uint8)
    out = np.zeros(rows.shape, table.dtype)
    normalize_rows(rows, table, out)
    channels = rows.reshape(5, 3, -1)
    expected = np.stack([table[c][channels[:, c]] for c in range(3)], axis=1).reshape(rows.shape)
    assert np.array_equal(out.view(np.uint8), expected.view(np.uint8))


def test_bf16_is_two_bytes_wide() -> None:
    assert PIXEL_DTYPES[PixelForm.BF16] == np.dtype(ml_dtypes.bfloat16)
