"""data: URLs: a file in the URL itself."""

from __future__ import annotations

import binascii
import re

from preprocessor.errors import InvalidRequest, LimitExceeded

# RFC 2397, of which base64 alone is taken. The media type may be absent, and is not believed where it is there.
_HEAD = re.compile(r"data:([\w.+-]+/[\w.+-]+)?(;[\w.+-]+=[\w.+-]+)*;base64,", re.ASCII | re.IGNORECASE)


def is_data_url(url: str) -> bool:
    return url[:5].lower() == "data:"


def read_data_url(url: str, key: str, max_bytes: int) -> bytes:
    """The file in a data: URL.

    Base64 is taken in its one canonical form (RFC 4648, 4): no spaces, no other alphabet, all padding and nothing behind it.

    Raises:
        InvalidRequest: `INVALID_DATA_URL`.
        LimitExceeded: `INLINE_TOO_LARGE`.
    """
    head = _HEAD.match(url)
    if head is None:
        raise _invalid(key)
    start = head.end()
    if (len(url) - start) // 4 * 3 > max_bytes + 2:
        raise LimitExceeded(
            f"{key}: more than {max_bytes} bytes in a data: URL; send chunks", reason="INLINE_TOO_LARGE", media_key=key
        )
    try:
        text = url[start:].encode("ascii")
        data = binascii.a2b_base64(text, strict_mode=True)
    except (UnicodeEncodeError, binascii.Error):
        raise _invalid(key) from None
    if binascii.b2a_base64(data[-(len(data) % 3 or 3) :], newline=False) != text[-4:]:
        raise _invalid(key)  # bits behind the last byte, which strict mode lets pass
    if len(data) > max_bytes:
        raise LimitExceeded(
            f"{key}: {len(data)} bytes in a data: URL; above {max_bytes} send chunks",
            reason="INLINE_TOO_LARGE",
            media_key=key,
        )
    return data


def _invalid(key: str) -> InvalidRequest:
    return InvalidRequest(
        f"{key}: the data: URL cannot be read; write data:image/png;base64, and the file in plain, padded base64",
        reason="INVALID_DATA_URL",
        media_key=key,
    )
