"""What a file is, by its bytes alone."""

from __future__ import annotations

import hashlib

from preprocessor.errors import InvalidRequest
from preprocessor.types.request import Media


def content_digest(medium: Media) -> bytes:
    """SHA-256 of the file, 32 bytes; computed here unless it is known.

    Raises:
        InvalidRequest: `DIGEST_MISMATCH` where the caller has given another one.
    """
    digest = medium.file_sha256 or hashlib.sha256(medium.data).digest()
    if medium.content_sha256 not in (None, digest):
        raise InvalidRequest(
            f"{medium.key}: the spec states another SHA-256 than that of the file, {digest.hex()}; the file was changed or "
            "damaged on its way",
            reason="DIGEST_MISMATCH",
            field="media[].content_sha256",
            media_key=medium.key,
        )
    return digest
