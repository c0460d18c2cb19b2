"""Chat, text and token prompts → token ids with placeholders expanded."""

from __future__ import annotations

import dataclasses
import re

import pytest

from preprocessor.config import Limits
from preprocessor.errors import InvalidRequest, LimitExceeded
from preprocessor.models.family import Model
from preprocessor.pipeline import plan
from preprocessor.text.chat_template import render_chat
from preprocessor.text.placeholders import Replacement, expand_text, expand_token_ids
from preprocessor.text.prompt_checks import match_media
from preprocessor.text.tokenizer import encode
from preprocessor.types.plan import Plan
from preprocessor.types.request import (
    ChatPrompt,
    Media,
    MediaPart,
    Message,
    Modality,
    PreparationRequest,
    Sampling,
    TextPart,
    TextPrompt,
    TokenPrompt,
)
from tests.media import moving_shapes_clip, photo
from tests.plans import grid_of

IMAGE, VIDEO = Modality.IMAGE, Modality.VIDEO
IMAGE_PAD, VIDEO_PAD = "<|image_pad|>", "<|video_pad|>"


def image(key: str = "i") -> Media:
    return Media(key, IMAGE, photo(64, 64, "PNG"))


def video(key: str = "v") -> Media:
    return Media(key, VIDEO, moving_shapes_clip(1, 10, 64, 64), Sampling(frame_count=4))


def planned(model: Model, prompt: ChatPrompt | TextPrompt | TokenPrompt, *media: Media) -> Plan:
    return plan(model, PreparationRequest(prompt, media), Limits())


def chat(*parts: TextPart | MediaPart) -> ChatPrompt:
    return ChatPrompt((Message("user", parts),))


def refusal(model: Model, prompt: ChatPrompt | TextPrompt | TokenPrompt, *media: Media) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        planned(model, prompt, *media)
    return caught.value


def test_a_placeholder_becomes_as_many_ids_as_its_span(model: Model) -> None:
    expanded = expand_text(model.tokenizer, model.placeholders, f"a{IMAGE_PAD}b", [Replacement(IMAGE_PAD, (3,))])
    pad = model.placeholders.ids[IMAGE]
    assert expanded.token_ids.tolist() == [*encode(model.tokenizer, "a"), pad, pad, pad, *encode(model.tokenizer, "b")]


def test_spans_tell_item_offset_and_length(model: Model) -> None:
    replacements = [Replacement(IMAGE_PAD, (3,)), Replacement(f"x{VIDEO_PAD}y{VIDEO_PAD}", (2, 2))]
    expanded = expand_text(model.tokenizer, model.placeholders, f"a{IMAGE_PAD}{VIDEO_PAD}", replacements)
    assert expanded.spans.tolist() == [[0, 1, 3], [1, 5, 2], [1, 8, 2]]


def test_expanding_ids_equals_expanding_text(model: Model) -> None:
    text = f"look: {IMAGE_PAD} and <|vision_start|>{VIDEO_PAD}<|vision_end|>, well"  # as templates write a video
    replacements = [Replacement(IMAGE_PAD, (3,)), Replacement(f"<0.5 seconds>{VIDEO_PAD}", (2,))]
    from_text = expand_text(model.tokenizer, model.placeholders, text, replacements)
    ids = encode(model.tokenizer, text)
    from_ids = expand_token_ids(model.tokenizer, model.placeholders, ids, replacements)
    assert from_ids.token_ids.tolist() == from_text.token_ids.tolist()


def test_a_prompt_without_media_has_no_spans(model: Model) -> None:
    assert expand_text(model.tokenizer, model.placeholders, "words", []).spans.shape == (0, 3)


@pytest.mark.parametrize("words", ["", " ", "\n", "ÿ", "你好", "a b"])
def test_ids_around_a_placeholder_are_those_of_the_fully_written_text(model: Model, words: str) -> None:
    """Placeholders are repeated as ids, not as text; a tokenizer that merged them with a neighbour would differ."""
    written = words + IMAGE_PAD * 5 + words
    expanded = expand_text(
        model.tokenizer, model.placeholders, words + IMAGE_PAD + words, [Replacement(IMAGE_PAD, (5,))]
    )
    assert expanded.token_ids.tolist() == encode(model.tokenizer, written)


@pytest.mark.parametrize("prompt_text", ["no placeholder", IMAGE_PAD * 2, VIDEO_PAD, VIDEO_PAD + IMAGE_PAD + IMAGE_PAD])
def test_placeholders_that_do_not_match_the_media_are_refused(model: Model, prompt_text: str) -> None:
    assert refusal(model, TextPrompt(prompt_text), image()).reason == "PLACEHOLDER_MISMATCH"


def test_a_mismatch_is_told_in_numbers() -> None:
    with pytest.raises(InvalidRequest, match="2 image placeholders for 1 given"):
        match_media([IMAGE, IMAGE], [image()])


def test_placeholders_in_another_order_than_the_media_are_refused() -> None:
    with pytest.raises(InvalidRequest):
        match_media([VIDEO, IMAGE], [image(), video()])


def test_user_text_that_holds_a_placeholder_is_refused(model: Model) -> None:
    error = refusal(model, chat(MediaPart("i"), TextPart(f"What does {IMAGE_PAD} mean?")), image())
    assert error.reason == "PLACEHOLDER_MISMATCH"


def test_a_medium_shown_twice_stands_twice_in_the_prompt(model: Model) -> None:
    items = planned(model, chat(MediaPart("i"), TextPart("again:"), MediaPart("i")), image()).items
    assert [(item.key, item.row_start) for item in items] == [("i", 0), ("i", grid_of(items[0]).patch_count)]


def test_media_shown_more_often_than_the_limit_are_refused(model: Model) -> None:
    """Each showing costs a look into the file, so each counts."""
    request = PreparationRequest(chat(*[MediaPart("i")] * 3), (image(),))
    with pytest.raises(LimitExceeded):
        plan(model, request, Limits(max_media_count=2))


def test_a_key_that_no_medium_has_is_refused(model: Model) -> None:
    assert refusal(model, chat(MediaPart("other")), image()).reason == "UNKNOWN_MEDIA_KEY"


def test_a_medium_that_no_message_shows_is_refused(model: Model) -> None:
    assert refusal(model, chat(TextPart("words")), image()).reason == "PLACEHOLDER_MISMATCH"


def test_media_follow_the_order_of_the_chat(model: Model) -> None:
    items = planned(model, chat(MediaPart("v"), MediaPart("i")), image(), video()).items
    assert [item.key for item in items] == ["v", "i"]


def test_a_text_prompt_equals_the_chat_that_renders_to_it(model: Model) -> None:
    prompt = chat(TextPart("Look: "), MediaPart("i"), MediaPart("v"), TextPart("?"))
    text = render_chat(model.tokenizer, model.chat_template, prompt, {"i": IMAGE, "v": VIDEO})
    ours = planned(model, TextPrompt(text), image(), video()).token_ids
    assert ours.tolist() == planned(model, prompt, image(), video()).token_ids.tolist()


def test_a_token_prompt_equals_the_text_it_was_made_from(model: Model) -> None:
    text = f"<|im_start|>user\n{IMAGE_PAD} then <|vision_start|>{VIDEO_PAD}<|vision_end|> naïve 你好<|im_end|>\n"
    from_text = planned(model, TextPrompt(text), image(), video()).token_ids
    token_prompt = TokenPrompt(tuple(encode(model.tokenizer, text)))
    assert planned(model, token_prompt, image(), video()).token_ids.tolist() == from_text.tolist()


@pytest.mark.parametrize("token_id", [-1, 10**6])
def test_a_token_id_outside_the_vocabulary_is_refused(model: Model, token_id: int) -> None:
    assert refusal(model, TokenPrompt((1, token_id))).reason == "INVALID_TOKEN_ID"


@pytest.mark.parametrize("prompt", [TextPrompt(""), TokenPrompt(())])
def test_an_empty_prompt_is_refused(model: Model, prompt: TextPrompt | TokenPrompt) -> None:
    assert refusal(model, prompt).reason == "EMPTY_PROMPT"


def test_messages_that_the_template_refuses_are_refused(model: Model) -> None:
    prompt = ChatPrompt((Message("robot", (TextPart("beep"),)),))
    assert refusal(model, prompt).reason == "CHAT_TEMPLATE_FAILED"


def test_the_generation_prompt_can_be_left_out(model: Model) -> None:
    messages = (Message("user", (TextPart("hi"),)),)
    text = render_chat(model.tokenizer, model.chat_template, ChatPrompt(messages, add_generation_prompt=False), {})
    assert text == "<|im_start|>user\nhi<|im_end|>\n"


def test_each_frame_pair_of_a_video_stands_behind_its_time(model: Model) -> None:
    token_ids = planned(model, TextPrompt(VIDEO_PAD), video()).token_ids
    text = model.tokenizer.decode(token_ids).replace(VIDEO_PAD, "")
    markers = "<|vision_start|><|vision_end|>"
    assert text == f"<0.1 seconds>{markers}<0.8 seconds>{markers}"  # frames 0, 3, 6, 9 at 10 a second: 0.15 and 0.75 s


TOOL_TEMPLATE = (
    "{% if tools %}TOOLS {{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}[{{ m.role }}]"
    "{% for call in m.tool_calls or [] %}CALL {{ call.function.name }} {{ call.function.arguments | tojson }}{% endfor %}"
    "{{ ' id=' ~ m.tool_call_id if m.tool_call_id }}"
    "{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}{{ p.text if p.type == 'text' else '<|' ~ p.type ~ '_pad|>' }}{% endfor %}{% endif %}|"
    "{% endfor %}{{ '[assistant]' if add_generation_prompt }}{{ 'mode=' ~ mode if mode }}"
)
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]


def rendered(model: Model, prompt: ChatPrompt, *media: Media) -> str:
    """The text that the template made, read back from the ids; runs of placeholders cut to one."""
    text = model.tokenizer.decode(planned(model, prompt, *media).token_ids.tolist())
    return re.sub(r"(<\|image_pad\|>)+", IMAGE_PAD, text)


def test_tools_calls_and_their_answers_reach_the_template(model: Model) -> None:
    model = dataclasses.replace(model, chat_template=TOOL_TEMPLATE)
    call = {"tool_calls": [{"type": "function", "function": {"name": "look", "arguments": {"at": 3}}}]}
    messages = (
        Message("user", (TextPart("Look "), MediaPart("i"))),
        Message("assistant", (), call),
        Message("tool", (TextPart("a cat"),), {"tool_call_id": "c1"}),
    )
    text = rendered(model, ChatPrompt(messages, template_arguments={"tools": TOOLS}), image())
    assert text.startswith('TOOLS [{"type": "function"')
    assert '[assistant]CALL look {"at": 3}|[tool] id=c1a cat|[assistant]' in text


def test_template_arguments_reach_the_template_by_name(model: Model) -> None:
    model = dataclasses.replace(model, chat_template=TOOL_TEMPLATE)
    assert rendered(model, dataclasses.replace(chat(TextPart("hi")), template_arguments={"mode": "fast"})).endswith(
        "mode=fast"
    )


def test_the_last_message_can_be_continued(model: Model) -> None:
    messages = (Message("user", (TextPart("Count"),)), Message("assistant", (TextPart("One, two"),)))
    prompt = ChatPrompt(messages, add_generation_prompt=False, template_arguments={"continue_final_message": True})
    assert rendered(model, prompt).endswith("One, two")


def test_an_argument_that_is_not_the_template_s_own_is_refused(model: Model) -> None:
    prompt = dataclasses.replace(chat(TextPart("hi")), template_arguments={"tokenize": True})
    assert refusal(model, prompt).reason == "CHAT_TEMPLATE_FAILED"


def test_media_of_earlier_turns_keep_their_places(model: Model) -> None:
    messages = (
        Message("system", (TextPart("Be brief."),)),
        Message("user", (MediaPart("i"), TextPart("What?"))),
        Message("assistant", (TextPart("A cat."),)),
        Message("user", (TextPart("And "), MediaPart("v"), TextPart("?"))),
    )
    plan_of = planned(model, ChatPrompt(messages), video(), image())
    assert [item.key for item in plan_of.items] == ["i", "v"]
    assert plan_of.tensors["item_spans"][:, 0].tolist() == [0, 1, 1]
