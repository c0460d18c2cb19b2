"""What a request must be before any file is looked into, and its prompt as text with the media in its order."""

from __future__ import annotations

from collections.abc import Collection

from preprocessor.config import Limits
from preprocessor.errors import InvalidRequest, LimitExceeded, UnsupportedMedia
from preprocessor.media.sampling import check_sampling
from preprocessor.models.family import Model
from preprocessor.text.literal import PromptText, check_marks, mark_literals
from preprocessor.text.prompt import check_length, match_media, order_chat_media, render_chat, require_template
from preprocessor.types.request import (
    ChatPrompt,
    Media,
    Modality,
    PreparationRequest,
    Sampling,
    TextPrompt,
    TokenPrompt,
)


def check_request(request: PreparationRequest, modalities: Collection[Modality], limits: Limits) -> None:
    """Refuse what needs no look into any file; a service calls this before it takes the upload.

    Args:
        modalities: What the model takes.
    Raises:
        InvalidRequest, UnsupportedMedia, LimitExceeded: As `plan`.
    """
    if len(request.media) > limits.max_media_count:
        raise LimitExceeded(
            f"{len(request.media)} media in one request; at most {limits.max_media_count} are accepted", field="media"
        )
    keys = [medium.key for medium in request.media]
    for place, medium in enumerate(request.media):
        if keys.count(medium.key) > 1:
            raise InvalidRequest(
                f"the media key {medium.key!r} is used twice",
                reason="DUPLICATE_MEDIA_KEY",
                field=f"media[{keys.index(medium.key, place + 1)}].key",
                media_key=medium.key,
            )
        most_bytes = limits.max_media_bytes
        if medium.modality is Modality.IMAGE:
            most_bytes = min(most_bytes, limits.max_image_bytes)
        if len(medium.data) > most_bytes:
            raise LimitExceeded(
                f"{medium.key}: {len(medium.data)} bytes; at most {most_bytes} are accepted",
                reason="MEDIA_TOO_LARGE",
                media_key=medium.key,
            )
        if medium.modality not in modalities:
            taken = ", ".join(modality.name.lower() for modality in sorted(modalities))
            raise UnsupportedMedia(
                f"{medium.key}: this model takes no {medium.modality.name.lower()}; it takes {taken}",
                reason="UNSUPPORTED_MODALITY",
                field="media[].modality",
                media_key=medium.key,
            )
        if medium.modality is not Modality.VIDEO and medium.sampling != Sampling():
            raise InvalidRequest(
                f"{medium.key}: only a video takes sampling",
                reason="INVALID_SAMPLING",
                field="media[].sampling",
                media_key=medium.key,
            )
        if medium.modality is not Modality.IMAGE and medium.background is not None:
            raise InvalidRequest(
                f"{medium.key}: only an image takes a background",
                reason="INVALID_BACKGROUND",
                field="media[].background",
                media_key=medium.key,
            )
        check_sampling(medium.sampling, medium.key)
        _check_pixel_budget(medium)


def render_prompt(model: Model, request: PreparationRequest, limits: Limits) -> tuple[PromptText, list[Media]]:
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
            text = PromptText(render_chat(model.tokenizer, model.chat_template, marked, modalities), literals)
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
    else:
        check_length(len(text), limits.max_prompt_length)
    match_media(found, media)
    return text, media


def _check_pixel_budget(medium: Media) -> None:
    """What the caller gave, held against nothing but itself."""
    least, most = medium.min_pixels, medium.max_pixels
    wrong = field = ""
    for name, value in (("min_pixel_count", least), ("max_pixel_count", most)):
        if value is not None and value <= 0:
            wrong, field = f"{name} is {value}; give a number above 0", f"media[].{name}"
    if not wrong and least is not None and most is not None and least > most:
        wrong, field = f"min_pixel_count {least} is above max_pixel_count {most}", "media[].min_pixel_count"
    if wrong:
        raise InvalidRequest(f"{medium.key}: {wrong}", reason="INVALID_PIXEL_BUDGET", field=field, media_key=medium.key)
