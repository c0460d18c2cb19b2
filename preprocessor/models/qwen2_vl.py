"""Qwen2-VL: a video is one run of placeholders, its pixel budget counts one frame, its positions one step a frame pair."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocessor.errors import ModelNotFound
from preprocessor.media.spreads import spread_by_steps, whole_patches
from preprocessor.models.family import Family, ItemLayout, ModelSettings
from preprocessor.models.family.budget import CAPPED_BOUNDS
from preprocessor.models.loaded import WriteFrame
from preprocessor.models.probe import ProbedMedium
from preprocessor.text.placeholders import Replacement
from preprocessor.types.plan import ExpandedPrompt, Grid, ItemPlan, ItemRows
from preprocessor.types.request import Sampling
from preprocessor.vision.frame_rows import row_writer
from preprocessor.vision.geometry import fit_image, patch_grid
from preprocessor.vision.positions import mrope_tensors
from preprocessor.vision.spec import PixelSpec, VideoSpec, parse_pixel_spec, parse_video_spec

FitVideo = Callable[[int, int, int, VideoSpec], tuple[int, int]]
"""(frame_count, height, width, settings) → (height, width) in px after resizing."""

# transformers 5.23, Qwen2VLVideoProcessor; fps is that of the reference implementation, which transformers leaves unset.
VIDEO_DEFAULTS = {"fps": 2, "min_frames": 4, "max_frames": 768, "max_video_tokens": 128_000}


def read_pixels(image: Mapping[str, Any], video: Mapping[str, Any], name: str) -> tuple[PixelSpec, VideoSpec]:
    return read_patch_settings(image, {**VIDEO_DEFAULTS, **without_nulls(video)}, name)


def read_patch_settings(image: Mapping[str, Any], video: Mapping[str, Any], name: str) -> tuple[PixelSpec, VideoSpec]:
    """Settings of images and videos whose patches go into one tensor.

    Args:
        video: The family's defaults filled in.
    Raises:
        ModelNotFound: `UNSUPPORTED_PROCESSOR` where one tensor cannot hold both, or as `parse_pixel_spec`.
    """
    images = parse_pixel_spec(image, f"{name}: image processor")
    videos = parse_video_spec(video, f"{name}: video processor")
    if dataclasses.replace(videos.pixels, min_pixels=images.min_pixels, max_pixels=images.max_pixels) != images:
        raise ModelNotFound(
            f"{name}: image and video processor differ in more than their pixel budget; one pixel tensor cannot hold both",
            reason="UNSUPPORTED_PROCESSOR",
        )
    return images, videos


def without_nulls(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A null in a configuration counts as left out."""
    return {name: value for name, value in settings.items() if value is not None}


def sample_indices(total: int, rate: float, sampling: Sampling, spec: VideoSpec) -> npt.NDArray[np.int64]:
    """Equal steps from the first frame; their number is a multiple of the temporal patch size.

    Source: transformers 5.23, Qwen2VLVideoProcessor.sample_frames. Differs: a `frame_count` above what the clip holds is cut
    to it, and a clip of one frame gives that frame, where the original raises.
    """
    patch = spec.pixels.temporal_patch_size
    frame_count = sampling.frame_count
    if frame_count is None and sampling.fps is None:  # transformers would let its own count overrule the caller's fps
        frame_count = spec.frame_count
    if frame_count is not None:
        return spread_by_steps(total, whole_patches(min(round(frame_count / patch) * patch, total), patch))
    fps = sampling.fps if sampling.fps is not None else spec.fps
    most = whole_patches(min(spec.max_frames, total), patch)
    count = min(max(total / rate * fps, spec.min_frames), most, total)
    return spread_by_steps(total, whole_patches(count, patch))


def fit_video(frame_count: int, height: int, width: int, spec: VideoSpec) -> tuple[int, int]:
    """Source: transformers 5.23, Qwen2VLVideoProcessor.resize, `cap_pixels_per_frame` included."""
    pixels = spec.pixels
    max_pixels = pixels.max_pixels
    if spec.cap_pixels_per_frame:
        whole_video = int(spec.max_video_tokens * pixels.factor * pixels.factor * 0.9)
        even_share = whole_video * pixels.temporal_patch_size // frame_count
        max_pixels = max(min(max_pixels, even_share), int(pixels.min_pixels * 1.05))
    return fit_image(height, width, factor=pixels.factor, min_pixels=pixels.min_pixels, max_pixels=max_pixels)


def layout(item: ProbedMedium, model: ModelSettings) -> ItemLayout:
    return patch_layout(item, model, fit_video)


def patch_layout(item: ProbedMedium, model: ModelSettings, fit: FitVideo) -> ItemLayout:
    """`patch_rows` of an image within its budget, or of a video.

    Args:
        fit: The family's size of a video.
    """
    pixels = model.pixels_of(item.medium.modality)
    height, width = item.size_px
    if item.frames is None:
        size = fit_image(
            height, width, factor=pixels.factor, min_pixels=pixels.min_pixels, max_pixels=pixels.max_pixels
        )
    else:
        size = fit(item.frame_count, height, width, model.video)
    return patch_rows(item, model, size)


def patch_rows(
    item: ProbedMedium, model: ModelSettings, size: tuple[int, int], canvas: tuple[int, int] | None = None
) -> ItemLayout:
    """One row a patch, one group a temporal patch, one run of placeholders; each of these is merge_size x merge_size patches.

    Args:
        size: Height and width of a frame after resizing, px.
        canvas: Height and width to which black is added below and to the right; the size itself where None.
    """
    pixels = model.pixels_of(item.medium.modality)
    grid = patch_grid(item.frame_count, *(canvas or size), pixels)
    return ItemLayout(
        rows=ItemRows(grid.t, grid.h * grid.w, pixels.temporal_patch_size, size[1], size[0], grid),
        spans=Replacement(model.placeholders.tokens[item.medium.modality], (grid.patch_count // pixels.merge_size**2,)),
        tensors={"grid_thw": np.array([(grid.t, grid.h, grid.w)], np.int64)},
    )


def patch_writer(item: ItemPlan, model: ModelSettings) -> WriteFrame:
    """Resizes each frame, pads it to its grid, and cuts it into its part of a temporal patch's rows."""
    return grid_writer(item, model.pixels_of(item.modality))


def grid_writer(item: ItemPlan, pixels: PixelSpec) -> WriteFrame:
    """See `patch_writer`."""
    source, rows, grid = item.picture, item.rows, item.rows.grid
    assert grid is not None, "`patch_rows` gives each item one"
    canvas = (grid.h * pixels.patch_size, grid.w * pixels.patch_size)
    return row_writer(
        (source.height_px, source.width_px), (rows.height_px, rows.width_px), item.frame_count, pixels, canvas
    )


def prompt_tensors(
    prompt: ExpandedPrompt, items: Sequence[ItemPlan], model: ModelSettings
) -> dict[str, npt.NDArray[Any]]:
    return mrope_tensors(len(prompt.token_ids), prompt.spans, merged_grids(items, model))


def merged_grids(items: Sequence[ItemPlan], model: ModelSettings) -> list[Grid]:
    """Each item's grid in tokens."""
    merge, merged = model.image.merge_size, []
    for item in items:
        grid = item.rows.grid
        assert grid is not None, "`patch_rows` gives each item one"
        merged.append(Grid(t=grid.t, h=grid.h // merge, w=grid.w // merge))
    return merged


FAMILY = Family(
    name="qwen2_vl",
    model_types=("qwen2_vl",),
    read_pixels=read_pixels,
    sample_indices=sample_indices,
    layout=layout,
    frame_writer=patch_writer,
    prompt_tensors=prompt_tensors,
    video_bounds=CAPPED_BOUNDS,
)
