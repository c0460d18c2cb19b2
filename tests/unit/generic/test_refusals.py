"""What cannot be prepared is refused, each with its reason."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from preprocessor.config import Limits
from preprocessor.errors import InvalidRequest, LimitExceeded, UnsupportedMedia
from preprocessor.models.generic import GenericModel, prepare_generic
from preprocessor.pipeline import plan
from preprocessor.types.request import (
    ChatPrompt,
    Media,
    MediaPart,
    Message,
    Modality,
    PixelForm,
    PreparationRequest,
    TextPart,
    TextPrompt,
    TokenPrompt,
)
from tests.media import photo
from tests.unit.generic.cases import LIMITS, chat, clip, image, refusal, video


@pytest.mark.parametrize(
    ("text", "media"),
    [("no placeholder", 1), ("one <image>", 0), ("one <image>", 2), ("<image> <image>", 1)],
)
@pytest.mark.parametrize("name", ["llava_onevision", "idefics3"])
def test_placeholders_that_do_not_match_the_media_are_refused(
    loaded: dict[str, GenericModel], name: str, text: str, media: int
) -> None:
    request = PreparationRequest(TextPrompt(text), tuple(image(f"i{n}") for n in range(media)))
    assert refusal(loaded[name], request).reason == "PLACEHOLDER_MISMATCH"


def test_media_in_another_order_than_their_placeholders_are_refused(loaded: dict[str, GenericModel]) -> None:
    request = PreparationRequest(TextPrompt("<video> <image>"), (image("i"), video("v")))
    assert refusal(loaded["llava_onevision"], request).reason == "PLACEHOLDER_MISMATCH"


def test_a_mismatch_that_only_the_processor_sees_is_told_as_such(loaded: dict[str, GenericModel]) -> None:
    blind = dataclasses.replace(loaded["idefics3"], placeholders={})
    request = PreparationRequest(TextPrompt("no placeholder"), (image("i"),))
    assert refusal(blind, request).reason == "PLACEHOLDER_MISMATCH"


@pytest.mark.parametrize(
    ("name", "medium"),
    [("gemma3", video("v")), ("qwen2_audio", image("i")), ("pixtral", Media("a", Modality.AUDIO, b"x"))],
)
def test_a_modality_that_the_processor_does_not_take_is_refused(
    loaded: dict[str, GenericModel], name: str, medium: Media
) -> None:
    with pytest.raises(UnsupportedMedia) as caught:
        plan(loaded[name], chat(medium), Limits())
    assert (caught.value.reason, caught.value.metadata["media_key"]) == ("UNSUPPORTED_MODALITY", medium.key)


def test_uint8_pixels_are_not_to_be_had(loaded: dict[str, GenericModel]) -> None:
    request = dataclasses.replace(chat(image("i")), pixel_form=PixelForm.UINT8)
    assert refusal(loaded["gemma3"], request).reason == "UNSUPPORTED_PIXEL_FORM"


def test_what_transformers_refuses_is_told_in_its_words(loaded: dict[str, GenericModel]) -> None:
    error = refusal(loaded["glm46v"], chat(image("i", photo(4000, 8, "PNG"))))
    assert isinstance(error, InvalidRequest)
    assert (error.reason, "aspect ratio" in error.message) == ("PROCESSOR_REFUSED", True)


def failing(model: GenericModel, error: Exception) -> GenericModel:
    return dataclasses.replace(model, processor=Failing(model.processor, error))


def test_what_transformers_refuses_leaves_a_trace_without_words(loaded: dict[str, GenericModel]) -> None:
    model = failing(loaded["pixtral"], ValueError("no such Duke"))
    error = refusal(model, PreparationRequest(TextPrompt("hi")))
    assert (error.reason, "Duke" in error.message) == ("PROCESSOR_REFUSED", True)
    assert "in __call__" in error.trace and "Duke" not in error.trace


@pytest.mark.parametrize("kind", [KeyError, IndexError, TypeError, AttributeError, RuntimeError, AssertionError])
def test_a_fault_of_a_processors_code_is_not_booked_on_the_caller(
    loaded: dict[str, GenericModel], kind: type[Exception]
) -> None:
    model = failing(loaded["pixtral"], kind("lost"))
    with pytest.raises(kind):
        prepare_generic(model, PreparationRequest(TextPrompt("hi")), LIMITS)
    assert model.lock.acquire(timeout=0), "the lock is free again"


@pytest.mark.parametrize("name", ["llava_onevision", "internvl"])
def test_clips_that_make_no_one_tensor_are_refused(loaded: dict[str, GenericModel], name: str) -> None:
    error = refusal(loaded[name], chat(video("v", clip(1.5)), video("w", clip(3))))
    assert (error.reason, "pixel_values_videos" in error.message) == ("RAGGED_TENSORS", True)


def test_token_ids_are_refused(loaded: dict[str, GenericModel]) -> None:
    assert refusal(loaded["pixtral"], PreparationRequest(TokenPrompt((1, 2)))).reason == "TOKENS_NOT_ACCEPTED"


def test_an_empty_prompt_is_refused(loaded: dict[str, GenericModel]) -> None:
    assert refusal(loaded["pixtral"], PreparationRequest(TextPrompt(""))).reason == "EMPTY_PROMPT"


def test_a_key_without_a_medium_is_refused(loaded: dict[str, GenericModel]) -> None:
    request = PreparationRequest(ChatPrompt((Message("user", (MediaPart("gone"),)),)))
    assert refusal(loaded["pixtral"], request).reason == "UNKNOWN_MEDIA_KEY"


def test_a_medium_that_no_message_shows_is_refused(loaded: dict[str, GenericModel]) -> None:
    request = PreparationRequest(ChatPrompt((Message("user", (TextPart("hi"),)),)), (image("i"),))
    assert refusal(loaded["pixtral"], request).reason == "PLACEHOLDER_MISMATCH"


@pytest.mark.parametrize("name", ["pixtral", "gemma3", "llava_next", "idefics3"])
def test_a_pixel_budget_is_refused_where_size_means_edges(loaded: dict[str, GenericModel], name: str) -> None:
    assert refusal(loaded[name], chat(image("i", max_pixels=9999))).reason == "INVALID_PIXEL_BUDGET"


@pytest.mark.parametrize(
    "media",
    [
        (image("i", max_pixels=9999), image("j")),
        (video("v", cap_pixels_per_frame=True),),
    ],
    ids=["two budgets", "cap"],
)
def test_a_pixel_budget_that_cannot_be_is_refused(loaded: dict[str, GenericModel], media: tuple[Media, ...]) -> None:
    assert refusal(loaded["glm46v"], chat(*media)).reason == "INVALID_PIXEL_BUDGET"


def test_media_that_decode_to_too_much_are_refused_before_they_are_decoded(loaded: dict[str, GenericModel]) -> None:
    whole = photo(400, 300, "PNG")
    half = whole[: len(whole) // 2]  # its header is sound; to decode it would be CORRUPT_MEDIA
    error = refusal(loaded["pixtral"], chat(image("i", half)), Limits(max_pixel_bytes=400 * 300 * 3 - 1))
    assert isinstance(error, LimitExceeded) and error.reason == "PIXELS_TOO_LARGE"


def test_tensors_above_the_limit_are_refused(loaded: dict[str, GenericModel]) -> None:
    error = refusal(loaded["idefics3"], chat(image("i", photo(32, 32, "PNG"))), Limits(max_pixel_bytes=32 * 32 * 3))
    assert (error.reason, "the tensors" in error.message) == ("PIXELS_TOO_LARGE", True)


def test_a_long_prompt_is_refused(loaded: dict[str, GenericModel]) -> None:
    error = refusal(loaded["pixtral"], PreparationRequest(TextPrompt("word " * 9)), Limits(max_prompt_length=44))
    assert error.reason == "PROMPT_TOO_LONG"


def test_a_model_without_a_template_takes_rendered_prompts_only(loaded: dict[str, GenericModel]) -> None:
    bare = dataclasses.replace(loaded["pixtral"], chat_template="")
    assert refusal(bare, chat()).reason == "CHAT_TEMPLATE_FAILED"
    assert len(prepare_generic(bare, PreparationRequest(TextPrompt("hi")), LIMITS).token_ids)


def test_a_caller_who_leaves_ends_the_work_before_the_processor_runs(loaded: dict[str, GenericModel]) -> None:
    def leave() -> None:
        raise KeyboardInterrupt

    model = dataclasses.replace(loaded["pixtral"], processor=Untouchable(loaded["pixtral"].processor))
    with pytest.raises(KeyboardInterrupt):
        prepare_generic(model, PreparationRequest(TextPrompt("hi")), LIMITS, leave)


def test_a_caller_who_leaves_does_not_wait_for_the_processor(loaded: dict[str, GenericModel]) -> None:
    def leave() -> None:
        raise KeyboardInterrupt

    model = dataclasses.replace(loaded["pixtral"])
    with model.lock, pytest.raises(KeyboardInterrupt):
        prepare_generic(model, PreparationRequest(TextPrompt("hi")), LIMITS, leave)


class Failing:
    """A processor whose code fails."""

    def __init__(self, processor: Any, error: Exception) -> None:
        self.tokenizer = processor.tokenizer
        self.model_input_names = processor.model_input_names
        self._error = error

    def __call__(self, **_: Any) -> None:
        raise self._error


class Untouchable:
    """A processor that must not be called."""

    def __init__(self, processor: Any) -> None:
        self.tokenizer = processor.tokenizer

    def __call__(self, **_: Any) -> None:
        pytest.fail("the processor was called")


@pytest.mark.parametrize(
    ("name", "word"), [("gemma3", "<image_soft_token>"), ("pixtral", "[IMG_BREAK]"), ("internvl", "<img>")]
)
@pytest.mark.parametrize("with_picture", [True, False])
def test_a_token_that_only_the_processor_may_write_is_refused(
    loaded: dict[str, GenericModel], name: str, word: str, with_picture: bool
) -> None:
    media = (image("i"),) if with_picture else ()
    parts: tuple[MediaPart | TextPart, ...] = (*(MediaPart("i") for _ in media), TextPart(f"what is {word}?"))
    request = PreparationRequest(ChatPrompt((Message("user", parts),)), media)
    error = refusal(loaded[name], request)
    assert (error.reason, word in error.message) == ("PLACEHOLDER_MISMATCH", True)


@pytest.mark.parametrize("word", ["<eos>", "<boi>", "<image_soft_token>"])
def test_a_literal_text_that_spells_a_token_is_refused(loaded: dict[str, GenericModel], word: str) -> None:
    message = Message("user", (TextPart(f"what is {word}?", is_literal=True),))
    assert refusal(loaded["gemma3"], PreparationRequest(ChatPrompt((message,)))).reason == "LITERAL_TEXT_REFUSED"


def test_a_literal_text_that_spells_no_token_is_its_text(loaded: dict[str, GenericModel]) -> None:
    ids = [
        prepare_generic(
            loaded["gemma3"],
            PreparationRequest(ChatPrompt((Message("user", (TextPart("a <b>\n", is_literal=literal),)),))),
            LIMITS,
        ).token_ids.tolist()
        for literal in (False, True)
    ]
    assert ids[0] == ids[1]


def test_a_prompt_that_would_take_too_much_memory_is_refused(loaded: dict[str, GenericModel]) -> None:
    request = PreparationRequest(TextPrompt("7" * 70_000))
    error = refusal(loaded["gemma3"], request, Limits(max_tokenizing_bytes=1 << 20))
    assert error.reason == "TOKENIZING_MEMORY_EXCEEDED"
