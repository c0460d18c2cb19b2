"""The weights of torch's antialiased bicubic resize of uint8 pixels, along one side of a picture.

The filter is not repeated here: torch is asked. Its float64 operator computes the same weights, and a line that is 1 at one pixel
and 0 elsewhere, once resized, shows the weight of that pixel in each output. An output uses few neighbouring pixels, so one line
serves for all pixels that are further apart than that.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

MOST_SHRINKING = 16
"""Sides that become smaller than a sixteenth are refused: so many taps would be large tables."""

_SUPPORT_PX = 2  # of the bicubic filter, at each side
_UNIT_PRECISION = 14
_MOST_PRECISION = 22  # bits; torch, _compute_index_ranges_int16_weights


@dataclass(frozen=True, slots=True, eq=False)
class AxisWeights:
    """How outputs are made along one side.

    Attributes:
        source, target: Length in px, before and after.
        starts: int32 [target]: the pixel of an output's first weight; below 0 only where that weight is 0.
        weights: int16 [target, taps]; 0 for pixels outside of the picture.
        precision: Bits behind the point.
    """

    source: int
    target: int
    starts: npt.NDArray[np.int32]
    weights: npt.NDArray[np.int16]
    precision: int


@functools.lru_cache(maxsize=64)
def axis_weights(source: int, target: int) -> AxisWeights:
    """Source: torch 2.13, aten/src/ATen/native/cpu/UpSampleKernel.cpp, how weights become int16."""
    if source == target:
        unit = np.full((target, 1), 1 << _UNIT_PRECISION, np.int16)
        return AxisWeights(source, target, np.arange(target, dtype=np.int32), unit, _UNIT_PRECISION)
    scale = source / target
    support = _SUPPORT_PX * max(scale, 1.0)
    spacing = 2 * math.ceil(support) + 3  # taps of one output, and one more at each side: rounding may move the first
    combs = np.zeros((spacing, source))
    pixels = np.arange(source)
    combs[pixels % spacing, pixels] = 1
    answers = torch.ops.aten._upsample_bicubic2d_aa(
        torch.from_numpy(combs[np.newaxis, np.newaxis]), (spacing, target), False
    )[0, 0].numpy()
    centers = scale * (np.arange(target) + 0.5)
    starts = np.floor(centers - support + 0.5).astype(np.int32) - 1
    taps = starts[:, np.newaxis] + np.arange(spacing)
    weights = answers[taps % spacing, np.arange(target)[:, np.newaxis]]
    weights[(taps < 0) | (taps >= source)] = 0
    precision = 0
    while precision < _MOST_PRECISION and int(0.5 + weights.max() * (1 << precision + 1)) < 1 << 15:
        precision += 1
    whole = np.trunc(weights * (1 << precision) + np.copysign(0.5, weights)).astype(np.int16)
    return AxisWeights(source, target, starts, whole, precision)
