"""`data:` URLs: a file in the URL itself, as in RFC 2397 and as clients write it."""

from __future__ import annotations

import binascii
import re

import numpy as np
import numpy.typing as npt

from preprocessor.errors import InvalidRequest, LimitExceeded

# Up to the first comma outside quotes. The media type and all parameters except base64 are ignored.
# Possessive quantifiers, so that a header of many megabytes is scanned once.
_HEAD = re.compile(r'(?:[^",]++|"[^"]*+")*+,')
_IS_BASE64 = re.compile(r";\s*base64\s*(?:;|$)", re.IGNORECASE)
_SCHEME = "data:"
WHITESPACE = " \t\n\r\f"
URL_SAFE = bytes.maketrans(b"-_", b"+/")  # RFC 4648, 5
_BASE64 = re.compile(rb"[A-Za-z0-9+/]*(={0,2})")


def is_data_url(url: str) -> bool:
    return url[:64].lstrip()[: len(_SCHEME)].lower() == _SCHEME


def read_data_url(url: str, key: str, max_bytes: int) -> bytes:
    """The file in a `data:` URL, in base64 or percent-encoded.

    Base64 may be percent-encoded, broken into lines, URL-safe, and without padding. All other deviations are refused: other
    characters, padding before the end, non-zero trailing bits. A fragment is ignored.

    Raises:
        InvalidRequest: `INVALID_DATA_URL`.
        LimitExceeded: `INLINE_TOO_LARGE`.
    """
    url = url.partition("#")[0].strip(WHITESPACE)[len(_SCHEME) :]
    quoted = _HEAD.match(url)
    end = quoted.end() if quoted else url.find(",") + 1
    if not end:
        raise _invalid(key, "it has no comma before its data")
    head, body = url[: end - 1], _percent_decoded(url[end:].encode("utf-8", "surrogatepass"), key)
    data = decode_base64(body, key, max_bytes) if _IS_BASE64.search(head) else body
    if len(data) > max_bytes:
        raise _too_large(key, max_bytes)
    return data


def _percent_decoded(text: bytes, key: str) -> bytes:
    """The text with each %XX decoded, and without line breaks, which URLs do not contain.

    It works on whole arrays, because a message may contain five million of these codes.
    """
    text = text.translate(None, b"\t\n\r")
    if b"%" not in text:
        return text
    codes = np.frombuffer(text + b"%%", np.uint8)  # so that two characters follow every percent sign
    signs = np.flatnonzero(codes[:-2] == ord("%"))
    high, low = _HEX[codes[signs + 1]], _HEX[codes[signs + 2]]
    if (high | low).max() > 15:
        raise _invalid(key, "a percent sign in it is not followed by two hexadecimal digits")
    decoded = codes[:-2].copy()
    decoded[signs] = high << 4 | low
    kept = np.ones(len(decoded), bool)
    kept[signs + 1] = kept[signs + 2] = False
    return decoded[kept].tobytes()


def decode_base64(text: bytes, key: str, max_bytes: int) -> bytes:
    """The bytes of base64 as `read_data_url` accepts it; raises as that."""
    text = text.translate(URL_SAFE, WHITESPACE.encode())
    if len(text) // 4 * 3 > max_bytes + 2:
        raise _too_large(key, max_bytes)
    shape = _BASE64.fullmatch(text)
    if shape is None:
        raise _invalid(key, "its data is not base64")
    length = shape.start(1)
    if length % 4 == 1 or len(text) - length > -length % 4:
        raise _invalid(key, f"base64 of {length} characters and {len(text) - length} of padding is incomplete")
    padded = text[:length] + b"=" * (-length % 4)
    data = binascii.a2b_base64(padded, strict_mode=True)
    if binascii.b2a_base64(data[-(len(data) % 3 or 3) :], newline=False) != padded[-4:]:
        raise _invalid(key, "its base64 has non-zero bits after the last byte")
    return data


def _hex_values() -> npt.NDArray[np.uint8]:
    """The value of each hexadecimal digit by its code; 255 for all other codes."""
    values = np.full(256, 255, np.uint8)
    for digit in b"0123456789abcdefABCDEF":
        values[digit] = int(chr(digit), 16)
    return values


_HEX = _hex_values()


def _too_large(key: str, max_bytes: int) -> LimitExceeded:
    return LimitExceeded(
        f"{key}: more than {max_bytes} bytes in a data: URL; send chunks",
        reason="INLINE_TOO_LARGE",
        field="media[].url",
        media_key=key,
    )


def _invalid(key: str, why: str) -> InvalidRequest:
    return InvalidRequest(
        f"{key}: the data: URL cannot be read: {why}; write data:image/png;base64, and the file in base64",
        reason="INVALID_DATA_URL",
        field="media[].url",
        media_key=key,
    )
