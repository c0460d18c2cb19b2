"""Planes of a frame → patch rows, written straight into the caller's array.

A row of the pixel tensor is one patch, its values ordered channel, frame, y, x. Rows run over time, then over merge
blocks (merge_size x merge_size patches that become one token), then over the patches of a block. This is the order of
transformers' `patchify`, without its permuted copy: each plane is seen as a grid of elements that are one patch row
wide (16 bytes for patch 16), and whole elements are moved.

Floats come from a table. A channel has 256 possible inputs; computing these the way transformers does gives its float32 output
bit for bit, and rounding the table to BF16 or FP16 equals casting that output.
"""

from __future__ import annotations

import functools
from typing import Any

import cv2
import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch

from preprocessor.types.request import PixelForm
from preprocessor.vision.spec import PixelSpec

PIXEL_DTYPES: dict[PixelForm, np.dtype[Any]] = {
    PixelForm.UINT8: np.dtype(np.uint8),
    PixelForm.BF16: np.dtype(ml_dtypes.bfloat16),
    PixelForm.FP16: np.dtype(np.float16),
    PixelForm.FP32: np.dtype(np.float32),
}


_BLOCK_VALUES = 1 << 17
"""Values of rows that are normalized at once where channels differ: they and their floats stay in cache."""


def write_patches(
    planes: npt.NDArray[np.uint8], spec: PixelSpec, out: npt.NDArray[np.uint8], positions: slice = slice(None)
) -> None:
    """Cut one frame into its part of the rows of a temporal patch.

    Args:
        planes: uint8 [3, height, width], sides multiples of `spec.factor`; see `resize.Resize`.
        out: uint8 [patches of one frame, feature_count], C-contiguous.
        positions: The frame's places among the `temporal_patch_size` of the patch: one, or all that are left where the frame is
            repeated, as for an image or at the end of an odd clip.
    """
    patch, merge = spec.patch_size, spec.merge_size
    _, height, width = planes.shape
    element = _element_dtype(patch)
    block_rows, block_columns = height // spec.factor, width // spec.factor
    # As elements: planes (channel, block row, patch row in block, y, block column, patch column in block), and
    # out (block row, block column, patch row in block, patch column in block, channel, frame, y).
    elements = planes.view(element).reshape(3, block_rows, merge, patch, block_columns, merge)
    target = out.view(element).reshape(block_rows, block_columns, merge, merge, 3, spec.temporal_patch_size, patch)
    # One call for all channels: numpy then chooses the loop order itself, in half the time of one call a channel.
    target[..., positions, :] = elements.transpose(1, 4, 2, 5, 0, 3)[..., np.newaxis, :]


def normalization_table(spec: PixelSpec, form: PixelForm) -> npt.NDArray[Any]:
    """The normalized value of every uint8 in every channel, [3, 256] in the form's dtype, read-only.

    Source: transformers 5.23, image_processing_backends, rescale_and_normalize: mean and std are divided by the rescale
    factor in float32, then (value - mean) / std; value * rescale factor where it does not normalize, which may differ in the
    last bit.
    """
    if not spec.normalizes:
        return _rescaling_table(spec.rescale_factor, form)
    return _normalization_table(spec.mean, spec.std, spec.rescale_factor, form)


@functools.lru_cache(maxsize=64)
def _normalization_table(
    channel_mean: tuple[float, ...], channel_std: tuple[float, ...], rescale_factor: float, form: PixelForm
) -> npt.NDArray[Any]:
    values = torch.arange(256, dtype=torch.float32)
    mean = torch.tensor(channel_mean) * (1.0 / rescale_factor)
    std = torch.tensor(channel_std) * (1.0 / rescale_factor)
    return _in_form(((values[None, :] - mean[:, None]) / std[:, None]).numpy(), form)


@functools.lru_cache(maxsize=64)
def _rescaling_table(rescale_factor: float, form: PixelForm) -> npt.NDArray[Any]:
    values = torch.arange(256, dtype=torch.uint8) * rescale_factor
    return _in_form(values.expand(3, 256).numpy(), form)


def _in_form(table: npt.NDArray[np.float32], form: PixelForm) -> npt.NDArray[Any]:
    converted = table.astype(PIXEL_DTYPES[form])
    converted.flags.writeable = False  # shared by every request
    return converted


def normalize_rows(rows: npt.NDArray[np.uint8], table: npt.NDArray[Any], out: npt.NDArray[Any]) -> None:
    """Look every value of uint8 patch rows [n, features] up in its channel's table, into `out` of the same shape.

    Both are C-contiguous. OpenCV needs a fifth of numpy's time for it, which makes an index of 8 bytes of each value first.
    """
    is_one_table = bool((table == table[0]).all())
    if table.itemsize == 2:  # bit patterns, as OpenCV knows no bfloat16
        table, out = table.view(np.uint16), out.view(np.uint16)
    if is_one_table:
        cv2.LUT(rows, table[0], out)
        return
    by_channel, targets = rows.reshape(len(rows), 3, -1), out.reshape(len(out), 3, -1)
    # Of small rows many at once: OpenCV goes through an array with gaps line by line, and a copy within the cache takes little.
    count = _BLOCK_VALUES // rows.shape[1]
    for channel in range(3):
        if count < 2:
            cv2.LUT(by_channel[:, channel], table[channel], targets[:, channel])
            continue
        for first in range(0, len(rows), count):
            block = slice(first, first + count)
            targets[block, channel] = cv2.LUT(np.ascontiguousarray(by_channel[block, channel]), table[channel])


def _element_dtype(patch_size: int) -> np.dtype[Any]:
    """One dtype as wide as a patch row of one channel: numpy moves numbers faster than opaque bytes."""
    return np.dtype({4: np.uint32, 8: np.uint64, 16: np.complex128}.get(patch_size, f"V{patch_size}"))
