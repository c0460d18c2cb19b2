"""Text or token ids with one placeholder for each medium → token ids with every placeholder expanded.

Expanding a placeholder means writing what the model family wants in its place (timestamps, say) and repeating the placeholder
once for each visual token. The text is tokenized with single placeholders and repeated as ids: the same ids, since special
tokens never merge with their neighbours, without tokenizing thousands of copies.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from preprocessor.config import Limits
from preprocessor.errors import InvalidRequest
from preprocessor.text.encoded_text import TextMemory
from preprocessor.text.encoding import encode_prompt
from preprocessor.text.literal import PromptText
from preprocessor.text.tokenizer import encode_inner
from preprocessor.types.plan import ExpandedPrompt
from preprocessor.types.request import Modality


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
