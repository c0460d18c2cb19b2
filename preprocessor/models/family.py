"""What a model family decides, as a table of plain functions, and a loaded model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from preprocessor.text.prompt import Placeholders, Replacement
from preprocessor.types import ClipInfo, ExpandedPrompt, ItemPlan, Sampling
from preprocessor.vision.spec import PixelSpec, VideoSpec


@dataclass(frozen=True, slots=True)
class Family:
    """One model family. Each field is a pure function; `preprocessor/README.md` tells how to add a family.

    Attributes:
        model_types: Values of `model_type` in config.json that belong here.
        choose_frames: Indices int64 [n] of a clip's frames, ascending.
        fit_image: (height, width) in px → (height, width) in px after resizing.
        fit_video: (frame_count, height, width) → (height, width) in px after resizing.
        replace_image, replace_video: What stands for the medium in the prompt.
        positions: (prompt, items, model) → int32 [3, L] and the delta.
    """

    name: str
    model_types: tuple[str, ...]
    choose_frames: Callable[[ClipInfo, Sampling, VideoSpec], npt.NDArray[np.int64]]
    fit_image: Callable[[int, int, PixelSpec], tuple[int, int]]
    fit_video: Callable[[int, int, int, VideoSpec], tuple[int, int]]
    replace_image: Callable[[ItemPlan, Model], Replacement]
    replace_video: Callable[[ItemPlan, Model], Replacement]
    positions: Callable[[ExpandedPrompt, Sequence[ItemPlan], Model], tuple[npt.NDArray[np.int32], int]]


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A model as far as preprocessing knows it: settings, tokenizer, template. It pickles.

    Attributes:
        name: As the user gave it: a built-in name, a directory or a hub id.
        fingerprint: Changes whenever the same request could come out differently.
        stop_token_ids: Ids that end an answer.
    """

    name: str
    family: Family
    image: PixelSpec
    video: VideoSpec
    tokenizer: TokenizersBackend = field(repr=False)
    chat_template: str = field(repr=False)
    placeholders: Placeholders
    stop_token_ids: tuple[int, ...]
    fingerprint: str
