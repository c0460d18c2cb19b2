"""A request's prompt as text, and its media in the order of that text."""

from __future__ import annotations

from preprocessor.config import Limits
from preprocessor.errors import InvalidRequest
from preprocessor.models.family.rules import ModelSettings
from preprocessor.text.chat_template import render_chat, require_template
from preprocessor.text.literal import PromptText, check_marks, mark_literals
from preprocessor.text.prompt_checks import check_length, match_media, order_chat_media
from preprocessor.types.request import ChatPrompt, Media, PreparationRequest, TextPrompt, TokenPrompt


def render_prompt(model: ModelSettings, request: PreparationRequest, limits: Limits) -> tuple[PromptText, list[Media]]:
    """The prompt's text (empty for ready token ids) and the media in the order of their placeholders.

    Raises:
        InvalidRequest: `EMPTY_PROMPT`, `INVALID_TOKEN_ID`, `CHAT_TEMPLATE_FAILED`, `UNKNOWN_MEDIA_KEY`, `PLACEHOLDER_MISMATCH`,
            `LITERAL_TEXT_REFUSED`.
        LimitExceeded: `PROMPT_TOO_LONG`, or too many media.
    """
    prompt, media = request.prompt, list(request.media)
    match prompt:
        case ChatPrompt():
            media = order_chat_media(prompt, media, limits.max_media_count)
            modalities = {medium.key: medium.modality for medium in media}
            require_template(model.name, model.chat_template, model.placeholders.tokens.values())
            marked, literals = mark_literals(prompt)
            as_parts = model.family.text_in_parts
            rendered = render_chat(model.tokenizer, model.chat_template, marked, modalities, as_parts=as_parts)
            text = PromptText(rendered, literals)
            check_marks(text)
            found = model.placeholders.modalities_in_text(text.text)
        case TextPrompt():
            text = PromptText(prompt.text)
            found = model.placeholders.modalities_in_text(text.text)
        case TokenPrompt():
            text = PromptText("")
            vocabulary_size = len(model.tokenizer)
            if bad := [i for i in prompt.token_ids if not 0 <= i < vocabulary_size]:
                raise InvalidRequest(
                    f"token id {bad[0]} is outside the vocabulary of {vocabulary_size}",
                    reason="INVALID_TOKEN_ID",
                    field="token_ids.ids",
                )
            found = model.placeholders.modalities_in_ids(prompt.token_ids)
    if isinstance(prompt, TokenPrompt):
        check_length(len(prompt.token_ids), limits.max_prompt_length, "token ids")
        model.placeholders.check_ids(prompt.token_ids)
    else:
        check_length(len(text), limits.max_prompt_length)
        model.placeholders.check_text(text.text)
    match_media(found, media)
    return text, media
