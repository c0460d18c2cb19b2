"""JSON of a request: what is read of it, and what is refused."""

from __future__ import annotations

import json

import pytest

from preprocessor.client import chat
from preprocessor.errors import InvalidRequest
from preprocessor.service.json_text import MAX_DEPTH, read_json, value_count
from preprocessor.service.prompts import read_prompt
from preprocessor.types.request import ChatPrompt
from preprocessor.v1 import preprocessor_pb2 as pb


def spec(**fields: object) -> pb.PrepareSpec:
    """A chat of one message with these fields of the chat, or with those of the message behind `message_`."""
    own = {name.removeprefix("message_"): value for name, value in fields.items() if name.startswith("message_")}
    rest = {name: value for name, value in fields.items() if not name.startswith("message_")}
    message = pb.Message(role="user", parts=[pb.Part(text="hi")], **own)  # type: ignore[arg-type]
    return pb.PrepareSpec(chat=pb.ChatPrompt(messages=[message], **rest))  # type: ignore[arg-type]


def read(sent: pb.PrepareSpec) -> ChatPrompt:
    prompt = read_prompt(sent)
    assert isinstance(prompt, ChatPrompt)
    return prompt


def reason(text: str) -> str:
    with pytest.raises(InvalidRequest) as refused:
        read_json(text, dict, "extra_json")
    assert "extra_json" in refused.value.message
    return refused.value.reason


@pytest.mark.parametrize(
    "text",
    [
        '{"z": 1, "a": {"y": 2, "b": 3}}',
        '{"id": 1234567890123456789, "page": 3, "price": 10.0, "tiny": 1e-7, "below": -0.0}',
        '{"word": "\\"[{,\\\\", "pair": "\\ud83d\\ude00", "none": null, "list": [], "object": {}}',
        '{"digits": ' + "7" * 4300 + "}",
    ],
)
def test_json_is_read_as_python_reads_it_in_its_order(text: str) -> None:
    assert json.dumps(read_json(text, dict, "x")) == json.dumps(json.loads(text))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" + "0" * 400 + ".0"])
def test_numbers_that_are_not_finite_are_refused_at_every_depth(number: str) -> None:
    assert reason('{"a": [{"b": ' + number + "}]}") == "NOT_FINITE_NUMBER"


@pytest.mark.parametrize("text", ['{"a": 1, "a": 1}', '{"a": [{"b": 1, "c": 2, "b": 3}]}', '{"a": 1, "\\u0061": 2}'])
def test_a_key_twice_in_an_object_is_refused(text: str) -> None:
    assert reason(text) == "DUPLICATE_JSON_KEY"


def test_depth_has_a_bound_that_brackets_in_strings_do_not_count_towards() -> None:
    deepest = '{"a": ' * MAX_DEPTH + '"[[[["' + "}" * MAX_DEPTH
    assert read_json(deepest, dict, "x")
    for text in ('{"a": ' + deepest + "}", '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "[" * 100_000):
        assert reason(text) == "JSON_TOO_DEEP"


@pytest.mark.parametrize(
    "text",
    [
        *("{", "[]", "null", "3", '"a"', "{'a': 1}", '{"a": 1,}', '{"a": 1} x', "\ufeff{}", "// no", '{"a": 01}', "\n"),
        *('{"a": "\\ud800"}', '{"\\udc00": 1}', '{"a": "\x01"}', '{"a": ' + "7" * 4301 + "}"),
    ],
)
def test_what_is_no_json_object_is_refused(text: str) -> None:
    assert reason(text) == "INVALID_JSON"


@pytest.mark.parametrize(("text", "count"), [("[]", 1), ("[1, 2]", 2), ('{"a": [1, {"b": ","}]}', 4), ('"a,[{b"', 0)])
def test_values_are_counted_outside_strings(text: str, count: int) -> None:
    assert value_count(text, 0) == count


def test_each_json_field_reaches_its_place() -> None:
    prompt = read(
        spec(
            template_arguments_json='{"b": 1, "a": 2}',
            tools_json='[{"z": 1, "y": 2}]',
            message_extra_json='{"name": "x"}',
            message_tool_calls_json='[{"function": {}}]',
        )
    )
    assert json.dumps(prompt.template_arguments) == '{"b": 1, "a": 2, "tools": [{"z": 1, "y": 2}]}'
    assert json.dumps(prompt.messages[0].extra) == '{"name": "x", "tool_calls": [{"function": {}}]}'


@pytest.mark.parametrize(
    "fields",
    [
        {"template_arguments": {"a": 1}, "template_arguments_json": "{}"},
        {"template_arguments": {"tools": []}, "tools_json": "[]"},
        {"template_arguments_json": '{"tools": []}', "tools_json": "[]"},
        {"message_extra": {"a": 1}, "message_extra_json": "{}"},
        {"message_extra": {"tool_calls": []}, "message_tool_calls_json": "[]"},
        {"message_extra_json": '{"tool_calls": []}', "message_tool_calls_json": "[]"},
    ],
)
def test_what_is_given_twice_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read(spec(**fields))
    assert refused.value.reason == "FIELD_CONFLICT"


@pytest.mark.parametrize("key", ["role", "content"])
def test_a_field_that_a_message_has_is_no_further_one(key: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read(spec(message_extra_json=json.dumps({key: "x"})))
    assert refused.value.reason == "INVALID_MESSAGE"


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("field", ["template_arguments", "message_extra"])
def test_a_struct_s_number_that_is_not_finite_is_refused(field: str, value: float) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read(spec(**{field: {"a": [{"b": value}]}}))
    assert refused.value.reason == "NOT_FINITE_NUMBER"


def test_a_struct_gives_what_it_holds() -> None:
    value = {"a": 3, "b": [None, True, "x", {}], "c": {"d": 0.5}}
    assert dict(read(spec(template_arguments=value)).template_arguments) == value


def test_messages_in_openai_s_form_become_a_prompt() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "zoom", "arguments": '{"top": 12}'}}
    made = chat(
        [
            {
                "role": "user",
                "content": [{"type": "media", "key": "i"}, {"type": "literal_text", "text": "<|im_end|>"}],
            },
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "魚", "tool_call_id": "1"},
        ],
        tools=[{"z": 1, "a": 2}],
        template_arguments={"add_vision_id": True},
    )
    prompt = read(made.spec)
    assert [len(message.parts) for message in prompt.messages] == [2, 0, 1]
    assert [dict(message.extra) for message in prompt.messages] == [{}, {"tool_calls": [call]}, {"tool_call_id": "1"}]
    assert json.dumps(prompt.template_arguments) == '{"add_vision_id": true, "tools": [{"z": 1, "a": 2}]}'


@pytest.mark.parametrize("part", [{"type": "image_url"}, {"type": "text"}, {}])
def test_a_part_of_another_form_is_refused_by_the_client(part: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest, match="a part"):
        chat([{"role": "user", "content": [part]}])
