"""Resizing beside torchvision's way to do it, the same operator on planar tensors."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from preprocessor.vision.resize import Size, resizer

SIZES: list[tuple[Size, Size]] = [
    ((374, 374), (384, 384)),
    ((374, 374), (320, 320)),
    ((70, 101), (32, 32)),  # less than half
    ((70, 101), (128, 160)),
    ((70, 101), (70, 101)),
    ((70, 101), (84, 101)),  # one side alone
    ((70, 101), (70, 84)),
    ((71, 102), (42, 70)),  # lines of no whole quads
    ((33, 51), (384, 608)),
    ((1081, 1920), (576, 1024)),  # too large to be turned
    ((1, 1), (28, 28)),
]


def make_frames(count: int, size: Size, padding_px: int = 0) -> npt.NDArray[np.uint8]:
    """Noise, for the middle of what a weight can do, and edges between black and white for its ends."""
    height, width = size
    frames = np.random.default_rng(0).integers(0, 256, (count, height, width + padding_px, 3), dtype=np.uint8)
    frames[:, height // 2 :] = np.where(frames[:, height // 2 :] > 127, 255, 0)
    return frames[:, :, :width]


def planar(frame: npt.NDArray[np.uint8], size: Size) -> npt.NDArray[np.uint8]:
    planes = torch.from_numpy(frame.transpose(2, 0, 1)[np.newaxis].copy())
    expected: npt.NDArray[np.uint8] = torch.nn.functional.interpolate(
        planes, size=size, mode="bicubic", antialias=True
    )[0].numpy()
    return expected


@pytest.mark.parametrize(("source", "target"), SIZES, ids=str)
@pytest.mark.parametrize("frame_count", [1, 3])
def test_planes_equal_the_planar_operator_s(source: Size, target: Size, frame_count: int) -> None:
    resize = resizer(source, target, frame_count)
    for frame in make_frames(frame_count, source):
        assert np.array_equal(resize(frame), planar(frame, target))


@pytest.mark.parametrize("frame_count", [1, 2])
def test_a_frame_may_lie_in_memory_in_any_way(frame_count: int) -> None:
    resize = resizer((70, 102), (64, 96), frame_count)
    (padded,) = make_frames(1, (70, 102), padding_px=3)
    (mirrored,) = make_frames(1, (70, 102))[:, :, ::-1]
    (turned,) = np.rot90(make_frames(1, (102, 70)), axes=(1, 2))
    for frame in (padded, mirrored, turned):
        assert np.array_equal(resize(frame), planar(frame, (64, 96)))


def test_random_sizes_come_out_equal() -> None:
    random = np.random.default_rng(7)
    for _ in range(60):
        height, width, new_height, new_width = (int(side) for side in random.integers(2, 200, 4))
        (frame,) = make_frames(1, (height, width))
        resized = resizer((height, width), (new_height, new_width), 2)(frame)
        assert np.array_equal(resized, planar(frame, (new_height, new_width))), (height, width, new_height, new_width)
