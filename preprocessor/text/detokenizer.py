"""Token ids as they arrive → text as it becomes certain."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenizers.decoders import DecodeStream
from transformers.tokenization_utils_tokenizers import TokenizersBackend


class Detokenizer:
    """Decodes one answer incrementally.

    A character is held back until all its bytes have arrived, and text as long as it may be the beginning of a stop string.
    Neither a stop string nor what follows it is returned.

    Args:
        stop_strings: Not empty strings; the first to be complete ends the answer.
    """

    def __init__(
        self, tokenizer: TokenizersBackend, stop_strings: Sequence[str] = (), *, skip_special_tokens: bool = True
    ) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._stream = DecodeStream(skip_special_tokens=skip_special_tokens)
        self._skip = skip_special_tokens
        self._stop_strings = tuple(stop_strings)
        self._token_ids: list[int] = []
        self._decoded_length = 0
        self._held = ""
        self.is_stopped = False
        """A stop string came; nothing follows."""

    def push(self, token_ids: Iterable[int]) -> str:
        """Text that these ids make certain; empty while a character or a stop string may be unfinished."""
        text = ""
        for token_id in token_ids:
            if self.is_stopped:
                break
            self._token_ids.append(token_id)
            piece = self._stream.step(self._backend, token_id) or ""
            self._decoded_length += len(piece)
            text += self._release(piece)
        return text

    def finish(self) -> str:
        """What was held back when the answer ended; U+FFFD for an unfinished character."""
        if self.is_stopped:
            return ""
        whole: str = self._backend.decode(self._token_ids, skip_special_tokens=self._skip)
        text = self._release(whole[self._decoded_length :]) + ("" if self.is_stopped else self._held)
        self._held = ""
        return text

    def _release(self, piece: str) -> str:
        """The part of the held text and this piece that is certain."""
        self._held += piece
        starts = [start for stop in self._stop_strings if (start := self._held.find(stop)) >= 0]
        if starts:
            self.is_stopped = True
            text, self._held = self._held[: min(starts)], ""
            return text
        kept = max((overlap(self._held, stop) for stop in self._stop_strings), default=0)
        cut = len(self._held) - kept
        text, self._held = self._held[:cut], self._held[cut:]
        return text


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next(n for n in range(min(len(text), len(stop) - 1), -1, -1) if text.endswith(stop[:n]))
