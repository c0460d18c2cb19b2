"""Hugging Face's own answer for the families whose processors make no Qwen patches: tiles, rows of patches, soft tokens.

As `oracle`, but transformers sets the processor up itself, from the model's directory, and the tensors are put in rows as the
family's file describes them.
"""

from __future__ import annotations

import copy
import dataclasses
import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from preprocessor.types.request import Media, Modality, PreparationRequest, Sampling
from tests.golden.oracle import data_url, merged, metadata_of, rendered, sampled_clip  # first: imports torchvision

from transformers import AutoProcessor  # isort: skip
from transformers.image_utils import load_image  # isort: skip
from transformers.video_utils import VideoMetadata  # isort: skip

Rows = tuple[list[npt.NDArray[Any]], Mapping[str, npt.NDArray[Any]]]
"""The rows of each medium in prompt order, and the family's tensors."""


@dataclass(frozen=True, eq=False)
class TileAnswer:
    """What Hugging Face makes of a request.

    Attributes:
        token_ids, token_types: int64 [L].
        pixels: fp32 [P, F], normalized; patches: uint8 [P, F], the same before normalization.
        tensors: The family's own, by the names that this project gives them.
        frame_indices: For each item its frames; None for an image.
    """

    token_ids: npt.NDArray[np.int64]
    token_types: npt.NDArray[np.int64]
    pixels: npt.NDArray[np.float32]
    patches: npt.NDArray[np.uint8]
    tensors: Mapping[str, npt.NDArray[Any]]
    frame_indices: list[list[int] | None]


@cache
def processor_in(directory: str) -> Any:
    return AutoProcessor.from_pretrained(directory)


def answer(directory: str, request: PreparationRequest) -> TileAnswer:
    """Process `request` with the processor of a directory. Media of one modality have one budget."""
    processor = processor_in(directory)
    family = _FAMILIES[type(processor).__name__]
    text, media = rendered(processor, request)
    images = [medium for medium in media if medium.modality is Modality.IMAGE]
    videos = [medium for medium in media if medium.modality is Modality.VIDEO]
    video_processor = getattr(processor, "video_processor", None)
    clips = [sampled_clip(_with_indices(medium, video_processor), video_processor) for medium in videos]
    starts_with_bos = bool(processor.tokenizer.bos_token) and text.startswith(processor.tokenizer.bos_token)

    def run(**options: bool) -> Any:
        kwargs: dict[str, Any] = {"images_kwargs": {**family.budget(processor, images), **options}}
        if videos:
            metadata = [metadata_of(clip) for clip in clips]
            budget = family.budget(processor, videos)
            kwargs["videos_kwargs"] = {"do_sample_frames": False, "video_metadata": metadata, **budget, **options}
        return processor(
            text=[text],
            images=[load_image(data_url(medium.data)) for medium in images] or None,
            videos=[clip.frames for clip in clips] or None,
            return_tensors="pt",
            return_mm_token_type_ids=True,
            add_special_tokens=not starts_with_bos,
            **kwargs,
        )

    normalized, raw = run(), run(do_rescale=False, do_normalize=False)
    pixels, tensors = family.rows(normalized, media) if media else ([], {})
    patches, _ = family.rows(raw, media) if media else ([], {})
    if media and family.count_tiles is not None:
        budget = {**processor.images_kwargs, **family.budget(processor, images)}
        opened = [load_image(data_url(medium.data)) for medium in images]
        counts = family.count_tiles(processor.image_processor(opened, **budget)) if images else []
        counts = merged(media, counts, [len(clip.indices) for clip in clips])
        tensors = {**tensors, "tile_counts": np.array(counts, np.int64)}
    types = "token_type_ids" if "mm_token_type_ids" not in normalized else "mm_token_type_ids"
    return TileAnswer(
        token_ids=normalized["input_ids"][0].numpy(),
        token_types=normalized[types][0].numpy(),
        pixels=_joined(pixels, np.float32),
        patches=_joined(patches, np.uint8),
        tensors=tensors,
        frame_indices=merged(media, [None] * len(images), [clip.indices for clip in clips]),
    )


def chosen_indices(processor: Any, total: int, rate: float, sampling: Sampling) -> npt.NDArray[np.int64]:
    """The frames that Hugging Face samples, or that the caller named.

    A processor that does not sample takes every frame unless it is asked. Its own `num_frames` goes for a caller's fps.

    Raises:
        ValueError, ZeroDivisionError: Hugging Face refuses.
    """
    if sampling.indices is not None:
        return np.array(sampling.indices, np.int64)
    is_asked = sampling.fps is not None or sampling.frame_count is not None
    if sampling.every_frame or not (is_asked or processor.do_sample_frames):
        return np.arange(total)
    if sampling.fps is not None:
        processor = copy.copy(processor)
        processor.num_frames = None
    metadata = VideoMetadata(total_num_frames=total, fps=rate, duration=total / rate)
    return np.asarray(processor.sample_frames(metadata, num_frames=sampling.frame_count, fps=sampling.fps), np.int64)


def _with_indices(medium: Media, processor: Any) -> Media:
    with av.open(io.BytesIO(medium.data), "r") as container:
        stream = container.streams.video[0]
        rate = float(stream.average_rate or 0)
        total = sum(1 for _ in container.decode(stream))
    indices = tuple(chosen_indices(processor, total, rate, medium.sampling).tolist())
    return dataclasses.replace(medium, sampling=Sampling(indices=indices))


def _joined(rows: list[npt.NDArray[Any]], dtype: type[np.generic]) -> npt.NDArray[Any]:
    joined = np.concatenate(rows) if rows else np.empty((0, 0), dtype)
    cast: npt.NDArray[Any] = joined.astype(dtype)
    assert (cast == joined).all(), "values do not fit the dtype exactly"
    return cast


# -- families ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Family:
    """How a processor is told a caller's pixel budget, how its output becomes rows, and how many tiles each image became."""

    budget: Callable[[Any, list[Media]], dict[str, Any]]
    rows: Callable[[Any, list[Media]], Rows]
    count_tiles: Callable[[Any], list[int]] | None = None


def _most(media: list[Media]) -> int | None:
    (most,) = {medium.max_pixels for medium in media} or {None}
    return most


def _tiles_budget(processor: Any, media: list[Media]) -> dict[str, Any]:
    side = processor.image_processor.size["height"]
    (least,), most = {medium.min_pixels for medium in media} or {None}, _most(media)
    asked = {
        "min_patches": None if least is None else -(-least // side**2),
        "max_patches": None if most is None else max(most // side**2, 1),
    }
    return {name: value for name, value in asked.items() if value is not None}


def _internvl_rows(output: Any, media: list[Media]) -> Rows:
    """Images and videos share `pixel_values`, in prompt order."""
    tiles = output["pixel_values"].numpy()
    tiles = tiles.reshape(len(tiles), -1)
    return [tiles], {}


def _pixtral_budget(processor: Any, media: list[Media]) -> dict[str, Any]:
    factor, most = processor.patch_size * processor.spatial_merge_size, _most(media)
    return {} if most is None else {"size": {"longest_edge": max(math.isqrt(most) // factor, 1) * factor}}


def _pixtral_rows(output: Any, media: list[Media]) -> Rows:
    """Padding taken off, patches in lines."""
    rows, grids, patch = [], [], 14
    for pixels, (height, width) in zip(output["pixel_values"].numpy(), output["image_sizes"].tolist(), strict=True):
        h, w = height // patch, width // patch
        patches = pixels[:, :height, :width].reshape(3, h, patch, w, patch).transpose(1, 3, 0, 2, 4)
        rows.append(patches.reshape(h * w, -1))
        grids.append((1, h, w))
    sizes = output["image_sizes"].numpy().astype(np.int64)
    return rows, {"grid_thw": np.array(grids, np.int64), "image_sizes": sizes}


def _gemma3_budget(processor: Any, media: list[Media]) -> dict[str, Any]:
    most = _most(media)
    crop_count = 0 if most is None else most // processor.image_processor.size["height"] ** 2 - 1
    return {"do_pan_and_scan": True, "pan_and_scan_max_num_crops": crop_count} if crop_count > 1 else {}


def _gemma3_rows(output: Any, media: list[Media]) -> Rows:
    tiles = output["pixel_values"].numpy()
    return [tiles.reshape(len(tiles), -1)], {}


def _gemma4_budget(processor: Any, media: list[Media]) -> dict[str, Any]:
    most, factor = _most(media), processor.image_processor.patch_size * processor.image_processor.pooling_kernel_size
    if most is None:
        return {}
    return {"max_soft_tokens": max(count for count in (70, 140, 280, 560, 1120) if count * factor**2 <= most)}


def _gemma4_rows(output: Any, media: list[Media]) -> Rows:
    """Padding taken off, which its positions tell; these must be columns and lines of a grid."""
    frame_counts = output["num_frames_per_video"].tolist() if "num_frames_per_video" in output else []
    videos = (
        [
            _gemma4_item(*pair)
            for pair in zip(
                *(output[name].split(frame_counts) for name in ("pixel_values_videos", "video_position_ids")),
                strict=True,
            )
        ]
        if frame_counts
        else []
    )
    images = (
        [
            _gemma4_item(pixels[None], positions[None])
            for pixels, positions in zip(output["pixel_values"], output["image_position_ids"], strict=True)
        ]
        if "pixel_values" in output
        else []
    )
    items = merged(media, images, videos)
    return [rows for rows, _ in items], {"grid_thw": np.array([grid for _, grid in items], np.int64)}


def _gemma4_item(pixels: Any, positions: Any) -> tuple[npt.NDArray[Any], tuple[int, int, int]]:
    """Frames [t, most patches, F] and their positions [t, most patches, 2]."""
    (width, height) = (positions[0].max(dim=0).values + 1).tolist()
    expected = np.array([(row % width, row // width) for row in range(height * width)])
    count = height * width
    assert (positions[:, :count].numpy() == expected).all() and (positions[:, count:] == -1).all()
    assert (pixels[:, count:] == 0).all()
    return pixels[:, :count].reshape(len(pixels) * count, -1).numpy(), (len(pixels), height, width)


_FAMILIES = {
    "Gemma3Processor": _Family(_gemma3_budget, _gemma3_rows, lambda made: [1 + count for count in made["num_crops"]]),
    "Gemma4Processor": _Family(_gemma4_budget, _gemma4_rows),
    "PixtralProcessor": _Family(_pixtral_budget, _pixtral_rows),
    "InternVLProcessor": _Family(_tiles_budget, _internvl_rows, lambda made: list(made["num_patches"])),
}
