"""Token ids as they arrive → text as it becomes certain."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers.decoders import DecodeStream
from transformers.tokenization_utils_tokenizers import TokenizersBackend


class Detokenizer:
    """Decodes one answer incrementally; a character is held back until all its bytes are there."""

    def __init__(self, tokenizer: TokenizersBackend, *, skip_special_tokens: bool = True) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._stream = DecodeStream(skip_special_tokens=skip_special_tokens)
        self._skip = skip_special_tokens
        self._token_ids: list[int] = []
        self._length = 0

    def push(self, token_ids: Iterable[int]) -> str:
        """Text that these ids complete; empty while a character is unfinished."""
        pieces = []
        for token_id in token_ids:
            self._token_ids.append(token_id)
            if piece := self._stream.step(self._backend, token_id):
                pieces.append(piece)
        text = "".join(pieces)
        self._length += len(text)
        return text

    def finish(self) -> str:
        """What was held back when the answer ended inside a character: U+FFFD in its place."""
        whole: str = self._backend.decode(self._token_ids, skip_special_tokens=self._skip)
        return whole[self._length :]
