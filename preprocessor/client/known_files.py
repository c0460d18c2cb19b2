"""Files that the service has had from a client, which are named by digest the next time."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping

from preprocessor.client.requests import Prompt
from preprocessor.v1 import preprocessor_pb2 as pb

MEDIA_NOT_CACHED = "MEDIA_NOT_CACHED"
_LEAST_BYTES = 64 << 10  # a smaller file costs less than the round trip where the service does not have it
_MAX_COUNT = 10_000
_MAX_MISSES = 3
_PAUSE_SECONDS = 60.0


class KnownFiles:
    """Digests of files that were sent; used from several threads at once.

    A service that keeps no files, or that is one of many replicas, would refuse each second call: after three misses in a row
    files are sent whole for a minute.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._digests: OrderedDict[bytes, None] = OrderedDict()
        self._miss_count = 0
        self._paused_until = 0.0

    def named(self, prompt: Prompt, digests: Mapping[str, bytes]) -> Prompt | None:
        """The prompt with known files named by their digest; None where none is known.

        Args:
            digests: `digests_of` the prompt.
        """
        stated = {
            medium.key: medium.content_sha256 for medium in prompt.spec.media if medium.HasField("content_sha256")
        }
        with self._lock:
            digests = {
                key: digest
                for key, digest in digests.items()
                if digest in self._digests and stated.get(key, digest) == digest  # else the service says so, each time
            }
        if not digests or time.monotonic() < self._paused_until:
            return None
        spec = pb.PrepareSpec()
        spec.CopyFrom(prompt.spec)
        for medium in spec.media:
            if medium.key in digests:
                medium.cached.SetInParent()
                medium.content_sha256 = digests[medium.key]
        return Prompt(spec, {key: data for key, data in prompt.files.items() if key not in digests})

    def found(self) -> None:
        """The service had every file that was named."""
        self._miss_count = 0

    def missed(self, digests: Iterable[bytes]) -> None:
        """The service did not have one of these files."""
        with self._lock:
            for digest in digests:
                self._digests.pop(digest, None)
            self._miss_count += 1
            if self._miss_count >= _MAX_MISSES:
                self._miss_count, self._paused_until = 0, time.monotonic() + _PAUSE_SECONDS

    def sent(self, digests: Iterable[bytes]) -> None:
        """The service has had these files."""
        with self._lock:
            for digest in digests:
                self._digests[digest] = None
                self._digests.move_to_end(digest)
            while len(self._digests) > _MAX_COUNT:
                self._digests.popitem(last=False)


def digests_of(prompt: Prompt) -> dict[str, bytes]:
    """SHA-256 of the files that are sent with a prompt and are not small, by media key."""
    files = {medium.key: medium.inline_data for medium in prompt.spec.media if medium.inline_data} | dict(prompt.files)
    return {key: hashlib.sha256(data).digest() for key, data in files.items() if len(data) >= _LEAST_BYTES}
