"""Chat messages → text → token ids with every medium's placeholder expanded.

A template writes one placeholder token for each medium. Expanding it means writing what the model family wants there
(timestamps, say) and repeating the placeholder once for each visual token. The text is tokenized with single placeholders
and repeated as ids: the same ids, since special tokens never merge with their neighbours, without tokenizing thousands of
copies.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt
from transformers.tokenization_utils_tokenizers import TokenizersBackend
from transformers.utils.chat_template_utils import _compile_jinja_template

from preprocessor.config import Limits
from preprocessor.errors import InvalidRequest, LimitExceeded, ModelNotFound
from preprocessor.text.encoded_text import TextMemory
from preprocessor.text.encoding import encode_prompt
from preprocessor.text.literal import PromptText
from preprocessor.text.tokenizer import encode_inner
from preprocessor.types.plan import ExpandedPrompt
from preprocessor.types.request import ChatPrompt, Media, MediaPart, Message, Modality, TextPart

# Arguments of transformers' own method, which never reach a template: as template arguments they would have no effect.
# transformers 5.23, PreTrainedTokenizerBase.apply_chat_template.
_NOT_THE_TEMPLATES = frozenset(
    {
        *("conversation", "chat_template", "add_generation_prompt", "tokenize", "sanitize_control_tokens", "padding"),
        *(
            "truncation",
            "max_length",
            "return_tensors",
            "return_dict",
            "return_assistant_tokens_mask",
            "tokenizer_kwargs",
        ),
    }
)

# What a template raises itself, and what its expressions raise on values of unexpected types.
_TEMPLATE_FAULTS = (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


@dataclass(frozen=True, slots=True)
class Placeholders:
    """The token that stands for a medium in a prompt, by modality, as text and as id.

    Attributes:
        repeated: Token → id, of what a family writes in the place of a medium, where it is not the medium's own token.
    """

    tokens: dict[Modality, str]
    ids: dict[Modality, int]
    repeated: Mapping[str, int] = field(default_factory=dict)

    @property
    def repeated_ids(self) -> list[int]:
        """Ids that occur once for each visual token."""
        return list(self.repeated.values() or self.ids.values())

    def check_text(self, text: str) -> None:
        """Refuse a prompt that holds a token that only an expansion may write.

        Raises:
            InvalidRequest: `PLACEHOLDER_MISMATCH`.
        """
        self._refuse([token for token in self.repeated if token in text])

    def check_ids(self, token_ids: Sequence[int]) -> None:
        """The same for token ids."""
        self._refuse([token for token, token_id in self.repeated.items() if token_id in token_ids])

    def _refuse(self, found: list[str]) -> None:
        if inner := [token for token in found if token not in self.tokens.values()]:
            raise InvalidRequest(
                f"the prompt holds {inner[0]}, which only the service may write; a medium's place is "
                f"{' or '.join(self.tokens.values())}",
                reason="PLACEHOLDER_MISMATCH",
            )

    def modalities_in_text(self, text: str) -> list[Modality]:
        """Modality of every placeholder, in order."""
        by_token = {token: modality for modality, token in self.tokens.items()}
        return [by_token[found] for found in self._pattern().findall(text)]

    def modalities_in_ids(self, token_ids: Sequence[int]) -> list[Modality]:
        by_id = {token_id: modality for modality, token_id in self.ids.items()}
        return [by_id[token_id] for token_id in token_ids if token_id in by_id]

    def substitute(self, text: str, replacements: Sequence[Replacement]) -> str:
        """The text with its placeholders replaced, in order; there are as many as replacements."""
        pieces: list[str] = []
        position = 0
        for found, replacement in zip(self._pattern().finditer(text), replacements, strict=True):
            start, stop = found.span()
            before, after = replacement.surrounding
            if text.endswith(before, position, start) and text.startswith(after, stop):
                start, stop = start - len(before), stop + len(after)
            pieces += (text[position:start], replacement.text)
            position = stop
        return "".join((*pieces, text[position:]))

    def _pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self.tokens.values())))


@dataclass(frozen=True, slots=True)
class Replacement:
    """What stands for one medium.

    Attributes:
        text: With a single placeholder for each span.
        span_lengths: Each span's token count.
        surrounding: What goes with the medium's own placeholder where it stands directly before and after it.
    """

    text: str
    span_lengths: tuple[int, ...]
    surrounding: tuple[str, str] = ("", "")


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


def expand_text(
    tokenizer: TokenizersBackend,
    placeholders: Placeholders,
    text: str,
    replacements: Sequence[Replacement],
    literals: Mapping[str, str] | None = None,
    limits: Limits | None = None,
    memory: TextMemory | None = None,
) -> ExpandedPrompt:
    """Tokenize a rendered prompt, each medium's placeholder expanded.

    Args:
        literals: Of the marks in the text, what each stands for.
        memory: As in `encode_prompt`.
    Raises:
        As `encode_prompt`.
    """
    compact = placeholders.substitute(text, replacements)
    token_ids = encode_prompt(tokenizer, PromptText(compact, literals or {}).pieces(), limits or Limits(), memory)
    return _repeat_placeholders(token_ids, placeholders, replacements)


def expand_token_ids(
    tokenizer: TokenizersBackend,
    placeholders: Placeholders,
    token_ids: Sequence[int],
    replacements: Sequence[Replacement],
) -> ExpandedPrompt:
    """The same for ids that carry one placeholder id a medium."""
    pad_ids = frozenset(placeholders.ids.values())
    remaining = iter(replacements)
    compact: list[int] = []
    position = 0
    for index, token_id in enumerate(token_ids):
        if token_id not in pad_ids:
            continue
        replacement = next(remaining)
        start, stop = index, index + 1
        before, after = (encode_inner(tokenizer, text) for text in replacement.surrounding)
        if (
            start - len(before) >= position
            and list(token_ids[start - len(before) : start]) == before
            and list(token_ids[stop : stop + len(after)]) == after
        ):
            start, stop = start - len(before), stop + len(after)
        compact += (*token_ids[position:start], *encode_inner(tokenizer, replacement.text))
        position = stop
    compact += token_ids[position:]
    return _repeat_placeholders(compact, placeholders, replacements)


def token_types(prompt: ExpandedPrompt, modalities: Sequence[Modality]) -> npt.NDArray[np.int32]:
    """Each token's modality number, 0 for text: int32 [L], as transformers' processors return `mm_token_type_ids`.

    Args:
        modalities: Of the items that the prompt's spans name.
    """
    types = np.zeros(len(prompt.token_ids), np.int32)
    for index, offset, length in prompt.spans.tolist():
        types[offset : offset + length] = modalities[index]
    return types


def image_token_types(prompt: ExpandedPrompt, token_ids: Sequence[int]) -> npt.NDArray[np.int32]:
    """The same for processors that count these tokens as an image's wherever they stand: int32 [L]."""
    return np.isin(prompt.token_ids, token_ids).astype(np.int32) * np.int32(Modality.IMAGE)


def _repeat_placeholders(
    compact: Sequence[int] | npt.NDArray[np.int32], placeholders: Placeholders, replacements: Sequence[Replacement]
) -> ExpandedPrompt:
    """Repeat each single placeholder id to its span's length, and say where the spans came to lie."""
    ids = np.asarray(compact, dtype=np.int32)
    lengths = np.asarray([n for replacement in replacements for n in replacement.span_lengths], dtype=np.int64)
    owners = np.repeat(np.arange(len(replacements)), [len(replacement.span_lengths) for replacement in replacements])
    pads = np.flatnonzero(np.isin(ids, placeholders.repeated_ids))
    if len(pads) != len(lengths):
        raise AssertionError(f"{len(pads)} placeholders after expansion for {len(lengths)} spans")
    repeats = np.ones(len(ids), dtype=np.int64)
    repeats[pads] = lengths
    starts = np.cumsum(repeats) - repeats
    spans = np.stack([owners, starts[pads], lengths], axis=1).astype(np.int32).reshape(-1, 3)
    return ExpandedPrompt(token_ids=np.repeat(ids, repeats), spans=spans)


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
