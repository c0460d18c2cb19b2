"""The JSON of a chat completion → `GenerateSpec`. Pure; what it makes is checked like any caller's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from preprocessor.errors import InvalidRequest
from preprocessor.service.openai.body import Body
from preprocessor.service.openai.fields import Fields
from preprocessor.service.openai.media import MEDIA_TYPES, MediaReader
from preprocessor.service.openai.parameters import constrain, read_parameters
from preprocessor.v1 import preprocessor_pb2 as pb

# Fields of OpenAI's that keep books, or tune how a request is served and not what is answered.
_WITHOUT_EFFECT = (
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "parallel_tool_calls",
)


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """What an answer looks like.

    Attributes:
        is_stream: Whether it is sent as it comes.
        with_usage: Whether a stream ends with the counts of tokens.
        reads_tool_calls: Whether an answer's `<tool_call>` is taken out of its text.
        called_function: The function that the whole answer has the arguments of; empty if none was chosen.
    """

    is_stream: bool = False
    with_usage: bool = False
    reads_tool_calls: bool = False
    called_function: str = ""


def read_chat(body: Body) -> tuple[pb.GenerateSpec, Mapping[str, memoryview], AnswerForm]:
    """A request's body as its spec, the files of the spec's chunked media by their keys, and the form of the answer.

    Raises:
        InvalidRequest: `INVALID_MESSAGE`, `INVALID_GENERATION_PARAMETERS`, `UNSUPPORTED_PARAMETER`; the error names the field.
    """
    fields = Fields(body.value)
    spec = pb.GenerateSpec(parameters=read_parameters(fields))
    prompt = spec.prompt
    prompt.model = fields.take("model", str) or ""
    prompt.cache_salt = fields.take("cache_salt", str) or ""
    media = MediaReader(fields, body.files)
    for place, message in enumerate(fields.take("messages", list) or ()):
        prompt.chat.messages.append(_read_message(Fields(message, f"messages[{place}]", "INVALID_MESSAGE"), media))
    if len(media.received) != len(body.files):
        raise InvalidRequest(
            "a file in base64 stands where no medium is; send it as image_url, video_url or input_audio",
            reason="INVALID_MESSAGE",
            field="messages",
        )
    prompt.media.extend(media.media)
    prompt.chat.omit_generation_prompt = fields.take("add_generation_prompt", bool) is False
    if arguments := fields.take("chat_template_kwargs", dict):
        prompt.chat.template_arguments_json = _json(arguments)
    reads_tool_calls, called_function = _read_tools(fields, spec)
    is_stream, options = bool(fields.take("stream", bool)), fields.take_object("stream_options")
    with_usage = False
    if options is not None:
        with_usage = bool(options.take("include_usage", bool))
        options.ignore("include_obfuscation")
        options.end()
    fields.ignore(*_WITHOUT_EFFECT)
    fields.end()
    return spec, media.received, AnswerForm(is_stream, with_usage, reads_tool_calls, called_function)


def _read_message(fields: Fields, media: MediaReader) -> pb.Message:
    role = fields.take("role", str)
    # The role of OpenAI's newer models for what templates call system.
    message = pb.Message(role="system" if role == "developer" else role or "")
    content = fields.take_any("content")
    if isinstance(content, str):
        message.parts.add(text=content)
    elif isinstance(content, list):
        for place, part in enumerate(content):
            path = f"{fields.path}.content[{place}]"
            if isinstance(part, str):
                message.parts.add(text=part)
            else:
                message.parts.append(_read_part(Fields(part, path, "INVALID_MESSAGE"), media))
    elif content is not None:
        raise fields.error("content", "must be a text or an array of parts")
    if calls := fields.take("tool_calls", list):
        message.tool_calls_json = _json([_with_object(call) for call in calls])
    if role != "tool":
        fields.ignore("name", "refusal", "annotations", "audio")  # a client sends an answer back as it got it
    if further := fields.rest():
        message.extra_json = _json(further)
    return message


def _read_part(part: Fields, media: MediaReader) -> pb.Part:
    kind = part.take("type", str)
    if kind in MEDIA_TYPES:
        return media.add(part, kind)
    if kind not in ("text", "refusal"):
        raise part.error("type", f"must be text, {', '.join(sorted(MEDIA_TYPES))}")
    text = part.take(kind, str)
    if text is None:
        raise part.error(kind, "is missing")
    part.end()
    return pb.Part(text=text)


def _with_object(call: Any) -> Any:
    """A tool call whose arguments are an object, as templates expect them, and not its JSON text; as in vLLM."""
    match call:
        case {"function": {"arguments": str(arguments)} as function}:
            try:
                return {**call, "function": {**function, "arguments": json.loads(arguments or "{}")}}
            except (ValueError, RecursionError):
                return call
    return call


def _read_tools(fields: Fields, spec: pb.GenerateSpec) -> tuple[bool, str]:
    """Take `tools` and `tool_choice`; returns `reads_tool_calls` and `called_function`."""
    tools, choice = fields.take("tools", list), fields.take_any("tool_choice")
    functions = {
        tool["function"]["name"]: tool["function"]
        for tool in tools or ()
        if isinstance(tool, dict) and isinstance(tool.get("function"), dict) and "name" in tool["function"]
    }
    if len(functions) != len(tools or ()):
        raise fields.error("tools", "must be functions with distinct names")
    if tools and choice != "none":
        spec.prompt.chat.tools_json = _json(tools)
    if choice == "required" and len(functions) == 1:
        choice = {"type": "function", "function": {"name": next(iter(functions))}}
    match choice:
        case None | "auto":
            return bool(tools), ""
        case "none":
            return False, ""
        case {"type": "function", "function": {"name": str(name)}} if name in functions:
            schema = functions[name].get("parameters") or {"type": "object"}
            constrain(fields, spec.parameters, "json_schema", _json(schema))
            return False, name
    raise fields.error(
        "tool_choice", "must be none, auto or one of the tools' functions; required if there is one function alone"
    )


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
