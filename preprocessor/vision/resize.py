"""Frames → planes of the planned size: bicubic with antialiasing, rounded to uint8, padded where a family does.

All variants use one torch operator, so results equal torchvision's resize, which calls it on planar tensors. The operator resizes
each line, rounds to uint8, and then resizes each column of the result; columns take less than half the time of lines. So the
frames of a clip are transposed, resized by columns, transposed back, and resized by columns again. Columns do not mix, so three
planes side by side are resized as one picture and need no separation afterwards.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt
import torch

Pixels = npt.NDArray[np.uint8]
Size = tuple[int, int]
"""Height and width in pixels."""

Resize = Callable[[Pixels], Pixels]
"""RGB uint8 [height, width, 3] → its planes, uint8 [3, new height, new width], each line of them contiguous; valid until the
next call."""

# Above this a transpose misses the cache, and six planes take too much of a worker's memory.
_MOST_TURNED_PIXELS = 1920 * 1080


def resizer(source: Size, target: Size, frame_count: int) -> Resize:
    """The fastest way to resize this many frames of one size; its buffers are reused from frame to frame."""
    (height, width), new_width = source, target[1]
    if source == target:
        return _Planes(target).take
    # Where a line shrinks to less than half, each value is made of many, and torch is as fast by lines.
    if frame_count > 1 and height * width <= _MOST_TURNED_PIXELS and width <= 2 * new_width:
        return _by_columns(source, target)
    resized = _Planes(target)
    return lambda frame: resized.take(resize_pixels(frame, target))


def padded(resize: Resize, canvas: Size) -> Resize:
    """The same planes at the top left of black ones of this size.

    Source: transformers 5.23, TorchvisionBackend.pad, which fills uint8 pixels with 0 before they are normalized.
    """
    planes = np.zeros((3, *canvas), np.uint8)

    def pad(frame: Pixels) -> Pixels:
        resized = resize(frame)
        planes[:, : resized.shape[1], : resized.shape[2]] = resized
        return planes

    return pad


def _by_columns(source: Size, target: Size) -> Resize:
    (height, width), (new_height, new_width) = source, target
    steps = [(height, new_width), (new_height, new_width)]
    if width != new_width:
        steps = [(height, width), (width, height), (new_width, height), *steps]
    # Each step reads only the output of the one before: two buffers used in turn stay in cache.
    pieces = [np.empty(max(map(_planes_bytes, steps[start::2])), np.uint8) for start in (0, 1)]
    planes = [_Planes(size, pieces[number % 2]) for number, size in enumerate(steps)]

    def resize(frame: Pixels) -> Pixels:
        planes[0].take(frame)
        if width != new_width:
            whole, turned, turned_half_done, half_done, _ = planes
            whole.turn(turned)
            turned.resize_columns(turned_half_done)
            turned_half_done.turn(half_done)
        return planes[-2].resize_columns(planes[-1])

    return resize


def _planes_bytes(size: Size) -> int:
    """Of lines that are whole quads."""
    return size[0] * 3 * -(-size[1] // 4) * 4


class _Planes:
    """The three planes of a picture; each line holds the same line of all three, side by side."""

    def __init__(self, size: Size, memory: npt.NDArray[np.uint8] | None = None) -> None:
        height, width = size
        byte_count = _planes_bytes(size)
        memory = np.empty(byte_count, np.uint8) if memory is None else memory[:byte_count]
        lines = memory.reshape(height, 3, -1)
        self._planes = [lines[:, channel, :width] for channel in range(3)]
        self._pixels = lines[:, :, :width].transpose(1, 0, 2)
        # As torch is to see them: pixels of four channels, which it can resize in place.
        quads = lines.reshape(1, height, -1, 4)
        self._quads = torch.from_numpy(quads).permute(0, 3, 1, 2)

    def take(self, frame: Pixels) -> Pixels:
        cv2.split(frame, self._planes)
        return self._pixels

    def turn(self, target: _Planes) -> None:
        for plane, turned in zip(self._planes, target._planes, strict=True):
            cv2.transpose(plane, turned)

    def resize_columns(self, target: _Planes) -> Pixels:
        torch.ops.aten._upsample_bicubic2d_aa.out(self._quads, target._quads.shape[2:], False, out=target._quads)
        return target._pixels


def resize_pixels(frame: Pixels, size: Size, mode: str = "bicubic") -> Pixels:
    """RGB uint8 [H, W, 3] → [height, width, 3]. Channels-last memory takes half the time of planes.

    Args:
        mode: "bicubic" or "bilinear", with antialiasing in either.
    """
    frame = np.ascontiguousarray(frame)
    if frame.shape[:2] == size:
        return frame
    row_stride, pixel_stride, channel_stride = frame.strides
    # A batch of one made by indexing has a batch stride of 0, and torch would no longer see channels-last memory.
    strides = (frame.size, channel_stride, row_stride, pixel_stride)
    channels_last = torch.from_numpy(frame).as_strided((1, 3, *frame.shape[:2]), strides)
    resized = torch.nn.functional.interpolate(channels_last, size=size, mode=mode, antialias=True)
    pixels: Pixels = resized.permute(0, 2, 3, 1).numpy()[0]
    return pixels
