"""GLM-4.1V and GLM-4.5V: Qwen2-VL's patches; frames by the second, and behind each pair of them the second at which it is shown.

The pixel budget counts t*h*w, of an image too, which fills a whole temporal patch. A video's tokens are image tokens: each pair
of frames is written `<|begin_of_image|>…<|end_of_image|>1`, within the template's markers of the whole video, which stay.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocessor.models import qwen3_vl
from preprocessor.models.family import Family, ItemLayout, ModelSettings
from preprocessor.models.probe import ProbedMedium
from preprocessor.models.qwen2_vl import patch_rows, patch_writer, read_patch_settings, without_nulls
from preprocessor.text.placeholders import Replacement
from preprocessor.types.request import Modality, Sampling
from preprocessor.vision.geometry import fit_video
from preprocessor.vision.spec import PixelSpec, VideoSpec

VIDEO_DEFAULTS = {"fps": 2, "max_duration": 300}
"""transformers 5.23, Glm4vVideoProcessor."""

_FRAMES_A_STAMP = 2  # transformers 5.23, Glm4vProcessor.replace_video_token: of any temporal patch size


@dataclass(frozen=True, slots=True)
class GlmVideoSpec(VideoSpec):
    """Attributes:
    max_duration_seconds: Of a longer clip, the frames of so many seconds are spread over all of it.
    """

    max_duration_seconds: float = 300


def read_pixels(image: Mapping[str, Any], video: Mapping[str, Any], name: str) -> tuple[PixelSpec, GlmVideoSpec]:
    settings = {**VIDEO_DEFAULTS, **without_nulls(video)}
    seconds = settings["max_duration"]
    return read_glm_settings(image, settings, name, most=int(seconds * settings["fps"]), seconds=seconds)


def read_glm_settings(
    image: Mapping[str, Any], video: Mapping[str, Any], name: str, *, most: int, seconds: float
) -> tuple[PixelSpec, GlmVideoSpec]:
    """Settings of images and videos, the family's defaults filled in; `num_frames` is not heeded, as in transformers.

    Args:
        most: Frames that the family takes of a video at most.
        seconds: The longest clip that is not spread, see `GlmVideoSpec`.
    """
    bounds = {"min_frames": 1, "max_frames": most, "max_video_tokens": 0, "num_frames": None}
    pixels, videos = read_patch_settings(image, {**video, **bounds}, name)
    fields = {field.name: getattr(videos, field.name) for field in dataclasses.fields(VideoSpec)}
    fields["takes_every_frame"] = video.get("do_sample_frames") is False  # these classes sample by default
    return pixels, GlmVideoSpec(**fields, max_duration_seconds=seconds)


def sample_indices(total: int, rate: float, sampling: Sampling, spec: VideoSpec) -> npt.NDArray[np.int64]:
    """One frame each 1/fps seconds, rounded up.

    Source: transformers 5.23, Glm4vVideoProcessor.sample_frames. Differs: it heeds no number of frames; here one gives that
    many, spread evenly.
    """
    assert isinstance(spec, GlmVideoSpec)
    if sampling.frame_count is not None:
        return whole_pairs(evenly(total, min(sampling.frame_count, total)))
    fps = spec.fps if sampling.fps is None else sampling.fps
    seconds, last = total / rate, total - 1
    if seconds <= spec.max_duration_seconds:
        if fps >= 2 * rate:  # two moments or more a frame: each frame has one
            return whole_pairs(range(total))
        return whole_pairs(min(last, math.ceil(number * rate / fps)) for number in range(math.floor(seconds * fps)))
    count = int(min(spec.max_duration_seconds * fps, total))
    if count == total:
        return whole_pairs(range(total))
    return whole_pairs(min(last, math.ceil(moment * rate)) for moment in np.linspace(0, seconds, count).tolist())


def evenly(total: int, count: int) -> list[int]:
    """`count` frames from the first to the last, each rounded down; as the GLM video processors spread a number of frames."""
    indices: list[int] = np.linspace(0, total - 1, count, dtype=int).tolist()
    return indices


def whole_pairs(indices: Iterable[int]) -> npt.NDArray[np.int64]:
    """Each frame once, and the last one again where their number is odd.

    Source: transformers 5.23, the end of `sample_frames` in Glm4vVideoProcessor, Glm46VVideoProcessor and
    Glm5NextVideoProcessor. Differs: of no frame it takes the first, where the originals give none.
    """
    once = [index for index, _ in itertools.groupby(indices)] or [0]
    return np.array(once + once[-1:] * (len(once) % 2), np.int64)


def layout(item: ProbedMedium, model: ModelSettings) -> ItemLayout:
    return glm_layout(patch_rows(item, model, fit(item, model)), item, model, whole_second)


def fit(item: ProbedMedium, model: ModelSettings) -> tuple[int, int]:
    """Height and width in px. Source: transformers 5.23, `resize` of Glm4vImageProcessor and Glm4vVideoProcessor.

    A single frame of a video counts as a whole temporal patch; the original refuses it.
    """
    pixels = model.pixels_of(item.medium.modality)
    height, width = item.size_px
    return fit_video(
        max(item.frame_count, pixels.temporal_patch_size),
        height,
        width,
        temporal_factor=pixels.temporal_patch_size,
        factor=pixels.factor,
        min_pixels=pixels.min_pixels,
        max_pixels=pixels.max_pixels,
    )


def glm_layout(
    laid_out: ItemLayout, item: ProbedMedium, model: ModelSettings, stamp: Callable[[float], str]
) -> ItemLayout:
    """The same rows with the text of a video, where it is one.

    Args:
        stamp: Seconds → what is written behind a pair of frames.
    Source: transformers 5.23, Glm4vProcessor.replace_video_token; Glm46VProcessor and Glm5NextProcessor differ in the stamp.
    """
    if item.frames is None:
        return laid_out
    count = laid_out.rows.group_count
    seconds = item.frames.prompt_times_seconds[::_FRAMES_A_STAMP].tolist()[:count]
    seconds += seconds[-1:] * (count - len(seconds))
    pad = model.placeholders.tokens[Modality.IMAGE]
    text = "".join(f"<|begin_of_image|>{pad}<|end_of_image|>{stamp(second)}" for second in seconds)
    (token_count,) = laid_out.spans.span_lengths
    return dataclasses.replace(laid_out, spans=Replacement(text, (token_count // count,) * count))


def whole_second(second: float) -> str:
    """Source: transformers 5.23, Glm4vProcessor.replace_frame_token_id."""
    return str(int(second))


FAMILY = Family(
    name="glm4v",
    model_types=("glm4v", "glm4v_moe"),
    read_pixels=read_pixels,
    sample_indices=sample_indices,
    layout=layout,
    frame_writer=patch_writer,
    prompt_tensors=qwen3_vl.prompt_tensors,  # transformers 5.23, Glm4vModel.get_rope_index: a grid of t = 1 for each pair
    processor="Glm4vProcessor",
    else_generic=True,
)
