"""GLM-4.6V and GLM-OCR: GLM-4V with a rate of frames that depends on the clip's length, and stamps of tenths of seconds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocessor.models import glm4v
from preprocessor.models.family import ItemLayout, ModelSettings
from preprocessor.models.glm4v import GlmVideoSpec, evenly, glm_layout, read_glm_settings, whole_pairs
from preprocessor.models.probe import ProbedMedium
from preprocessor.models.qwen2_vl import patch_rows, without_nulls
from preprocessor.types.request import Sampling
from preprocessor.vision.spec import PixelSpec, VideoSpec

# transformers 5.23, Glm46VVideoProcessor.sample_frames, which reads neither `fps` nor `max_duration`.
_MAX_FRAMES, _MAX_SECONDS = 640, 2_400
_PATCHES_A_SECOND = ((30, 3), (300, 1), (_MAX_SECONDS, 0.5))
"""(seconds of a clip up to which it holds, temporal patches a second)"""


def read_pixels(image: Mapping[str, Any], video: Mapping[str, Any], name: str) -> tuple[PixelSpec, GlmVideoSpec]:
    settings = {**glm4v.VIDEO_DEFAULTS, **without_nulls(video)}
    return read_glm_settings(image, settings, name, most=_MAX_FRAMES, seconds=_MAX_SECONDS)


def sample_indices(total: int, rate: float, sampling: Sampling, spec: VideoSpec) -> npt.NDArray[np.int64]:
    """The first frame of each step of 1/fps seconds; fps by the clip's length where the caller gives none.

    Source: transformers 5.23, Glm46VVideoProcessor.sample_frames. Differs: it heeds neither fps nor a number of frames. Here fps
    takes the place of the rate that it finds, as in Glm5NextVideoProcessor; a number of frames is spread evenly.
    """
    assert isinstance(spec, GlmVideoSpec)
    if sampling.frame_count is not None:
        return whole_pairs(evenly(total, min(sampling.frame_count, total)))
    patch, seconds = spec.pixels.temporal_patch_size, min(total / rate, spec.max_duration_seconds)
    if sampling.fps is not None:
        return frames_by_steps(total, rate, sampling.fps, int(min(seconds * sampling.fps, spec.max_frames)))
    patches = next(patches for longest, patches in _PATCHES_A_SECOND if seconds <= longest)
    return frames_by_steps(total, rate, patch * patches, int(min(seconds * patches * patch, spec.max_frames)))


def frames_by_steps(total: int, rate: float, fps: float, count: int) -> npt.NDArray[np.int64]:
    """The first frame of each step of 1/fps seconds where these are `count`; else `count` frames spread evenly.

    Where the steps give too few, as in a clip that ends within a second of the last whole one, they are spread from the first of
    these to the last.

    Source: transformers 5.23, Glm46VVideoProcessor.sample_frames and Glm5NextVideoProcessor.sample_frames.
    """
    if total < count:
        return whole_pairs(evenly(total, count))
    interval, step, last_second = 1 / rate, 1 / fps, int(total / rate)
    indices: list[int] = []
    moment = 0.0
    for index in range(total):
        if index * interval >= moment:
            moment += step
            indices.append(index)
            if moment >= last_second:
                break
    if len(indices) < count:
        indices = np.linspace(indices[0], indices[-1], count, dtype=int).tolist()
    elif len(indices) > count:
        indices = evenly(total, count)
    return whole_pairs(indices)


def layout(item: ProbedMedium, model: ModelSettings) -> ItemLayout:
    return glm_layout(patch_rows(item, model, glm4v.fit(item, model)), item, model, tenths)


def tenths(second: float) -> str:
    """Source: transformers 5.23, Glm46VProcessor.replace_frame_token_id."""
    return f"{second:.1f} seconds"


FAMILY = dataclasses.replace(
    glm4v.FAMILY,
    name="glm46v",
    model_types=("glm46v", "glm_ocr"),
    read_pixels=read_pixels,
    sample_indices=sample_indices,
    layout=layout,
    processor="Glm46VProcessor",
)
