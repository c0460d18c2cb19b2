"""Prompts from plain Python: messages in the form of OpenAI's chat API with media where they stand, a text, or token ids.

>>> prompt = chat([{"role": "system", "content": "Be brief."}, {"role": "user", "content": [image(photo), "What is this?"]}])
>>> [message.role for message in prompt.spec.chat.messages]
['system', 'user']

What these functions refuse is an `InvalidRequest` with the reason that the service would give.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict, Unpack

from preprocessor.client.media import MediaSet, Medium, by_url
from preprocessor.client.requests import Prompt, json_text
from preprocessor.errors import InvalidRequest
from preprocessor.v1 import preprocessor_pb2 as pb

PixelForm = Literal["uint8", "bf16", "fp16", "fp32", "none"]


class PromptOptions(TypedDict, total=False):
    """What `chat`, `text` and `token_ids` have in common.

    `model` must be the one that is served, where it is given. `pixel_form`: see `PixelForm` in the proto. `cache_salt` keeps the
    cache entries of tenants apart. `with_token_types` adds the tensor `mm_token_type_ids`. `processor_arguments` are those of the
    model's own processor, on the generic path: {"do_pan_and_scan": True}; JSON text is sent as it is.
    """

    model: str
    pixel_form: PixelForm | None
    cache_salt: str
    with_token_types: bool
    processor_arguments: Mapping[str, Any] | str


def tools(*functions: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Functions that a model may call, as the `tools` of `chat`.

    >>> tools({"name": "zoom", "parameters": {"type": "object"}})
    [{'type': 'function', 'function': {'name': 'zoom', 'parameters': {'type': 'object'}}}]

    Args:
        functions: Each with a `name`, mostly with a `description` and JSON-schema `parameters`.
    """
    return [{"type": "function", "function": dict(function)} for function in functions]


def chat(
    messages: Sequence[Mapping[str, Any]] | str,
    *,
    media: Sequence[Medium] = (),
    tools: Sequence[Mapping[str, Any]] | str = (),
    template_arguments: Mapping[str, Any] | str = "",
    add_generation_prompt: bool = True,
    **options: Unpack[PromptOptions],
) -> Prompt:
    """Messages in the form of OpenAI's chat API, rendered by the model's chat template.

    Args:
        messages: Each has a `role`, a `content`, and perhaps further fields, such as `tool_calls`. The content is a text, None,
            or a list of parts: a text, a `Medium`, {"type": "text", "text": …}, {"type": "literal_text", "text": …} (of which no
            piece becomes a special token), {"type": "image_url", "image_url": {"url": …}}, the same with `video_url`, or
            {"type": "media", "key": …}. A URL is the service's to fetch: no file of this machine is read. A text alone is one
            message of the user.
        media: What parts of the type `media` name by key.
        tools, template_arguments: Such as {"add_vision_id": True}. As JSON text, too, which is sent as it is.
        options: `PromptOptions`.
    Raises:
        InvalidRequest: A message or a part has another form, or a number is not finite.
    """
    spec, placed = _spec(options), MediaSet(media)
    spec.chat.omit_generation_prompt = not add_generation_prompt
    spec.chat.tools_json = _json(tools)
    spec.chat.template_arguments_json = _json(template_arguments)
    for message in [{"role": "user", "content": messages}] if isinstance(messages, str) else messages:
        if not isinstance(message.get("role"), str):
            raise InvalidRequest("a message has a role, such as user", reason="INVALID_MESSAGE")
        content = message.get("content")
        parts = [content] if isinstance(content, str) else content or ()
        further = {name: value for name, value in message.items() if name not in ("role", "content")}
        spec.chat.messages.add(
            role=message["role"], parts=[_part(part, placed) for part in parts], extra_json=_json(further)
        )
    return placed.prompt_of(spec)


def text(prompt: str, media: Sequence[Medium] = (), **options: Unpack[PromptOptions]) -> Prompt:
    """A rendered prompt, with one placeholder token (such as `<|image_pad|>`) for each medium, in the order of `media`."""
    spec = _spec(options)
    spec.text = prompt
    return MediaSet(media).prompt_of(spec)


def token_ids(ids: Sequence[int], media: Sequence[Medium] = (), **options: Unpack[PromptOptions]) -> Prompt:
    """Token ids of a rendered prompt, with one placeholder id for each medium, in the order of `media`."""
    spec = _spec(options)
    spec.token_ids.ids.extend(ids)
    return MediaSet(media).prompt_of(spec)


def _part(part: Any, media: MediaSet) -> pb.Part:
    match part:
        case str(text) | {"type": "text", "text": str(text)}:
            return pb.Part(text=text)
        case Medium():
            return pb.Part(media_key=media.add(part))
        case {"type": "literal_text", "text": str(text)}:
            return pb.Part(literal_text=text)
        case {"type": "media", "key": str(key)}:
            return pb.Part(media_key=key)
        case {"type": "image_url", "image_url": {"url": str(url)}}:
            return pb.Part(media_key=media.add(by_url(pb.MODALITY_IMAGE, url)))
        case {"type": "video_url", "video_url": {"url": str(url)}}:
            return pb.Part(media_key=media.add(by_url(pb.MODALITY_VIDEO, url)))
    raise InvalidRequest(
        "a part is a text, a medium, or an object of the type text, literal_text, media, image_url or video_url",
        reason="INVALID_MESSAGE",
    )


def _spec(options: PromptOptions) -> pb.PrepareSpec:
    form = options.get("pixel_form")
    return pb.PrepareSpec(
        model=options.get("model", ""),
        pixel_form=pb.PixelForm.Value(f"PIXEL_FORM_{form.upper()}") if form else pb.PIXEL_FORM_UNSPECIFIED,
        cache_salt=options.get("cache_salt", ""),
        with_token_types=options.get("with_token_types", False),
        processor_arguments_json=_json(options.get("processor_arguments", "")),
    )


def _json(value: Any) -> str:
    """As text; empty where there is nothing."""
    if isinstance(value, str) or not value:
        return value or ""
    return json_text(value)
