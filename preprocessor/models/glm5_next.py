"""GLM-5.3: GLM-4.6V with budgets in tokens, sides rounded up by padding instead of stretched, and plain positions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocessor.errors import InvalidRequest
from preprocessor.models import glm4v
from preprocessor.models.family import ItemLayout, ModelSettings
from preprocessor.models.family.rules import no_tensors
from preprocessor.models.glm4v import GlmVideoSpec, evenly, glm_layout, read_glm_settings, whole_pairs
from preprocessor.models.glm46v import frames_by_steps, tenths
from preprocessor.models.probe import ProbedMedium
from preprocessor.models.qwen2_vl import patch_rows, without_nulls
from preprocessor.types.request import Sampling
from preprocessor.vision.spec import PixelSpec, VideoSpec, whole_number

# transformers 5.23, Glm5NextImageProcessor and Glm5NextVideoProcessor.
_IMAGE_DEFAULTS = {"min_image_tokens": 16, "max_image_tokens": 8_000, "patch_expand_factor": 1}
_VIDEO_DEFAULTS = {
    "fps": 2,
    "max_duration": 0,
    "max_frames": 2_048,
    "min_image_tokens": 16,
    "max_image_tokens": 240_000,
    "patch_expand_factor": 1,
}
_ANY_SIZE = {"shortest_edge": 1, "longest_edge": 1}  # neither class reads it


@dataclass(frozen=True, slots=True)
class CanvasSpec(PixelSpec):
    """Attributes:
    patch_expand_factor: Padded sides are multiples of so many tokens.
    """

    patch_expand_factor: int = 1

    @property
    def canvas_factor(self) -> int:
        return self.factor * self.patch_expand_factor

    @property
    def token_pixels(self) -> int:
        """Pixels that a budget counts for one token: of all frames of a temporal patch."""
        return self.temporal_patch_size * self.canvas_factor**2


def read_pixels(image: Mapping[str, Any], video: Mapping[str, Any], name: str) -> tuple[CanvasSpec, GlmVideoSpec]:
    """`size` is not heeded, as in transformers."""
    image, video = {**_IMAGE_DEFAULTS, **without_nulls(image)}, {**_VIDEO_DEFAULTS, **without_nulls(video)}
    seconds = video["max_duration"] if video["max_duration"] > 0 else math.inf
    pixels, videos = read_glm_settings(
        image | {"size": _ANY_SIZE}, video | {"size": _ANY_SIZE}, name, most=video["max_frames"], seconds=seconds
    )
    return _canvas(pixels, image, name), dataclasses.replace(videos, pixels=_canvas(videos.pixels, video, name))


def _canvas(pixels: PixelSpec, settings: Mapping[str, Any], name: str) -> CanvasSpec:
    """With the budget in px that the settings' numbers of tokens are."""
    fields = {field.name: getattr(pixels, field.name) for field in dataclasses.fields(PixelSpec)}
    canvas = CanvasSpec(**fields, patch_expand_factor=whole_number(settings, "patch_expand_factor", name))
    budget = (whole_number(settings, bound, name) for bound in ("min_image_tokens", "max_image_tokens"))
    least, most = (tokens * canvas.token_pixels for tokens in budget)
    return dataclasses.replace(canvas, min_pixels=least, max_pixels=most)


def sample_indices(total: int, rate: float, sampling: Sampling, spec: VideoSpec) -> npt.NDArray[np.int64]:
    """The first frame of each step of 1/fps seconds.

    Source: transformers 5.23, Glm5NextVideoProcessor.sample_frames. Differs: it heeds no number of frames; here one gives that
    many, spread evenly.
    """
    assert isinstance(spec, GlmVideoSpec)
    if sampling.frame_count is not None:
        return whole_pairs(evenly(total, min(sampling.frame_count, total)))
    fps = spec.fps if sampling.fps is None else sampling.fps
    seconds = min(total / rate, spec.max_duration_seconds)
    return frames_by_steps(total, rate, fps, int(min(seconds * fps, spec.max_frames)))


def fit(frame_count: int, height: int, width: int, pixels: CanvasSpec) -> tuple[tuple[int, int], tuple[int, int]]:
    """Height and width in px of a resized frame, and of the black canvas at whose top left it lies.

    A picture is enlarged only where it is below the least budget.

    Args:
        frame_count: Of an image, the frames of a temporal patch.
    Raises:
        InvalidRequest: `INVALID_PIXEL_BUDGET` where the budget holds no token of each temporal patch.
    Source: transformers 5.23, `smart_resize` and `resize` of Glm5NextImageProcessor and Glm5NextVideoProcessor.
    """
    canvas_height, canvas_width = _fit_canvas(frame_count, height, width, pixels)
    scale = min(canvas_height / height, canvas_width / width)
    if frame_count * height * width >= pixels.min_pixels:
        scale = min(1.0, scale)
    content_height = max(1, min(canvas_height, math.floor(height * scale)))
    content_width = max(1, min(canvas_width, math.floor(width * scale)))
    return (content_height, content_width), (canvas_height, canvas_width)


def _fit_canvas(frame_count: int, height: int, width: int, pixels: CanvasSpec) -> tuple[int, int]:
    factor, patch = pixels.canvas_factor, pixels.temporal_patch_size
    frames = max(patch, round(frame_count / patch) * patch)
    canvas_height, canvas_width = _aligned(height, factor), _aligned(width, factor)
    if frames * canvas_height * canvas_width < pixels.min_pixels:
        grow = math.sqrt(pixels.min_pixels / (frame_count * height * width))
        canvas_height = _aligned(max(1, math.ceil(height * grow)), factor)
        canvas_width = _aligned(max(1, math.ceil(width * grow)), factor)
    if frames * canvas_height * canvas_width <= pixels.max_pixels:
        return canvas_height, canvas_width
    if (least := frames * factor**2) > pixels.max_pixels:
        raise InvalidRequest(
            f"a budget of {pixels.max_pixels} pixels does not hold one token of each of {frames} frames, which takes {least}; "
            "ask for fewer frames or a larger max_pixels",
            reason="INVALID_PIXEL_BUDGET",
        )
    return _largest_canvas(height, width, pixels.max_pixels // frames, factor)


def _largest_canvas(height: int, width: int, most: int, factor: int) -> tuple[int, int]:
    """The largest canvas of at most so many px around the picture shrunk to a whole height, found by halving its height."""
    low, high, best = 1, height, (factor, factor)
    while low <= high:
        content_height = (low + high) // 2
        content_width = max(1, math.floor(width * content_height / height))
        canvas = _aligned(content_height, factor), _aligned(content_width, factor)
        if canvas[0] * canvas[1] <= most:
            best, low = canvas, content_height + 1
        else:
            high = content_height - 1
    return best


def _aligned(side: int, factor: int) -> int:
    return math.ceil(side / factor) * factor


def layout(item: ProbedMedium, model: ModelSettings) -> ItemLayout:
    pixels = model.pixels_of(item.medium.modality)
    assert isinstance(pixels, CanvasSpec)
    frame_count = pixels.temporal_patch_size if item.frames is None else item.frame_count
    size, canvas = fit(frame_count, *item.size_px, pixels)
    return glm_layout(patch_rows(item, model, size, canvas), item, model, tenths)


FAMILY = dataclasses.replace(
    glm4v.FAMILY,
    name="glm5_next",
    model_types=("glm5_next",),
    read_pixels=read_pixels,
    sample_indices=sample_indices,
    layout=layout,
    prompt_tensors=no_tensors,  # transformers 5.23, Glm5NextTextModel: one position a token
    processor="Glm5NextProcessor",
)
