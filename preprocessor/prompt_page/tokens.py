"""Token ids → the token map: text and special tokens one by one, what stands for media as one piece a span."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from preprocessor.prompt_page.page import Token

if TYPE_CHECKING:
    from transformers.tokenization_utils_tokenizers import TokenizersBackend

MOST_TOKENS = 12_000
"""Pieces of the map in a page; the middle of a longer one is left out."""

Span = tuple[int, int, int]
"""Item index, offset, length."""

_TIMESTAMP = re.compile(r"<\d+\.\d seconds>\Z")
_LONGEST_RUN = 8  # equal ids in a row that are still shown one by one


@dataclass(frozen=True, slots=True)
class TokenTexts:
    """What the ids of a prompt mean.

    Attributes:
        texts: By id; U+FFFD where an id is a part of a character.
        special: Ids of special and other added tokens.
    """

    texts: dict[int, str] = field(default_factory=dict)
    special: frozenset[int] = frozenset()


def token_texts(tokenizer: TokenizersBackend, token_ids: Iterable[int]) -> TokenTexts:
    """The texts of these ids."""
    texts = {}
    added = frozenset(tokenizer.added_tokens_decoder)
    for token_id in set(token_ids):
        # A model may have ids that its tokenizer lacks, such as padding; a file may have any.
        piece = tokenizer.convert_ids_to_tokens(token_id) if 0 <= token_id < 1 << 31 else None
        if piece is None:
            continue
        # "▁" is SentencePiece's space, which decoding a single token drops.
        texts[token_id] = piece.replace("▁", " ") if "▁" in piece else tokenizer.decode([token_id])
    return TokenTexts(texts, added)


def valid_spans(spans: npt.NDArray[np.integer[Any]], token_count: int, item_count: int) -> list[Span]:
    """Of spans [S, 3] those that lie in the prompt one behind another, as all do of an answer; a file may have others."""
    valid, stop = [], 0
    for item, offset, length in spans.tolist():
        if stop <= offset and 0 < length <= token_count - offset and 0 <= item < item_count:
            valid.append((item, offset, length))
            stop = offset + length
    return valid


def token_map(
    token_ids: npt.NDArray[np.integer[Any]],
    spans: Sequence[Span] | None,
    keys: Sequence[str],
    texts: TokenTexts,
) -> list[Token]:
    """The map of a whole prompt.

    Args:
        token_ids: [L].
        spans: As `valid_spans` gives them; None where they are not known: long runs of one id are then shown as one.
        keys: Of the items.
    """
    pieces: list[Token] = []
    ids = token_ids.tolist()
    position = 0
    for item, offset, length in _runs(token_ids) if spans is None else spans:
        pieces += _texts(ids, position, offset, texts)
        token_id = ids[offset]
        name = texts.texts.get(token_id, str(token_id))
        what = f"{keys[item]}: " if item is not None else ""
        label = f"{what}positions {offset} to {offset + length - 1} · {length} tokens · id {token_id} · {name}"
        pieces.append(Token("media", offset, length, token_id, name, item, label))
        position = offset + length
    pieces += _texts(ids, position, len(ids), texts)
    return _shortened(_with_timestamps(pieces))


def _runs(token_ids: npt.NDArray[np.integer[Any]]) -> Iterable[tuple[None, int, int]]:
    """Long runs of one id."""
    bounds = np.flatnonzero(np.diff(token_ids)) + 1
    starts = [0, *bounds.tolist()]
    for start, stop in zip(starts, [*bounds.tolist(), len(token_ids)], strict=True):
        if stop - start > _LONGEST_RUN:
            yield None, start, stop - start


def _texts(ids: Sequence[int], start: int, stop: int, texts: TokenTexts) -> list[Token]:
    tokens = []
    for position in range(start, stop):
        token_id = ids[position]
        text = texts.texts.get(token_id)
        label = f"position {position} · id {token_id}" + ("" if text is None else f" · {text!r}")
        kind = "special" if token_id in texts.special else "text"
        tokens.append(Token(kind, position, 1, token_id, str(token_id) if text is None else text, None, label))
    return tokens


def _with_timestamps(pieces: list[Token]) -> list[Token]:
    """Marks the tokens of times that the prompt states in front of a frame's own span."""
    marked = list(pieces)
    for span in range(len(pieces)):
        if pieces[span].kind != "media":
            continue
        begin = end = span
        while begin and pieces[begin - 1].kind != "media":
            begin -= 1
        while end > begin and pieces[end - 1].kind == "special":  # the marker between a time and its frame
            end -= 1
        text, starts = "", []
        for piece in pieces[begin:end]:
            starts.append(len(text))
            text += piece.text
        if found := _TIMESTAMP.search(text):
            for place, start in enumerate(starts, begin):
                if pieces[place].kind == "text" and start + len(pieces[place].text) > found.start():
                    marked[place] = replace(pieces[place], kind="time")
    return marked


def _shortened(pieces: list[Token]) -> list[Token]:
    left_out = pieces[MOST_TOKENS // 2 : -(MOST_TOKENS // 2)] if len(pieces) > MOST_TOKENS else []
    if not left_out:
        return pieces
    first, last = left_out[0], left_out[-1]
    count = last.position + last.count - first.position
    label = f"positions {first.position} to {first.position + count - 1} · {count} tokens that this page leaves out"
    text = f"… {count:,} tokens …"
    return [
        *pieces[: MOST_TOKENS // 2],
        Token("omitted", first.position, count, None, text, None, label),
        *pieces[-(MOST_TOKENS // 2) :],
    ]
