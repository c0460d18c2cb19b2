"""A model's own processor, and the parts of it."""

from __future__ import annotations

import dataclasses
import pickle
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers.tokenization_utils_tokenizers import TokenizersBackend

from preprocessor.models.generic.mistral_tokenizer import reading_tokenizer
from preprocessor.models.generic.torchvision import settle_torchvision
from preprocessor.types.request import Modality

_ATTRIBUTES = {Modality.IMAGE: "image_processor", Modality.VIDEO: "video_processor", Modality.AUDIO: "audio_processor"}


@dataclass(frozen=True, slots=True, eq=False)
class ProcessorSettings:
    """A model whose own processor does the work, as far as preparing reads it. It pickles.

    Attributes:
        name: As the user gave it.
        processor: transformers' `ProcessorMixin`. Call it under `lock` only: it is not documented as thread-safe, and its
            tokenizer may set padding or truncation on a Rust object, which fails while another thread encodes.
        chat_template: The processor's, else the tokenizer's; empty where there is none, or mistral-common writes prompts.
        modalities: What the processor takes beside text.
        placeholders: The token that a prompt holds for each medium, for those modalities where the processor names it
            and takes rendered prompts.
        stop_token_ids: Ids that end an answer.
        fingerprint: SHA-256 over the configuration files, the classes and the libraries; changes whenever the same request
            could come out differently.
        inner_tokens: Tokens that only the processor may write, in a placeholder's place: the model puts features there.
        tokenizer: A copy of the processor's in the form of `tokenizers`, safe for readers (decoding, templates) in any thread
            without the lock.
    """

    name: str
    processor: Any = field(repr=False)
    chat_template: str = field(repr=False)
    modalities: frozenset[Modality]
    placeholders: Mapping[Modality, str]
    stop_token_ids: tuple[int, ...]
    fingerprint: str
    inner_tokens: frozenset[str] = frozenset()
    tokenizer: TokenizersBackend = field(init=False, repr=False)
    lock: threading.Lock = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokenizer", reading_tokenizer(self.processor.tokenizer))
        object.__setattr__(self, "lock", threading.Lock())

    @property
    def samples_frames(self) -> bool:
        """Whether frames of a video are sampled by default: False where the model's own files turn off what its class does.

        Classes that do not sample (`do_sample_frames = False` "for BC") say so in every file that transformers saves, fine-tunes
        of models that are served with 2 frames a second included, so that their false means nothing.
        """
        part = part_of(self.processor, Modality.VIDEO)
        return not getattr(type(part), "do_sample_frames", False) or part.do_sample_frames is not False

    def __reduce__(self) -> tuple[object, ...]:
        # Bytes inside the pickle: the classes in them may be imported only once torchvision is settled.
        state = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}
        return _restore, (type(self), pickle.dumps(state))


def _restore(kind: type[ProcessorSettings], state: bytes) -> ProcessorSettings:
    settle_torchvision()
    return kind(**pickle.loads(state))


def part_of(processor: Any, modality: Modality) -> Any:
    """The part of a processor that takes this modality, or None. Older processors have another name for the audio part."""
    part = getattr(processor, _ATTRIBUTES[modality], None)
    if modality is Modality.AUDIO:
        part = part or getattr(processor, "feature_extractor", None)
        return part if hasattr(part, "sampling_rate") else None  # old image processors are feature extractors too
    return part


def counts_pixels(part: Any) -> bool:
    """Whether an image or video part counts pixels in `size`, as a budget.

    Only processors that fit an image to whole merged patches within a budget (Qwen's and GLM's) do. Others give lengths of an
    edge under the same names.
    """
    return own_size(part).keys() == {"shortest_edge", "longest_edge"} and hasattr(part, "merge_size")


def own_size(part: Any) -> dict[str, int]:
    """The `size` of an image or video part, without what is not set; empty where it has none."""
    return {name: value for name, value in dict(getattr(part, "size", None) or {}).items() if value is not None}
