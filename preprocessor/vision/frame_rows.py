"""Frames → patch rows: resized, padded, and cut. By the native kernel where it is there, else by torch, OpenCV and numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from preprocessor.types.timing import Stopwatch
from preprocessor.vision import native
from preprocessor.vision.patches import write_patches
from preprocessor.vision.resize import Size, padded, resizer
from preprocessor.vision.spec import PixelSpec
from preprocessor.vision.weights import MOST_SHRINKING, axis_weights

WriteRows = Callable[[npt.NDArray[np.uint8], npt.NDArray[np.uint8], slice, Stopwatch], None]
"""See `models.loaded.WriteFrame`."""


def row_writer(
    source: Size,
    target: Size,
    frame_count: int,
    spec: PixelSpec,
    canvas: Size | None = None,
    *,
    variant: int | None = 0,
) -> WriteRows:
    """The fastest way to write this many frames of one size into their rows; its buffers are reused from frame to frame.

    The result takes a frame, uint8 [height, width, 3]; its rows, uint8 [patches of the canvas, `spec.feature_count`]; and the
    frame's places in each patch, see `write_patches`.

    Args:
        source, target: Sizes of a frame before and after the resize.
        frame_count: Frames to be written.
        canvas: To which black is added below and to the right; the target itself where None.
        variant: Index in `native.VARIANTS`; None does without the native kernel, whose time counts as the stage "resize".
    """
    canvas = canvas or target
    can_shrink = all(old <= MOST_SHRINKING * new for old, new in zip(source, target, strict=True))
    if variant is not None and native.VARIANTS and can_shrink:
        return _native_writer(source, target, spec, canvas, variant)
    resize = resizer(source, target, frame_count)
    if canvas != target:
        resize = padded(resize, canvas)

    def write(frame: npt.NDArray[np.uint8], rows: npt.NDArray[np.uint8], places: slice, stopwatch: Stopwatch) -> None:
        planes = resize(frame)
        stopwatch.end("resize")
        write_patches(planes, spec, rows, places)
        stopwatch.end("patch")

    return write


def _native_writer(source: Size, target: Size, spec: PixelSpec, canvas: Size, variant: int) -> WriteRows:
    vertical, horizontal = (axis_weights(old, new) for old, new in zip(source, target, strict=True))
    kernel = native.RowResizer(
        horizontal,
        vertical,
        canvas,
        patch=spec.patch_size,
        merge=spec.merge_size,
        frames=spec.temporal_patch_size,
        variant=variant,
    )

    def write(frame: npt.NDArray[np.uint8], rows: npt.NDArray[np.uint8], places: slice, stopwatch: Stopwatch) -> None:
        kernel.write(frame, rows, places)
        stopwatch.end("resize")
        stopwatch.end("patch")

    return write
