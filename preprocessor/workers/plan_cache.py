"""What planning has found out, for later requests: of a file headers, chosen frames and layout, of a chat its token ids.

The service keeps it, so that all workers share it, and gives it to the worker that plans. It lies on the heap and is small: some
kilobytes for a clip, less for an image, four bytes for each token of a chat.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections import OrderedDict
from typing import Any

from preprocessor import __version__
from preprocessor.config import Limits
from preprocessor.models.versions import library_versions
from preprocessor.types.request import ChatPrompt, Media, PreparationRequest, TextPart, TokenPrompt

MAX_BYTES = 32 << 20
"""What a cache may take, whatever the memory budget."""
_ENTRY_BYTES = 512  # of the table and its objects, about


class PlanCache:
    """Finds and keeps pickled `PlannedItem`s and `EncodedText`s, least recently used out first; on the event loop alone.

    Args:
        max_bytes: What all of them may take together; 0 keeps nothing.
    Attributes:
        size_bytes: What they take.
        hit_count, miss_count: Items of requests that were found or not.
        reused_token_count, encoded_token_count: Token ids of chats that were taken from an earlier turn, or made.
        eviction_count: Entries dropped for the lack of space.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = min(max_bytes, MAX_BYTES)
        self._entries: OrderedDict[bytes, bytes] = OrderedDict()
        self.size_bytes = 0
        self.hit_count = 0
        self.miss_count = 0
        self.reused_token_count = 0
        self.encoded_token_count = 0
        self.eviction_count = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def is_on(self) -> bool:
        return self._max_bytes > 0

    def find(self, key: bytes) -> bytes | None:
        """An entry, which counts as used now. Hits and misses are counted by `count`: a request may look twice."""
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
        return entry

    def count(self, hits: int, misses: int) -> None:
        """A request has found so many items, and others not."""
        self.hit_count += hits
        self.miss_count += misses

    def count_tokens(self, reused: int, encoded: int) -> None:
        """A chat had so many token ids that were known, and others not."""
        self.reused_token_count += reused
        self.encoded_token_count += encoded

    def add(self, key: bytes, entry: bytes) -> None:
        """Keep an entry."""
        if len(entry) + _ENTRY_BYTES > self._max_bytes or key in self._entries:
            return
        self._entries[key] = entry
        self.size_bytes += len(entry) + _ENTRY_BYTES
        while self.size_bytes > self._max_bytes:
            self.size_bytes -= len(self._entries.popitem(last=False)[1]) + _ENTRY_BYTES
            self.eviction_count += 1

    def clear(self) -> None:
        """Drop everything."""
        self._entries.clear()
        self.size_bytes = 0


def chat_keys(scope: str, cache_salt: str, chat: ChatPrompt) -> list[bytes]:
    """A key for the chat up to each of its messages. It finds a text that may begin alike; the text itself decides."""
    digest = hashlib.sha256(repr((scope, cache_salt)).encode())
    keys: list[bytes] = []
    for message in chat.messages:
        said = [message.role, *(part.text if isinstance(part, TextPart) else part for part in message.parts)]
        digest.update(repr((said, message.extra)).encode(errors="backslashreplace"))
        keys.append(digest.digest())
    return keys


def plan_key(
    scope: str,
    fingerprint: str,
    request: PreparationRequest,
    medium: Media,
    content_sha256: bytes,
    limits: Limits,
) -> bytes:
    """The key of one item: its file, and all else that its plan could depend on.

    Every field of the request and of the medium counts, also one that is added later, but for those that are taken out here.

    Args:
        fingerprint: Of the model.
    """
    others = dataclasses.replace(request, prompt=TokenPrompt(()), media=(), with_token_types=False)
    alone = dataclasses.replace(medium, key="", data=b"", content_sha256=None, file_sha256=None, uuid=None)
    of_the_process = (fingerprint, __version__, library_versions(), _limit_values(limits))
    decided = (scope, content_sha256, of_the_process, _values(others), _values(alone))
    return hashlib.sha256(repr(decided).encode()).digest()


@functools.lru_cache(maxsize=8)
def _limit_values(limits: Limits) -> str:
    """`_values`, as text; a service has one set of limits."""
    return repr(_values(limits))


def _values(value: Any) -> Any:
    """Every field of a data class, also those that its `repr` leaves out; any other value as it is."""
    if not dataclasses.is_dataclass(value):
        return value
    return [(field.name, _values(getattr(value, field.name))) for field in dataclasses.fields(value)]
