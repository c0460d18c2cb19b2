"""How large a picture becomes. Ints in, ints out: no pixels, no files.

Both rules are ports of transformers 5.23, to be equal in every case, banker's rounding and all.
"""

from __future__ import annotations

import math

from preprocessor.errors import UnsupportedMedia
from preprocessor.types.plan import Grid
from preprocessor.vision.spec import PixelSpec

MAX_ASPECT_RATIO = 200  # transformers 5.23, both smart_resize functions


def fit_image(height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Height and width in px after resizing: multiples of `factor`, aspect kept, h*w within the budget.

    Where `min_pixels` lies above `max_pixels`, a picture above `max_pixels` is shrunk to that, and any other is grown to
    `min_pixels`: so does the original.

    Raises:
        UnsupportedMedia: `EXTREME_ASPECT_RATIO`.
    Source: transformers 5.23, models/qwen2_vl/image_processing_qwen2_vl.py, smart_resize.
    """
    _check_aspect(height, width, f"{width}x{height}")
    fitted_height = round(height / factor) * factor
    fitted_width = round(width / factor) * factor
    if fitted_height * fitted_width > max_pixels:
        shrink = math.sqrt((height * width) / max_pixels)
        fitted_height = max(factor, math.floor(height / shrink / factor) * factor)
        fitted_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif fitted_height * fitted_width < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        fitted_height = math.ceil(height * grow / factor) * factor
        fitted_width = math.ceil(width * grow / factor) * factor
    return fitted_height, fitted_width


def fit_video(
    frame_count: int, height: int, width: int, *, temporal_factor: int, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """Height and width in px after resizing, where the budget bounds t*h*w.

    The comparison rounds `frame_count` to whole temporal patches, half to even, while the scale uses it as it is: so does
    the original.

    Raises:
        UnsupportedMedia: `EXTREME_ASPECT_RATIO`.
    Source: transformers 5.23, models/qwen3_vl/video_processing_qwen3_vl.py, smart_resize.
    """
    stored = f"{width}x{height}"
    if height < factor or width < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
        stored += f", enlarged to {width}x{height}"
    _check_aspect(height, width, stored)
    fitted_height = round(height / factor) * factor
    fitted_width = round(width / factor) * factor
    fitted_count = round(frame_count / temporal_factor) * temporal_factor
    if fitted_count * fitted_height * fitted_width > max_pixels:
        shrink = math.sqrt((frame_count * height * width) / max_pixels)
        fitted_height = max(factor, math.floor(height / shrink / factor) * factor)
        fitted_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif fitted_count * fitted_height * fitted_width < min_pixels:
        grow = math.sqrt(min_pixels / (frame_count * height * width))
        fitted_height = math.ceil(height * grow / factor) * factor
        fitted_width = math.ceil(width * grow / factor) * factor
    return fitted_height, fitted_width


def patch_grid(frame_count: int, height: int, width: int, spec: PixelSpec) -> Grid:
    """The grid of a resized picture; frames are padded up to whole temporal patches."""
    return Grid(t=-(-frame_count // spec.temporal_patch_size), h=height // spec.patch_size, w=width // spec.patch_size)


def _check_aspect(height: int, width: int, size: str) -> None:
    """No ratio in the message: rounded it may be the bound itself."""
    if max(height, width) / min(height, width) > MAX_ASPECT_RATIO:
        raise UnsupportedMedia(
            f"the picture is {size}; its longer side may be at most {MAX_ASPECT_RATIO} times the shorter one",
            reason="EXTREME_ASPECT_RATIO",
        )
