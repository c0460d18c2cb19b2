"""Which file a caller means by a name of its own."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

_MAX_COUNT = 1 << 14


class KnownUuids:
    """A caller's uuid → SHA-256 of the file that it last sent with it, least recently used out first; on the event loop alone.

    A uuid can be guessed, a digest cannot: so `cache_salt` is part of a uuid's scope, though not of a file's.

    Args:
        is_on: Whether anything is kept.
    """

    def __init__(self, *, is_on: bool) -> None:
        self._max_count = _MAX_COUNT if is_on else 0
        self._digests: OrderedDict[bytes, bytes] = OrderedDict()

    def __len__(self) -> int:
        return len(self._digests)

    def find(self, scope: str, cache_salt: str, uuid: str) -> bytes | None:
        """The digest of that file, if one is known."""
        key = _key(scope, cache_salt, uuid)
        if key in self._digests:
            self._digests.move_to_end(key)
        return self._digests.get(key)

    def add(self, scope: str, cache_salt: str, uuid: str, content_sha256: bytes) -> None:
        """The uuid means this file from now on."""
        key = _key(scope, cache_salt, uuid)
        self._digests[key] = content_sha256
        self._digests.move_to_end(key)
        while len(self._digests) > self._max_count:
            self._digests.popitem(last=False)


def _key(scope: str, cache_salt: str, uuid: str) -> bytes:
    return hashlib.sha256(repr((scope, cache_salt, uuid)).encode()).digest()
