"""Requests to generic models, and how a refusal is caught."""

from __future__ import annotations

from typing import Any

import pytest

from preprocessor.config import Limits
from preprocessor.errors import PreprocessorError
from preprocessor.models.generic import GenericModel, prepare_generic
from preprocessor.types.request import ChatPrompt, Media, MediaPart, Message, Modality, PreparationRequest, TextPart
from tests.media import audio_only_clip, moving_shapes_clip, photo
from tests.sounds import encoded, with_sound

LIMITS = Limits()


def clip(seconds: float = 1.5) -> bytes:
    return moving_shapes_clip(seconds=seconds, rate=10, width=96, height=64)


def image(key: str, data: bytes | None = None, **settings: Any) -> Media:
    return Media(key, Modality.IMAGE, photo(90, 60, "PNG") if data is None else data, **settings)


def video(key: str, data: bytes | None = None, **settings: Any) -> Media:
    return Media(key, Modality.VIDEO, clip() if data is None else data, **settings)


def sound(key: str, data: bytes | None = None) -> Media:
    return Media(key, Modality.AUDIO, audio_only_clip() if data is None else data)


def sounding_clip(seconds: float = 1.5) -> bytes:
    """A clip with a tone of the same length."""
    return with_sound(clip(seconds), encoded("mp4", "aac", seconds=seconds))


def chat(*media: Media, **settings: Any) -> PreparationRequest:
    """A system prompt, then every medium followed by a word, then an answer and a question."""
    shown = [part for medium in media for part in (MediaPart(medium.key), TextPart(f"after {medium.key} "))]
    messages = (
        Message("system", (TextPart("Be brief."),)),
        Message("user", (*shown, TextPart("What is it?"))),
        Message("assistant", (TextPart("Shapes."),)),
        Message("user", (TextPart("Sure?"),)),
    )
    return PreparationRequest(ChatPrompt(messages), media, **settings)


def refusal(model: GenericModel, request: PreparationRequest, limits: Limits = LIMITS) -> PreprocessorError:
    with pytest.raises(PreprocessorError) as caught:
        prepare_generic(model, request, limits)
    return caught.value
