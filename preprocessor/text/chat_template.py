"""Chat messages → text, by the model's own template, which writes one placeholder for each medium."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jinja2
from transformers.tokenization_utils_tokenizers import TokenizersBackend
from transformers.utils.chat_template_utils import _compile_jinja_template

from preprocessor.errors import InvalidRequest, ModelNotFound
from preprocessor.types.request import ChatPrompt, MediaPart, Message, Modality, TextPart

# Arguments of transformers' own method, which never reach a template: as template arguments they would have no effect.
# transformers 5.23, PreTrainedTokenizerBase.apply_chat_template.
_NOT_THE_TEMPLATES = frozenset(
    {
        "conversation",
        "chat_template",
        "add_generation_prompt",
        "tokenize",
        "sanitize_control_tokens",
        "padding",
        "truncation",
        "max_length",
        "return_tensors",
        "return_dict",
        "return_assistant_tokens_mask",
        "tokenizer_kwargs",
    }
)

# What a template raises itself, and what its expressions raise on values of unexpected types.
_TEMPLATE_FAULTS = (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


def render_chat(
    tokenizer: TokenizersBackend,
    template: str,
    prompt: ChatPrompt,
    modalities: dict[str, Modality],
    *,
    as_parts: bool = False,
) -> str:
    """The template's text for these messages, with one placeholder for each medium.

    Args:
        modalities: Media key → modality.
        as_parts: Whether text alone goes to the template as a list of parts too; a string else, as most expect.
    Raises:
        InvalidRequest: `CHAT_TEMPLATE_FAILED` where the template refuses the messages.
    """
    if meant_for_python := prompt.template_arguments.keys() & _NOT_THE_TEMPLATES:
        raise InvalidRequest(
            f"template_arguments holds {min(meant_for_python)!r}, which is no argument of a template",
            reason="CHAT_TEMPLATE_FAILED",
        )
    conversation = [_template_message(message, modalities, as_parts) for message in prompt.messages]
    try:
        text: str = tokenizer.apply_chat_template(
            conversation,
            chat_template=template,
            tokenize=False,
            add_generation_prompt=prompt.add_generation_prompt,
            **prompt.template_arguments,
        )
    except _TEMPLATE_FAULTS as error:
        raise InvalidRequest(
            f"the model's chat template does not accept these messages: {error}", reason="CHAT_TEMPLATE_FAILED"
        ) from error
    return text


def check_template(template: str, source: str) -> None:
    """Refuse a template that is not valid Jinja when its model is loaded, not at each prompt.

    Raises:
        ModelNotFound: `BAD_MODEL_DIRECTORY`.
    """
    try:
        _compile_jinja_template(template)  # transformers' own, which caches it for the first prompt
    except jinja2.TemplateSyntaxError as error:
        raise ModelNotFound(
            f"{source}: its chat template is no Jinja template (line {error.lineno}: {error.message}); correct it",
            reason="BAD_MODEL_DIRECTORY",
        ) from error


def require_template(model: str, template: str, placeholders: Iterable[str]) -> None:
    """Refuse messages for a model without a chat template.

    Raises:
        InvalidRequest: `CHAT_TEMPLATE_FAILED`.
    """
    if not template:
        raise InvalidRequest(
            f"{model} has no chat template: send a rendered prompt with its placeholders "
            f"({', '.join(placeholders) or 'as its documentation gives them'})",
            reason="CHAT_TEMPLATE_FAILED",
        )


def _template_message(message: Message, modalities: dict[str, Modality], as_parts: bool) -> dict[str, Any]:
    """One message in the form that Hugging Face templates read: a string, or a list of typed parts."""
    content: str | list[dict[str, str]]
    if not as_parts and all(isinstance(part, TextPart) for part in message.parts):
        content = "".join(part.text for part in message.parts if isinstance(part, TextPart))
    else:
        content = [_template_part(part, modalities) for part in message.parts]
    return {**message.extra, "role": message.role, "content": content}


def _template_part(part: TextPart | MediaPart, modalities: dict[str, Modality]) -> dict[str, str]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    return {"type": modalities[part.key].name.lower()}
