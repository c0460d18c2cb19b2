"""A prompt's text → token ids, in bounded memory, and with literal parts in which no added token is recognized.

A tokenizer keeps some hundred bytes for each token until its text is done: millions of digits, a token each, would take
gigabytes. So a long text is cut, and its pieces are encoded one after another. Cuts lie only where the ids are certain to equal
those of the whole text: where Qwen's own pattern ends a word in any context, and outside added tokens. A run without such a place
(of one letter, say) is not cut, and is refused where it would take too much memory.

A literal part is encoded as if the tokenizer had no added tokens, with its neighbours as far as the next added token outside of
it. So a part that spells no added token has the ids that it has as ordinary text.
"""

from __future__ import annotations

import bisect
import itertools
import re
import time
import unicodedata
from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from preprocessor.config import Limits
from preprocessor.errors import InvalidRequest, LimitExceeded
from preprocessor.text.encoded_text import TextMemory, text_parts
from preprocessor.text.tokenizer import encode, encode_inner, step_settings

PromptPiece = tuple[str, bool]
"""A piece of a prompt, and whether it is literal."""

Encode = Callable[[TokenizersBackend, str], list[int]]

# The patterns of which `_CUT` holds: transformers 5.23, PRETOKENIZE_REGEX of Qwen2Tokenizer and Qwen3_5Tokenizer.
_CUTTABLE_PATTERNS = frozenset(
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+",
    )
)

# After a letter or a digit, and before a character that continues no word: a digit (a word by itself), ASCII space or
# punctuation, or Chinese punctuation. NFC composes none of these with the character before it.
_CUT = re.compile(r"(?<=[^\W_])(?=[\d\t-\r -/:-@[-`{-~、。！，：；？])")
_CHUNK_LENGTH = 1 << 16

# Upper bounds on the bytes that the tokenizer takes for each byte of UTF-8 that it encodes at once; measured, tokenizers 0.23.
# Text that cannot be cut: 80 to 170 for runs of one letter, random letters and ideographs, spaces, punctuation, emoji and
# combining marks, 269 for superscripts. Text of a tokenizer for which nothing is cut: 432 for digits.
_BYTES_PER_ASCII, _BYTES_PER_BYTE, _BYTES_PER_BYTE_UNCUT = 200, 300, 500


def encode_prompt(
    tokenizer: TokenizersBackend, pieces: Sequence[PromptPiece], limits: Limits, memory: TextMemory | None = None
) -> npt.NDArray[np.int32]:
    """Token ids int32 [L]; of a prompt without literal pieces those of `tokenizer(text)["input_ids"]`.

    A text that begins with the tokenizer's BOS token gets no other one.

    Source: transformers 5.23, ProcessorMixin.apply_chat_template.

    Args:
        memory: Its known beginning is not encoded again, and it gets this prompt.
    Raises:
        LimitExceeded: `TOKENIZING_MEMORY_EXCEEDED`, `TOKENIZING_CPU_SECONDS_EXCEEDED`.
        InvalidRequest: `LITERAL_TEXT_REFUSED` where a literal piece spells an added token, and the tokenizer's are of a kind that
            cannot be told from it.
    """
    text = "".join(piece for piece, _ in pieces)
    bos = tokenizer.bos_token
    encode_text: Encode = encode_inner if bos and text.startswith(bos) else encode
    if spells_added_token(tokenizer, pieces):
        return np.concatenate(_encode_all(tokenizer, list(_stretches(tokenizer, pieces)), limits))
    parts = None
    if memory is not None:
        parts = text_parts(tokenizer, text, memory.known, adds_tokens=encode_text is encode)
    if memory is None or parts is None:
        return np.concatenate(_encode_all(tokenizer, [(text, encode_text)], limits))
    if not _can_cut(tokenizer):  # what is refused must not depend on what is known
        check_memory(tokenizer, text, limits, is_cut=True)
    memory.made = parts.joined(_encode_all(tokenizer, [(part, encode_text) for part in parts.parts], limits))
    return memory.made.token_ids


def _encode_all(
    tokenizer: TokenizersBackend, stretches: Sequence[tuple[str, Encode]], limits: Limits
) -> list[npt.NDArray[np.int32]]:
    """Token ids int32 of each stretch of a prompt.

    Raises:
        LimitExceeded: As `encode_prompt`.
    """
    end_seconds = time.thread_time() + limits.max_tokenizing_cpu_seconds
    encoded: list[npt.NDArray[np.int32]] = []
    for stretch, encode_stretch in stretches:
        ids = [np.empty(0, np.int32)]
        for chunk in _chunks(tokenizer, stretch, is_plain=encode_stretch is _encode_plain):
            check_memory(tokenizer, chunk, limits, is_cut=True)
            ids.append(np.asarray(encode_stretch(tokenizer, chunk), np.int32))
            if time.thread_time() > end_seconds:
                raise LimitExceeded(
                    f"the prompt needs more than the {limits.max_tokenizing_cpu_seconds:g} CPU seconds that turning it into "
                    "tokens may take; send a shorter one",
                    reason="TOKENIZING_CPU_SECONDS_EXCEEDED",
                )
        encoded.append(np.concatenate(ids))
    return encoded


def check_memory(tokenizer: TokenizersBackend, text: str, limits: Limits, *, is_cut: bool) -> None:
    """Refuse a text that would take too much memory if it were encoded at once.

    Args:
        is_cut: Whether it was cut wherever it could be.
    Raises:
        LimitExceeded: `TOKENIZING_MEMORY_EXCEEDED`.
    """
    if len(text) <= _CHUNK_LENGTH:
        return
    if not (is_cut and _can_cut(tokenizer)):
        needed = len(text.encode()) * _BYTES_PER_BYTE_UNCUT
    elif text.isascii():
        needed = len(text) * _BYTES_PER_ASCII
    else:  # NFC turns some characters into three
        needed = max(len(text.encode()), len(unicodedata.normalize("NFC", text).encode())) * _BYTES_PER_BYTE
    if needed > limits.max_tokenizing_bytes:
        raise LimitExceeded(
            f"the prompt has {len(text)} characters that must be turned into tokens at once, which may take {needed} bytes of "
            f"memory; at most {limits.max_tokenizing_bytes} are accepted: send less text without spaces, or less text",
            reason="TOKENIZING_MEMORY_EXCEEDED",
        )


def spells_added_token(tokenizer: TokenizersBackend, pieces: Sequence[PromptPiece], more: Collection[str] = ()) -> bool:
    """Whether an added token, white space apart, would be seen in a literal piece, wholly or in part.

    Args:
        more: Other words that must not be seen there.
    """
    literal = "".join(piece for piece, is_literal in pieces if is_literal)
    if not literal:
        return False
    added = _added_tokens(tokenizer)
    normalizer = tokenizer.backend_tokenizer.normalizer
    if normalizer is not None and any(token.normalized for token in added):
        normalized = normalizer.normalize_str(literal)
        if any(normalizer.normalize_str(token.content) in normalized for token in added if token.normalized):
            return True
    text = "".join(piece for piece, _ in pieces)
    words = [word for word in {*(token.content for token in added), *more} if word in text]
    ends = [0, *itertools.accumulate(len(piece) for piece, _ in pieces)]
    spans = [(ends[i], ends[i + 1]) for i, (_, is_literal) in enumerate(pieces) if is_literal]
    starts = [start for start, _ in spans]
    for word in words:
        for found in re.finditer(f"(?={re.escape(word)})", text):
            first, last = found.start(), found.start() + len(word)
            at = bisect.bisect_left(starts, last) - 1  # the last literal piece that begins before the word ends
            if at >= 0 and spans[at][1] > first:
                return True
    return False


def _stretches(tokenizer: TokenizersBackend, pieces: Sequence[PromptPiece]) -> Iterator[tuple[str, Encode]]:
    """The prompt cut at each added token that lies outside literal pieces; what is between is encoded without any."""
    added = _added_tokens(tokenizer)
    post_processor = tokenizer.backend_tokenizer.post_processor
    adds_tokens = post_processor is not None and post_processor.num_special_tokens_to_add(False)
    if adds_tokens or any(token.lstrip or token.rstrip or token.single_word for token in added):
        raise literal_refused("this model's tokenizer has tokens that take in what stands around them")
    contents = sorted((token.content for token in added), key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, contents)) or "(?!)")
    stretch = ""
    for is_literal, run in itertools.groupby(pieces, key=lambda piece: piece[1]):
        piece = "".join(text for text, _ in run)
        at = 0
        for found in () if is_literal else pattern.finditer(piece):
            yield stretch + piece[at : found.start()], _encode_plain
            yield found[0], encode
            stretch, at = "", found.end()
        stretch += piece[at:]
    yield stretch, _encode_plain


def literal_refused(why: str) -> InvalidRequest:
    return InvalidRequest(
        f"a literal_text spells a token of this model, and {why}: send it as text, or without that token",
        reason="LITERAL_TEXT_REFUSED",
    )


def _encode_plain(tokenizer: TokenizersBackend, text: str) -> list[int]:
    """Token ids of the text as if the tokenizer had no added tokens: its own steps, one after another."""
    backend = tokenizer.backend_tokenizer
    if backend.normalizer is not None:
        text = backend.normalizer.normalize_str(text)
    words = (
        [text] if backend.pre_tokenizer is None else [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
    )
    model = backend.model
    return [token.id for word in words for token in model.tokenize(word)]


def _chunks(tokenizer: TokenizersBackend, text: str, *, is_plain: bool) -> Iterator[str]:
    """The text in pieces whose ids, put together, are its own.

    Args:
        is_plain: Whether no added token is seen in it.
    """
    if len(text) <= _CHUNK_LENGTH or not _can_cut(tokenizer):
        yield text
        return
    contents = [] if is_plain else [token.content for token in _added_tokens(tokenizer)]
    within = [(content, found.start()) for content in contents for found in _CUT.finditer(content)]
    start = 0
    while len(text) - start > _CHUNK_LENGTH:
        found = _CUT.search(text, start + _CHUNK_LENGTH)
        if found is None:
            break
        cut = found.start()
        for content, offset in within:
            if text.startswith(content, max(0, cut - offset)):
                cut += len(content) - offset  # its end, where another word begins in any case
                break
        yield text[start:cut]
        start = cut
    yield text[start:]


def _can_cut(tokenizer: TokenizersBackend) -> bool:
    """Whether `_CUT` is valid for this tokenizer: Qwen's pattern and bytes, NFC or nothing, and added tokens that stand alone."""
    backend = tokenizer.backend_tokenizer
    steps = step_settings(backend.pre_tokenizer).get("pretokenizers", [])
    post_processor = backend.post_processor
    added = _added_tokens(tokenizer)
    return (
        [step["type"] for step in steps] == ["Split", "ByteLevel"]
        and steps[0]["pattern"].get("Regex") in _CUTTABLE_PATTERNS
        and (steps[0]["behavior"], steps[0]["invert"]) == ("Isolated", False)
        and not (steps[1]["use_regex"] or steps[1]["add_prefix_space"])
        and step_settings(backend.normalizer).get("type", "NFC") == "NFC"
        and (post_processor is None or not post_processor.num_special_tokens_to_add(False))
        and not any(token.lstrip or token.rstrip or token.single_word or token.normalized for token in added)
        # No two of them can overlap, so each occurrence is a token.
        and all(token.content[0] not in other.content[1:] for token in added for other in added)
    )


def _added_tokens(tokenizer: TokenizersBackend) -> list[AddedToken]:
    """All but those of white space alone, which Gemma has for runs of it: almost every text contains them."""
    return [token for token in tokenizer.added_tokens_decoder.values() if token.content.strip(" \t\r\n▁")]
