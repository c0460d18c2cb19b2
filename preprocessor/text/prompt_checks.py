"""What a prompt must be before it is tokenized: of an accepted length, with one place for each medium."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from preprocessor.errors import InvalidRequest, LimitExceeded
from preprocessor.types.request import ChatPrompt, Media, MediaPart, Modality


def check_length(length: int, most: int, unit: str = "characters") -> None:
    """Refuse a prompt that is empty or longer than accepted.

    Args:
        unit: What `length` and `most` count, for the message.
    Raises:
        InvalidRequest: `EMPTY_PROMPT`.
        LimitExceeded: `PROMPT_TOO_LONG`.
    """
    if not length:
        raise InvalidRequest("the prompt is empty", reason="EMPTY_PROMPT")
    if length > most:
        raise LimitExceeded(
            f"the prompt is {length} {unit} long; at most {most} are accepted", reason="PROMPT_TOO_LONG"
        )


def order_chat_media(prompt: ChatPrompt, media: Sequence[Media], max_count: int) -> list[Media]:
    """Media in the order in which the chat's parts refer to them; one may stand in several places.

    Raises:
        InvalidRequest: `UNKNOWN_MEDIA_KEY`, or `PLACEHOLDER_MISMATCH` for a medium that no part refers to.
        LimitExceeded: More places than `max_count`: a medium shown twice costs twice.
    """
    by_key = {medium.key: medium for medium in media}
    parts = itertools.chain.from_iterable(message.parts for message in prompt.messages)
    used = [part.key for part in parts if isinstance(part, MediaPart)]
    if len(used) > max_count:
        raise LimitExceeded(f"the messages show {len(used)} media; at most {max_count} are accepted")
    for key in used:
        if key not in by_key:
            raise InvalidRequest(
                f"a message refers to the media key {key!r}, which is not among the media", reason="UNKNOWN_MEDIA_KEY"
            )
    if unused := by_key.keys() - set(used):
        raise InvalidRequest(
            f"no message refers to the media key {min(unused)!r}; refer to it or leave it out",
            reason="PLACEHOLDER_MISMATCH",
        )
    return [by_key[key] for key in used]


def match_media(found: Sequence[Modality], media: Sequence[Media]) -> None:
    """Check that placeholders and media agree, one for one and in order.

    Raises:
        InvalidRequest: `PLACEHOLDER_MISMATCH`, with both counts.
    """
    if list(found) == [medium.modality for medium in media]:
        return
    counts = ", ".join(
        f"{found.count(modality)} {modality.name.lower()} placeholders for {given} given"
        for modality in Modality
        if (given := sum(medium.modality is modality for medium in media)) or found.count(modality)
    )
    raise InvalidRequest(
        f"the prompt's placeholders do not match its media ({counts}); each medium needs exactly one, in media order",
        reason="PLACEHOLDER_MISMATCH",
    )
