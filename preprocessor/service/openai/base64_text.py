"""Base64 in a JSON string, decoded as it arrives."""

from __future__ import annotations

import binascii
import json

from preprocessor.errors import InvalidRequest
from preprocessor.service.fetch.data_urls import URL_SAFE, WHITESPACE, decode_base64

_WHITESPACE = WHITESPACE.encode()
_ESCAPE_LENGTH = len(r"\u002b")


class Base64Text:
    """One string's bytes, decoded strictly: as `data_urls.decode_base64`, which decodes its end.

    Args:
        key: The medium's name in errors.
    """

    def __init__(self, key: str) -> None:
        self._key = key
        self._escaped = b""  # may end within an escape
        self._held = b""  # 1 to 4 characters: padding is only at the very end

    def push(self, text: bytes) -> bytes:
        """The bytes that further characters complete.

        Raises:
            InvalidRequest: `INVALID_DATA_URL`.
        """
        text = self._escaped + text
        self._escaped = b""
        if b"\\" in text:
            start = text.rfind(b"\\", max(0, len(text) - _ESCAPE_LENGTH + 1))
            if start >= 0:
                text, self._escaped = text[:start], text[start:]
            text = self._unescaped(text)
        text = self._held + text.translate(URL_SAFE, _WHITESPACE)
        whole = max(0, len(text) - 1) // 4 * 4
        self._held = text[whole:]
        try:
            if b"=" in text[:whole]:
                raise binascii.Error
            return binascii.a2b_base64(text[:whole], strict_mode=True)
        except binascii.Error:
            raise self._invalid() from None

    def finish(self) -> bytes:
        """The last bytes.

        Raises:
            InvalidRequest: `INVALID_DATA_URL`.
        """
        rest = self._held + self._unescaped(self._escaped).translate(URL_SAFE, _WHITESPACE)
        return decode_base64(rest, self._key, len(rest))

    def _unescaped(self, text: bytes) -> bytes:
        """With JSON's escapes replaced: some writers escape `/` and `+`."""
        try:
            return str(json.loads(b'"' + text + b'"')).encode("ascii") if b"\\" in text else text
        except ValueError:  # UnicodeEncodeError too
            raise self._invalid() from None

    def _invalid(self) -> InvalidRequest:
        return InvalidRequest(
            f"{self._key} is not base64; write the file in base64, after data:image/png;base64, in a URL",
            reason="INVALID_DATA_URL",
        )
