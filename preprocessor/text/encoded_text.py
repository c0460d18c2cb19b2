"""The token ids of an earlier prompt, for later prompts that begin alike, such as the next turn of a chat.

A tokenizer first cuts a text at its special tokens, and then treats what is between them by itself. So a text may be cut where
such a token begins, and the ids of its parts, put together, are those of the whole. That holds where special tokens take in
nothing around them and no step has a rule for a text's first word; `special_tokens` decides it from the tokenizer's own
settings, and for any other tokenizer nothing is kept.

What is kept has digests of a text's beginnings in place of the text. A later text is compared with these.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers.models import BPE
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from preprocessor.text.tokenizer import step_settings

MIN_CHARACTERS = 2048
"""A shorter text is encoded in half a millisecond."""
MAX_CUTS = 64

_CUT_CHARACTERS = 1024  # between two cuts at least, but for the last one
# Steps that treat a part of a text alike wherever it stands (tokenizers 0.23). `Prepend` and `Metaspace` may write something
# before a text's first word, and so may `ByteLevel`, if it is told to.
_NORMALIZERS = frozenset({"NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Replace"})
_PRE_TOKENIZERS = frozenset({"ByteLevel", "Split", "Digits", "Punctuation", "Whitespace", "WhitespaceSplit"})


@dataclass(frozen=True, slots=True, eq=False)
class EncodedText:
    """Token ids of a text, and where it can be cut.

    Attributes:
        token_ids: int32 [L].
        cuts: int64 [C, 2], ascending: characters and token ids before each cut.
        digests: uint8 [C, 32]: SHA-256 of the text before each cut.
        reused_count: Token ids that an earlier text had, too.
    """

    token_ids: npt.NDArray[np.int32]
    cuts: npt.NDArray[np.int64]
    digests: npt.NDArray[np.uint8]
    reused_count: int


@dataclass(slots=True)
class TextMemory:
    """What is known before a prompt is encoded, and what is known afterwards.

    Attributes:
        known: An earlier prompt, whose beginning this one may have.
        made: This prompt; None where nothing of it can be kept, or it is short.
    """

    known: EncodedText | None = None
    made: EncodedText | None = field(default=None, init=False)


class TextParts:
    """A text cut into parts that can be encoded by themselves.

    Args:
        special: As `special_tokens` gives it.
    Attributes:
        known_ids: int32; token ids of the beginning that `known` has, too.
        parts: What follows it, in order; not empty.
    """

    def __init__(self, text: str, special: re.Pattern[str], known: EncodedText | None) -> None:
        self._digest = hashlib.sha256()
        self._cuts: list[tuple[int, int]] = []
        self._digests: list[bytes] = []
        start = 0 if known is None else self._match(text, special, known)
        self.known_ids = np.empty(0, np.int32)
        if known is not None and self._cuts:
            self.known_ids = known.token_ids[: self._cuts[-1][1]]
        ends = [*_places(text, special, start), len(text)]
        self.parts = [text[first:end] for first, end in zip([start, *ends], ends, strict=False)]

    def joined(self, ids: Sequence[npt.NDArray[np.int32]]) -> EncodedText:
        """The whole text, encoded.

        Args:
            ids: Of each of `parts`.
        """
        for part, of_part in zip(self.parts[:-1], ids[:-1], strict=True):
            character_count, token_count = self._cuts[-1] if self._cuts else (0, 0)
            self._digest.update(_bytes(part))
            self._add_cut(character_count + len(part), token_count + len(of_part))
        kept = range(len(self._cuts))
        while len(kept) > MAX_CUTS:
            kept = kept[::-1][::2][::-1]  # every second one, and the last
        return EncodedText(
            np.concatenate([self.known_ids, *ids]),
            np.array([self._cuts[i] for i in kept], np.int64).reshape(-1, 2),
            np.frombuffer(b"".join(self._digests[i] for i in kept), np.uint8).reshape(-1, 32),
            len(self.known_ids),
        )

    def _match(self, text: str, special: re.Pattern[str], known: EncodedText) -> int:
        """Returns the last place up to which the texts are the same and this one can be cut, too."""
        start = 0
        for (cut, token_count), digest in zip(known.cuts.tolist(), known.digests, strict=True):
            ahead = self._digest.copy()
            ahead.update(_bytes(text[start:cut]))
            if not special.match(text, cut) or ahead.digest() != digest.tobytes():
                break
            self._digest, start = ahead, cut
            self._add_cut(cut, token_count)
        return start

    def _add_cut(self, character_count: int, token_count: int) -> None:
        self._cuts.append((character_count, token_count))
        self._digests.append(self._digest.digest())


def text_parts(
    tokenizer: TokenizersBackend, text: str, known: EncodedText | None, *, adds_tokens: bool
) -> TextParts | None:
    """A text in parts; None where it is short, or the tokenizer does not encode them by themselves.

    Args:
        adds_tokens: Whether the text is encoded with the tokens that a tokenizer puts before and after a whole text.
    """
    if len(text) < MIN_CHARACTERS:
        return None
    special = special_tokens(tokenizer)
    post_processor = tokenizer.backend_tokenizer.post_processor
    if special is None or (adds_tokens and post_processor and post_processor.num_special_tokens_to_add(False)):
        return None
    return TextParts(text, special, known)


@functools.lru_cache(maxsize=4)
def special_tokens(tokenizer: TokenizersBackend) -> re.Pattern[str] | None:
    """Finds the special tokens before which any text can be cut; None if there are none, or the parts depend on each other."""
    backend, added = tokenizer.backend_tokenizer, tokenizer.added_tokens_decoder.values()
    if (
        not isinstance(backend.model, BPE)
        or backend.model.dropout
        or backend.truncation is not None
        or backend.padding is not None
        or backend.encode_special_tokens
        or not _treats_parts_alike(step_settings(backend.normalizer), _NORMALIZERS)
        or not _treats_parts_alike(step_settings(backend.pre_tokenizer), _PRE_TOKENIZERS)
        or any(token.lstrip or token.rstrip or token.single_word or token.normalized for token in added)
    ):
        return None
    # Such a token begins wherever it is found: no token that begins before it reaches so far.
    within = {letter for token in added for letter in token.content[1:]}
    contents = [token.content for token in added if token.special and token.content and token.content[0] not in within]
    return re.compile("|".join(map(re.escape, contents))) if contents else None


def _treats_parts_alike(step: Mapping[str, Any], kinds: frozenset[str]) -> bool:
    """Whether a step does with a part of a text what it does with it inside the text."""
    if not step:
        return True
    if step["type"] == "Sequence":
        return all(_treats_parts_alike(one, kinds) for one in step.get("normalizers", step.get("pretokenizers", ())))
    return step["type"] in kinds and not step.get("add_prefix_space", False)


def _places(text: str, special: re.Pattern[str], start: int) -> list[int]:
    """Where the text behind `start` is cut: at some distance each, and at the last special token."""
    distance = max(_CUT_CHARACTERS, len(text) // MAX_CUTS)
    places: list[int] = []
    while found := special.search(text, start + distance):
        start = found.start()
        places.append(start)
    behind = [found.start() for found in special.finditer(text, start + 1)]
    return places + behind[-1:]


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogatepass")  # which no tokenizer takes, and says so
