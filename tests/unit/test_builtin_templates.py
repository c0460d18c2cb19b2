"""Built-in chat templates: the text that the families' published templates give, and what is refused by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from preprocessor.errors import InvalidRequest
from preprocessor.models.family import Model
from preprocessor.text.chat_template import render_chat
from preprocessor.types.request import ChatPrompt, MediaPart, Message, Modality, TextPart

MODALITIES = {"i": Modality.IMAGE, "v": Modality.VIDEO}
IMAGE, VIDEO = (f"<|vision_start|><|{name}_pad|><|vision_end|>" for name in ("image", "video"))
TOOL = {"type": "function", "function": {"name": "zoom", "description": "größer", "parameters": {"top": 10}}}
CALL = {"id": "1", "type": "function", "function": {"name": "zoom", "arguments": {"top": 12, "label": "魚"}}}
OLD_QWENS = ["qwen2-vl", "qwen2.5-vl"]


def said(role: str, *parts: str, **extra: Any) -> Message:
    """A message of texts, and of media by their keys."""
    return Message(role, tuple(MediaPart(part) if part in MODALITIES else TextPart(part) for part in parts), extra)


def rendered(model: Model, *messages: Message, **arguments: Any) -> str:
    prompt = ChatPrompt(messages, add_generation_prompt=False, template_arguments=arguments)
    return render_chat(model.tokenizer, model.chat_template, prompt, MODALITIES)


def refusal(model: Model, messages: tuple[Message, ...], arguments: Mapping[str, Any]) -> str:
    with pytest.raises(InvalidRequest) as refused:
        rendered(model, *messages, **arguments)
    assert refused.value.reason == "CHAT_TEMPLATE_FAILED"
    return refused.value.message


def test_tools_stand_in_the_system_message(model: Model) -> None:
    text = rendered(model, said("system", "Be brief."), said("user", "closer"), tools=[TOOL, TOOL])
    tool = '{"type": "function", "function": {"name": "zoom", "description": "größer", "parameters": {"top": 10}}}'
    assert text == (
        "<|im_start|>system\nBe brief.\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        f"You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n{tool}\n{tool}\n</tools>\n\n"
        "For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:\n"
        '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\ncloser<|im_end|>\n"
    )


def test_tools_without_a_system_message_have_one_of_their_own(model: Model) -> None:
    assert rendered(model, said("user", "x"), tools=[TOOL]).startswith("<|im_start|>system\n# Tools\n\nYou may")


def test_calls_and_their_answers_stand_as_the_model_learnt_them(model: Model) -> None:
    raw = {"function": {"name": "zoom", "arguments": '{"top":1}'}}
    text = rendered(
        model,
        said("user", "closer"),
        said("assistant", "Well.", tool_calls=[CALL, raw]),
        said("tool", "i", "a fish", tool_call_id="1", name="zoom"),
        said("tool", "an ant"),
        said("assistant", tool_calls=[CALL]),
    )
    call = '<tool_call>\n{"name": "zoom", "arguments": {"top": 12, "label": "魚"}}\n</tool_call>'
    assert text == (
        "<|im_start|>user\ncloser<|im_end|>\n"
        f"<|im_start|>assistant\nWell.\n{call}\n"
        '<tool_call>\n{"name": "zoom", "arguments": {"top":1}}\n</tool_call><|im_end|>\n'
        f"<|im_start|>user\n<tool_response>\n{IMAGE}a fish\n</tool_response>\n"
        "<tool_response>\nan ant\n</tool_response><|im_end|>\n"
        f"<|im_start|>assistant\n{call}<|im_end|>\n"
    )


@pytest.mark.parametrize("name", [*OLD_QWENS, "qwen3-vl"])
def test_pictures_and_videos_are_numbered_each_on_their_own(load: Callable[[str], Model], name: str) -> None:
    text = rendered(load(name), said("user", "i", "v", "i"), said("user", "v", "?"), add_vision_id=True)
    numbered = (
        f"<|im_start|>user\nPicture 1: {IMAGE}Video 1: {VIDEO}Picture 2: {IMAGE}<|im_end|>\n"
        f"<|im_start|>user\nVideo 2: {VIDEO}?<|im_end|>\n"
    )
    assert (
        text
        == ("" if name == "qwen3-vl" else "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n") + numbered
    )


@pytest.mark.parametrize("name", OLD_QWENS)
def test_the_older_families_show_pictures_in_every_message(load: Callable[[str], Model], name: str) -> None:
    text = rendered(load(name), said("system", "i"), said("assistant", "v", "x"))
    assert text == f"<|im_start|>system\n{IMAGE}<|im_end|>\n<|im_start|>assistant\n{VIDEO}x<|im_end|>\n"


USER = said("user", "x")
REFUSED: dict[str, tuple[list[str], tuple[Message, ...], dict[str, Any], str]] = {
    "thinking": (["qwen3-vl", *OLD_QWENS], (USER,), {"enable_thinking": True}, "enable_thinking"),
    "no thinking": (["qwen3-vl", *OLD_QWENS], (USER,), {"enable_thinking": False}, "enable_thinking"),
    "documents": (["qwen3-vl", *OLD_QWENS], (USER,), {"documents": [{"title": "a", "text": "b"}]}, "documents"),
    "another role": (["qwen3-vl", *OLD_QWENS], (said("developer", "x"),), {}, "developer"),
    "reasoning": (["qwen3-vl"], (said("assistant", "x", reasoning="hm"),), {}, "reasoning"),
    "an unknown field": (["qwen3-vl", *OLD_QWENS], (said("user", "x", name="Ann"),), {}, "name"),
    "tools": (OLD_QWENS, (USER,), {"tools": [TOOL]}, "tools"),
    "calls": (OLD_QWENS, (said("assistant", "x", tool_calls=[CALL]),), {}, "tool_calls"),
    "a call without arguments": (["qwen3-vl"], (said("assistant", "x", tool_calls=[{"name": "a"}]),), {}, "arguments"),
    "a tool's answer": (OLD_QWENS, (said("tool", "x"),), {}, "tool"),
    "a picture in an answer": (["qwen3-vl"], (said("assistant", "i"),), {}, "image"),
    "a picture in the system message": (["qwen3-vl"], (said("system", "i"),), {}, "image"),
    "a late system message": (["qwen3-vl"], (USER, said("system", "x")), {}, "system"),
    "an argument of transformers' own": (["qwen3-vl"], (USER,), {"truncation": True}, "truncation"),
    "a broken template's error": (["qwen3-vl"], (said("assistant", tool_calls=7),), {}, "int"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_dropped_in_silence_is_refused_by_name(load: Callable[[str], Model], case: str) -> None:
    names, messages, arguments, word = REFUSED[case]
    for name in names:
        assert word in refusal(load(name), messages, arguments)


def test_fields_that_are_null_or_empty_are_absent(model: Model) -> None:
    plain = rendered(model, said("assistant", "x"))
    assert rendered(model, said("assistant", "x", tool_calls=[], refusal=None, reasoning_content="")) == plain
