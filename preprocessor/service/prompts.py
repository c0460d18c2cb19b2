"""The prompt of a spec → the types of the pipeline."""

from __future__ import annotations

from typing import Any

from google.protobuf import struct_pb2

from preprocessor.errors import InvalidRequest
from preprocessor.service.json_text import read_json, read_struct
from preprocessor.types.request import ChatPrompt, MediaPart, Message, TextPart, TextPrompt, TokenPrompt
from preprocessor.v1 import preprocessor_pb2 as pb


def read_prompt(spec: pb.PrepareSpec) -> ChatPrompt | TextPrompt | TokenPrompt:
    """Raises: InvalidRequest: `EMPTY_PROMPT`, `INVALID_MESSAGE`, `FIELD_CONFLICT`, or as `read_json`."""
    match spec.WhichOneof("prompt"):
        case "chat":
            if not spec.chat.messages:
                raise InvalidRequest(
                    "chat.messages is empty; give at least one message", reason="EMPTY_PROMPT", field="chat.messages"
                )
            return ChatPrompt(
                messages=tuple(_read_message(one, f"chat.messages[{i}]") for i, one in enumerate(spec.chat.messages)),
                add_generation_prompt=not spec.chat.omit_generation_prompt,
                template_arguments=_read_arguments(spec.chat),
            )
        case "text":
            return TextPrompt(spec.text)
        case "token_ids":
            return TokenPrompt(tuple(spec.token_ids.ids))
    raise InvalidRequest("the spec has no prompt; give one of chat, text or token_ids", reason="EMPTY_PROMPT")


def json_texts(chat: pb.ChatPrompt) -> list[str]:
    """Every JSON text of a chat."""
    texts = [chat.template_arguments_json, chat.tools_json]
    for message in chat.messages:
        texts += message.extra_json, message.tool_calls_json
    return texts


def _read_arguments(chat: pb.ChatPrompt) -> dict[str, Any]:
    arguments = _read_fields(chat.template_arguments, chat.template_arguments_json, "chat.template_arguments")
    return _with_list(arguments, "tools", chat.tools_json, "chat.tools_json", "chat.template_arguments")


def _read_message(message: pb.Message, path: str) -> Message:
    extra = _read_fields(message.extra, message.extra_json, f"{path}.extra")
    extra = _with_list(extra, "tool_calls", message.tool_calls_json, f"{path}.tool_calls_json", f"{path}.extra")
    if not message.role or not (message.parts or extra):
        missing = "parts" if message.role else "role"
        raise InvalidRequest(
            f"{path}: a message needs a role and at least one part", reason="INVALID_MESSAGE", field=f"{path}.{missing}"
        )
    if reserved := extra.keys() & {"role", "content"}:
        raise InvalidRequest(
            f"{path}.extra holds {min(reserved)!r}, which has a field of its own",
            reason="INVALID_MESSAGE",
            field=f"{path}.extra_json" if message.extra_json else f"{path}.extra",
        )
    parts = tuple(_read_part(part, f"{path}.parts[{i}]") for i, part in enumerate(message.parts))
    return Message(message.role, parts, extra)


def _read_fields(struct: struct_pb2.Struct, text: str, name: str) -> dict[str, Any]:
    """The fields of a Struct, or of the JSON text that is given instead."""
    if struct.fields and text:
        raise InvalidRequest(
            f"{name} and {name}_json are given together; choose one", reason="FIELD_CONFLICT", field=f"{name}_json"
        )
    return read_json(text, dict, f"{name}_json") if text else read_struct(struct, name)


def _with_list(fields: dict[str, Any], key: str, text: str, name: str, holder: str) -> dict[str, Any]:
    """The fields, with the list `key` added from its own JSON text."""
    if not text:
        return fields
    if key in fields:
        raise InvalidRequest(
            f"{name} is given, and {holder} holds {key!r} too; choose one", reason="FIELD_CONFLICT", field=name
        )
    return {**fields, key: read_json(text, list, name)}


def _read_part(part: pb.Part, path: str) -> TextPart | MediaPart:
    match part.WhichOneof("content"):
        case "text":
            return TextPart(part.text)
        case "literal_text":
            return TextPart(part.literal_text, is_literal=True)
        case "media_key":
            return MediaPart(part.media_key)
    raise InvalidRequest(f"{path} is empty; give text, literal_text or media_key", reason="INVALID_MESSAGE", field=path)
