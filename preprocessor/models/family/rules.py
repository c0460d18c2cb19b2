"""What a model family decides, as a table of plain functions, and the settings of a model that these read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from preprocessor.models.family.budget import SIZE_BOUNDS
from preprocessor.models.family.configuration import Configuration, placeholders_by_id
from preprocessor.models.loaded import WriteFrame
from preprocessor.models.probe import ProbedMedium
from preprocessor.models.video_markers import VideoMarkers
from preprocessor.text.placeholders import Placeholders, Replacement, token_types
from preprocessor.types.plan import ExpandedPrompt, ItemPlan, ItemRows
from preprocessor.types.request import Media, Modality, Sampling
from preprocessor.vision.spec import PixelSpec, VideoSpec


@dataclass(frozen=True, slots=True, eq=False)
class ItemLayout:
    """How one image or video becomes rows of the pixel tensor and tokens of the prompt.

    Attributes:
        rows: Its rows, and the frames that they are made of.
        spans: What stands for it in the prompt: a text with one placeholder a span, and each span's token count.
        tensors: Its part of the family's own tensors, by name; the parts of all items are joined along the first axis, in prompt
            order, so every item gives the same names.
    """

    rows: ItemRows
    spans: Replacement
    tensors: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class ModelSettings:
    """A model's settings, tokenizer and template: what planning and the functions of a family read.

    Attributes:
        name: As the user gave it: a built-in name, a directory or a hub id.
        vision_markers: The tokens that stand before and after a picture.
        video_markers: Whether those around a whole video stay; None where the family does not mark frames.
        tokens_per_second: Temporal positions a second, where the family spaces them by time.
        stop_token_ids: Ids that end an answer.
        fingerprint: Changes whenever the same request could come out differently.
        details: What the family's `read_details` has read beside the pixel settings; None for a family without.
    """

    name: str
    family: Family
    image: PixelSpec
    video: VideoSpec
    tokenizer: TokenizersBackend = field(repr=False)
    chat_template: str = field(repr=False)
    placeholders: Placeholders
    vision_markers: tuple[str, str]
    video_markers: VideoMarkers | None
    tokens_per_second: float
    stop_token_ids: tuple[int, ...]
    fingerprint: str
    details: Any = None

    def for_medium(self, medium: Media) -> ModelSettings:
        """The settings with the caller's overrides for this medium.

        A single bound of the pixel budget is not checked against the model's other one, which the caller need not know: as in
        transformers.
        """
        cap = medium.cap_pixels_per_frame
        if medium.min_pixels is None and medium.max_pixels is None and cap is None:
            return self
        pixels = self.pixels_of(medium.modality)
        least = pixels.min_pixels if medium.min_pixels is None else medium.min_pixels
        most = pixels.max_pixels if medium.max_pixels is None else medium.max_pixels
        pixels = dataclasses.replace(pixels, min_pixels=least, max_pixels=most)
        if medium.modality is Modality.IMAGE:
            return dataclasses.replace(self, image=pixels)
        cap = self.video.cap_pixels_per_frame if cap is None else cap
        return dataclasses.replace(self, video=dataclasses.replace(self.video, pixels=pixels, cap_pixels_per_frame=cap))

    def pixels_of(self, modality: Modality) -> PixelSpec:
        """The pixel settings for images or for videos."""
        return self.image if modality is Modality.IMAGE else self.video.pixels


def no_tensors(prompt: ExpandedPrompt, items: Sequence[ItemPlan], model: ModelSettings) -> dict[str, npt.NDArray[Any]]:
    """For families that add none."""
    return {}


def no_details(configuration: Configuration) -> None:
    """For families whose pixel settings are all that they read."""


def no_video(total: int, rate: float, sampling: Sampling, spec: VideoSpec) -> npt.NDArray[np.int64]:
    """For families that take none, which are asked for no frames."""
    raise AssertionError("a video for a family without")


def types_of_spans(prompt: ExpandedPrompt, items: Sequence[ItemPlan], model: ModelSettings) -> npt.NDArray[np.int32]:
    """Each item's modality at the tokens of its spans, 0 elsewhere."""
    return token_types(prompt, [item.modality for item in items])


@dataclass(frozen=True, slots=True)
class Family:
    """One model family. Each function is pure; `preprocessor/models/README.md` tells how to add a family.

    Attributes:
        model_types: Values of `model_type` in config.json that belong here.
        processor: transformers' class for it, where models of one type have processors of several: a model whose files name the
            class of another such family belongs to that one. Empty where the type alone decides.
        read_pixels: (configuration of the image processor, of the video processor, the model's name) → settings of both.
            Raises `ModelNotFound` where they ask for what the family does not do. "processor" in either mapping holds the
            settings of the processor around them. A family without video gives settings that nothing reads.
        sample_indices: (frames, frames a second, the caller's sampling, settings) → ascending indices int64 [n].
        layout: (an image or a video, the model with the caller's overrides) → its rows, its tokens, its tensors.
        frame_writer: (a planned item, the model) → what writes its frames into rows; frames come in ascending order.
        prompt_tensors: (prompt, items in its order, the model) → tensors over the whole prompt, such as rotary positions.
        modalities: What the family's models take beside text; config.json names a placeholder token of each. Prompts with
            sound take the generic path (`models.with_sound`).
        marks_frames: Whether frames of a video have vision markers of their own, so that those around it are a choice.
        read_details: The model's files → what else the family needs of them: a frozen data class of plain values, or None.
        read_placeholders: (the model's files, the modalities) → the tokens of its media.
        token_types: (prompt, items in its order, the model) → int32 [L], as the family's processor gives `mm_token_type_ids`.
        image_bounds, video_bounds: Which of a medium's `min_pixels`, `max_pixels` and `cap_pixels_per_frame` have a meaning; any
            other is refused.
        text_in_parts: Whether a message of text alone goes to the chat template as a list of parts, too.
        else_generic: Whether a model whose configuration `read_pixels` or `read_details` refuses takes the generic path.
    """

    name: str
    model_types: tuple[str, ...]
    read_pixels: Callable[[Mapping[str, Any], Mapping[str, Any], str], tuple[PixelSpec, VideoSpec]]
    sample_indices: Callable[[int, float, Sampling, VideoSpec], npt.NDArray[np.int64]]
    layout: Callable[[ProbedMedium, ModelSettings], ItemLayout]
    frame_writer: Callable[[ItemPlan, ModelSettings], WriteFrame]
    prompt_tensors: Callable[[ExpandedPrompt, Sequence[ItemPlan], ModelSettings], Mapping[str, npt.NDArray[Any]]] = (
        no_tensors
    )
    modalities: frozenset[Modality] = frozenset({Modality.IMAGE, Modality.VIDEO})
    marks_frames: bool = False
    processor: str = ""
    read_details: Callable[[Configuration], Any] = no_details
    read_placeholders: Callable[[Configuration, frozenset[Modality]], Placeholders] = placeholders_by_id
    token_types: Callable[[ExpandedPrompt, Sequence[ItemPlan], ModelSettings], npt.NDArray[np.int32]] = types_of_spans
    image_bounds: frozenset[str] = SIZE_BOUNDS
    video_bounds: frozenset[str] = SIZE_BOUNDS
    text_in_parts: bool = False
    else_generic: bool = False
