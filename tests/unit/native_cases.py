"""Random frames and sizes for the native kernel, compared with torch. Without pytest, so that a sanitized library can run it too:

LD_PRELOAD=… python -m tests.unit.native_cases LIBRARY COUNT
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from preprocessor.vision import native
from preprocessor.vision.patches import write_patches
from preprocessor.vision.spec import PixelSpec
from preprocessor.vision.weights import MOST_SHRINKING, axis_weights

Size = tuple[int, int]
UNTOUCHED = 77
# Of a result one pixel wide torch makes all lines the same where it has no AVX2, and refuses 1x1. No model asks for either.
_LEAST_WIDTH = 2


@dataclass(frozen=True, slots=True)
class Case:
    """A frame, its size after resizing, and how it is cut."""

    frame: npt.NDArray[np.uint8]
    target: Size
    canvas: Size
    spec: PixelSpec
    places: slice

    def __str__(self) -> str:
        return f"{self.frame.shape[:2]} → {self.target} on {self.canvas}, {self.spec.patch_size} px, {self.places}"


def spec_of(patch: int, merge: int, frames: int) -> PixelSpec:
    return PixelSpec(patch, merge, frames, 1, 1 << 30, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def random_cases(seed: int, count: int) -> Iterator[Case]:
    """Of every kind: grown and shrunk, one side alone, as it is, a pixel wide; noise, edges, and what overflows between them."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        spec = spec_of(*[(16, 2, 2), (14, 2, 2), (16, 1, 1), (4, 2, 2), (7, 3, 3), (48, 1, 1)][random.integers(6)])
        canvas = _pair(random, 1, max(2, 400 // spec.factor), spec.factor)
        target = canvas
        if random.integers(2):
            target = (_within(random, canvas[0]), int(random.integers(_LEAST_WIDTH, canvas[1] + 1)))
        longest = int(random.choice([8, 70, 400]))
        height, width = (
            target[side] if random.integers(8) == 0 else _within(random, min(longest, MOST_SHRINKING * target[side]))
            for side in (0, 1)
        )
        first = int(random.integers(spec.temporal_patch_size))
        places = slice(first, int(random.integers(first + 1, spec.temporal_patch_size + 1)))
        yield Case(_content(random, height, width), target, canvas, spec, places)


def expected(case: Case) -> npt.NDArray[np.uint8]:
    """The rows by torch, on planes as torchvision has them, and numpy."""
    planar = torch.from_numpy(case.frame.transpose(2, 0, 1)[np.newaxis].copy())
    resized = torch.nn.functional.interpolate(planar, size=case.target, mode="bicubic", antialias=True)[0].numpy()
    planes = np.zeros((3, *case.canvas), np.uint8)
    planes[:, : case.target[0], : case.target[1]] = resized
    rows = _untouched(case)
    write_patches(planes, case.spec, rows, case.places)
    return rows


def made(case: Case, variant: int) -> npt.NDArray[np.uint8]:
    """The rows by the kernel, of the second frame that a resizer sees: the first leaves something in its buffers."""
    (height, width), (new_height, new_width) = case.frame.shape[:2], case.target
    resizer = native.RowResizer(
        axis_weights(width, new_width),
        axis_weights(height, new_height),
        case.canvas,
        patch=case.spec.patch_size,
        merge=case.spec.merge_size,
        frames=case.spec.temporal_patch_size,
        variant=variant,
    )
    rows = _untouched(case)
    resizer.write(255 - case.frame, rows, case.places)
    resizer.write(case.frame, rows, case.places)
    return rows


def differing(seed: int, count: int) -> list[str]:
    """Cases that do not come out equal, by each variant that this CPU has."""
    wrong = []
    for case in random_cases(seed, count):
        rows = expected(case)
        for index, name in enumerate(native.VARIANTS):
            if not np.array_equal(made(case, index), rows):
                wrong.append(f"{name}: {case}")
    return wrong


def _untouched(case: Case) -> npt.NDArray[np.uint8]:
    patch = case.spec.patch_size
    return np.full((case.canvas[0] * case.canvas[1] // patch**2, case.spec.feature_count), UNTOUCHED, np.uint8)


def _pair(random: np.random.Generator, least: int, most: int, factor: int) -> Size:
    height, width = random.integers(least, most + 1, 2).tolist()
    return height * factor, width * factor


def _within(random: np.random.Generator, most: int) -> int:
    return int(random.integers(1, most + 1))


def _content(random: np.random.Generator, height: int, width: int) -> npt.NDArray[np.uint8]:
    noise: npt.NDArray[np.uint8] = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    square = int(random.integers(1, 9))
    y, x = np.arange(height)[:, np.newaxis, np.newaxis] // square, np.arange(width)[:, np.newaxis] // square
    board = np.broadcast_to((y + x) % 2 == 0, noise.shape)
    kind = random.integers(4)
    if kind == 0:
        return noise
    if kind == 1:
        return np.where(noise > 127, 255, 0).astype(np.uint8)
    return np.where(board, 255, 0 if kind == 2 else noise).astype(np.uint8)


if __name__ == "__main__":
    torch.set_num_threads(1)
    native.use(Path(sys.argv[1]))
    assert native.VARIANTS, f"{sys.argv[1]} is not loaded"
    found = differing(1, int(sys.argv[2]))
    print(*native.VARIANTS, *found, sep="\n")
    sys.exit(bool(found))
