"""Which replica a call should meet: the one that has its media already.

Each replica has a cache of its own. A proxy that hashes `MEDIA_DIGEST` sends calls with the same value to the same replica;
nothing else depends on it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from preprocessor.client.requests import Prompt

MEDIA_DIGEST = "x-media-digest"
"""Metadata of a call: names its first medium."""

# Enough that no two files meet by chance, and too few to name the file itself (`Media.content_sha256`) to whoever reads a
# proxy's log.
_DIGIT_COUNT = 32


def routing_metadata(prompt: Prompt, digests: Mapping[str, bytes]) -> tuple[tuple[str, str], ...]:
    """The metadata of a prompt's call; none for a prompt without media.

    The first medium alone decides: a conversation grows at its end, so later turns with more media have the same value, and
    so have the conversations of all callers that begin with the same file.

    Args:
        digests: SHA-256 of files, by media key, that are known already.
    """
    medium = next((medium for medium in prompt.spec.media if not medium.same_file_as), None)
    if medium is None:
        return ()
    digest = digests.get(medium.key) or medium.content_sha256
    if medium.uuid:  # which names the file in every turn, whether or not it is sent
        digest = hashlib.sha256(medium.uuid.encode()).digest()
    if not digest:
        content = medium.inline_data or prompt.files.get(medium.key) or medium.url.encode()
        if not content:
            return ()
        digest = hashlib.sha256(content).digest()
    return ((MEDIA_DIGEST, digest.hex()[:_DIGIT_COUNT]),)
