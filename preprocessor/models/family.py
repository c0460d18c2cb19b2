"""What a model family decides, as a table of plain functions, and a loaded model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from preprocessor.text.prompt import Placeholders, Replacement
from preprocessor.types.plan import ExpandedPrompt, ItemPlan
from preprocessor.types.request import Modality, Sampling
from preprocessor.vision.spec import PixelSpec, VideoSpec


@dataclass(frozen=True, slots=True)
class Family:
    """One model family. Each function is pure; README.md here tells how to add a family.

    Attributes:
        model_types: Values of `model_type` in config.json that belong here.
        video_defaults: Fields of the video processor's configuration where a model's files leave them out.
        spread_frames: (frames, frames a second, the caller's wish, settings) → ascending indices int64 [n].
        fit_video: (frame_count, height, width, settings) → (height, width) in px after resizing.
        replace_video: What stands for a video in the prompt.
        positions: (prompt, items, model) → int32 [3, L] and the delta.
        extra_tensors: Further tensors that the family's models take, from the items in prompt order.
    """

    name: str
    model_types: tuple[str, ...]
    video_defaults: Mapping[str, Any]
    sample_indices: Callable[[int, float, Sampling, VideoSpec], npt.NDArray[np.int64]]
    fit_video: Callable[[int, int, int, VideoSpec], tuple[int, int]]
    replace_video: Callable[[ItemPlan, Model], Replacement]
    positions: Callable[[ExpandedPrompt, Sequence[ItemPlan], Model], tuple[npt.NDArray[np.int32], int]]
    extra_tensors: Callable[[Sequence[ItemPlan], Model], dict[str, npt.NDArray[Any]]]


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A model as far as preprocessing knows it: settings, tokenizer, template. It pickles.

    Attributes:
        name: As the user gave it: a built-in name, a directory or a hub id.
        vision_markers: The tokens that stand before and after a picture.
        tokens_per_second: Temporal positions a second, where the family spaces them by time.
        stop_token_ids: Ids that end an answer.
        fingerprint: Changes whenever the same request could come out differently.
    """

    name: str
    family: Family
    image: PixelSpec
    video: VideoSpec
    tokenizer: TokenizersBackend = field(repr=False)
    chat_template: str = field(repr=False)
    placeholders: Placeholders
    vision_markers: tuple[str, str]
    tokens_per_second: float
    stop_token_ids: tuple[int, ...]
    fingerprint: str

    @property
    def modalities(self) -> frozenset[Modality]:
        """What the model takes beside text."""
        return frozenset(self.placeholders.ids)
