"""A request's prompt as the text that a generic model's processor reads, and its media in the order of that text."""

from __future__ import annotations

import re

from preprocessor.config import Limits
from preprocessor.errors import InvalidRequest
from preprocessor.models.generic.mistral_chat import check_chat
from preprocessor.models.generic.mistral_tokenizer import writes_prompts
from preprocessor.models.generic.processor import ProcessorSettings
from preprocessor.text.chat_template import render_chat, require_template
from preprocessor.text.encoding import check_memory, literal_refused, spells_added_token
from preprocessor.text.literal import PromptText, check_marks, mark_literals
from preprocessor.text.placeholders import Placeholders
from preprocessor.text.prompt_checks import check_length, match_media, order_chat_media
from preprocessor.types.request import ChatPrompt, Media, Modality, PreparationRequest, TextPrompt, TokenPrompt

# `{% for part in message['content'] %}`, whatever the names; not a condition behind the loop's `if`.
_LOOP_OVER_CONTENT = re.compile(r"\{%[-+]?\s*for\s+\w+\s+in\s+(?:(?!\bif\b|%\}).)*\bcontent\b")


def render(model: ProcessorSettings, request: PreparationRequest, limits: Limits) -> tuple[str | None, list[Media]]:
    """The prompt's text, one placeholder a medium, and the media in its order; no text where mistral-common writes prompts.

    Raises:
        InvalidRequest: `CHAT_TEMPLATE_FAILED`, `EMPTY_PROMPT`, `UNKNOWN_MEDIA_KEY`, `PLACEHOLDER_MISMATCH`, as `check_chat`, or
            `TOKENS_NOT_ACCEPTED` for a prompt of token ids: a processor expands text, and ids do not always go back to the
            text they came from;
            `LITERAL_TEXT_REFUSED` for a literal part that spells a token: to the processor it would be one.
        LimitExceeded: `PROMPT_TOO_LONG`, `TOKENIZING_MEMORY_EXCEEDED`, or more media shown than accepted.
    """
    if writes_prompts(model.processor.tokenizer):
        return None, check_chat(model.tokenizer, model.name, request, limits)
    media = list(request.media)
    match request.prompt:
        case ChatPrompt() as prompt:
            media = order_chat_media(prompt, media, limits.max_media_count)
            marked, literals = mark_literals(prompt)
            modalities = {medium.key: medium.modality for medium in media}
            text = PromptText(_render_chat(model, marked, modalities), literals)
            check_marks(text)
        case TextPrompt():
            text = PromptText(request.prompt.text)
        case TokenPrompt():
            raise InvalidRequest(
                f"{model.name} runs through its own processor, which takes text: send messages or a rendered prompt",
                reason="TOKENS_NOT_ACCEPTED",
            )
    check_length(len(text), limits.max_prompt_length)
    if model.placeholders:
        known = [medium for medium in media if medium.modality in model.placeholders]
        tokens = Placeholders(tokens=dict(model.placeholders), ids={})
        match_media(tokens.modalities_in_text(text.text), known)
    if inner := sorted(token for token in model.inner_tokens if token in text.text):
        raise InvalidRequest(
            f"the prompt holds {inner[0]}, which only the model's processor may write; a medium's place is "
            f"{' or '.join(model.placeholders.values())}",
            reason="PLACEHOLDER_MISMATCH",
        )
    pieces = text.pieces()
    if spells_added_token(model.tokenizer, pieces, {*model.placeholders.values(), *model.inner_tokens}):
        raise literal_refused("its own processor, which encodes this model's prompts, would take it for that")
    whole = "".join(piece for piece, _ in pieces)
    check_memory(model.tokenizer, whole, limits, is_cut=False)
    return whole, media


def needs_parts(template: str) -> bool:
    """Whether a template goes through a message's content part by part, so that a bare string would vanish in it.

    Templates of LLaVA, Idefics3 and Pixtral do. Most others accept both forms and render the same text.
    """
    return _LOOP_OVER_CONTENT.search(template) is not None


def _render_chat(model: ProcessorSettings, prompt: ChatPrompt, modalities: dict[str, Modality]) -> str:
    as_parts = needs_parts(model.chat_template)
    require_template(model.name, model.chat_template, model.placeholders.values())
    return render_chat(model.tokenizer, model.chat_template, prompt, modalities, as_parts=as_parts)
