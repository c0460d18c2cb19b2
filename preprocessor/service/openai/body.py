"""The body of a request as it arrives: JSON text, and the files in it.

A file is a string in base64: `"data:video/mp4;base64,…"`, or a long value of the key "data", as in `input_audio`. Its bytes go to
the arena piece by piece. The text keeps a mark in its place, which nobody can guess.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from preprocessor.config import Limits, WireSettings
from preprocessor.errors import InvalidRequest, LimitExceeded
from preprocessor.service.concurrency import Turns
from preprocessor.service.files import FileReceiver, FilesTotal
from preprocessor.service.json_text import read_json, value_count
from preprocessor.service.openai.base64_text import Base64Text
from preprocessor.service.upload_stream import Upload
from preprocessor.types.request import Media, Modality
from preprocessor.workers.resources import RequestResources

# A quote after a backslash is inside a string. `\s` is more than JSON's white space, which the text's reader refuses.
_FILE = re.compile(
    rb'(?<!\\)(?P<url>"data:[^",]{0,256};base64,)|(?<!\\)(?P<field>"data"\s{0,16}:\s{0,16})"(?=[A-Za-z0-9+/_\\-]{512})'
)
_LARGE_TEXT_LENGTH = 1 << 20  # to read it takes milliseconds
_KEPT_BYTES = 1024  # longer than any match


@dataclass(frozen=True, slots=True)
class Body:
    """A request as JSON, and its files.

    Attributes:
        files: Mark in the place of a file → the file, in the arena.
    """

    value: dict[str, Any]
    files: Mapping[str, memoryview]


async def receive_body(
    upload: Upload[Any], resources: RequestResources, limits: Limits, wire: WireSettings, turns: Turns
) -> Body:
    """Receive a whole body.

    Args:
        turns: Large texts are read in turn.

    Raises:
        InvalidRequest: `INVALID_DATA_URL`, or as `read_json`.
        LimitExceeded: `SPEC_TOO_LARGE` for the text; `MEDIA_TOO_LARGE`, `REQUEST_TOO_LARGE`, `LIMIT_EXCEEDED` for the files.
        DeadlineExceeded: As `Upload.chunk`.
        Overloaded: `MEMORY_BUDGET_FULL`, `SHARED_MEMORY_FULL`.
    """
    reader = BodyReader(resources, limits, wire.max_message_bytes)
    while (chunk := await upload.chunk()) is not None:
        await reader.push(chunk.data)
    text, files = reader.finish()
    if len(text) > _LARGE_TEXT_LENGTH:
        await turns.next()
    if value_count(text, wire.max_spec_parts) > wire.max_spec_parts:
        raise LimitExceeded(
            f"more than {wire.max_spec_parts} values in one request; send fewer", reason="SPEC_TOO_LARGE"
        )
    return Body(read_json(text, dict, "the body"), files)


class BodyReader:
    """Parts text and files.

    Args:
        resources: Hold the files.
        max_text_bytes: The most text beside them.
    """

    def __init__(self, resources: RequestResources, limits: Limits, max_text_bytes: int) -> None:
        self._resources = resources
        self._limits = limits
        self._max_text_bytes = max_text_bytes
        self._total = FilesTotal(limits)
        self._mark = secrets.token_hex(16)
        self._text = bytearray()
        self._pending = b""
        self._files: dict[str, memoryview] = {}
        self._file: _File | None = None

    async def push(self, piece: bytes) -> None:
        """Read the next bytes."""
        self._pending += piece
        while await (self._find_file() if self._file is None else self._read_file(self._file)):
            pass

    def finish(self) -> tuple[str, Mapping[str, memoryview]]:
        """The text, and the files by their marks."""
        if self._file is not None:
            raise InvalidRequest("the body ends within a file; send it whole", reason="UPLOAD_INCOMPLETE")
        self._keep_text(len(self._pending))
        try:
            return self._text.decode(), self._files
        except UnicodeDecodeError:
            raise InvalidRequest("the body is not UTF-8; send JSON in UTF-8", reason="INVALID_JSON") from None

    async def _find_file(self) -> bool:
        """Move text up to the next file; false if more must arrive first."""
        found = _FILE.search(self._pending)
        if found is None:
            # Its first byte was searched already, so it only tells what comes before the next.
            self._keep_text(max(0, len(self._pending) - _KEPT_BYTES))
            return False
        self._limits.check_media_count(len(self._files) + 1)
        kept = found.end("field") if found["field"] else found.start()
        self._keep_text(kept)
        self._pending = self._pending[found.end() - kept :]
        self._file = _File(f"file {len(self._files) + 1}", self._total, self._resources)
        return True

    async def _read_file(self, file: _File) -> bool:
        """Move bytes into the file; false if more must arrive first."""
        end = self._pending.find(b'"')
        if end < 0:
            await file.write(self._pending)
            self._pending = b""
            return False
        await file.write(self._pending[:end])
        mark = f"{self._mark}:{len(self._files)}"
        self._files[mark] = await file.finish()
        self._file, self._pending = None, self._pending[end + 1 :]
        self._text += f'"{mark}"'.encode()
        return True

    def _keep_text(self, length: int) -> None:
        """Move the first pending bytes to the text."""
        if len(self._text) + length > self._max_text_bytes:
            raise LimitExceeded(
                f"more than {self._max_text_bytes} bytes of JSON beside its base64 files; send less text",
                reason="SPEC_TOO_LARGE",
            )
        self._text += self._pending[:length]
        self._pending = self._pending[length:]


class _File:
    """One file while it arrives, of a modality that is not known yet."""

    def __init__(self, key: str, total: FilesTotal, resources: RequestResources) -> None:
        self._base64 = Base64Text(key)
        self._receiver = FileReceiver(Media(key, Modality.VIDEO, b""), total, resources, None)

    async def write(self, text: bytes) -> None:
        if data := self._base64.push(text):
            await self._receiver.write(data)

    async def finish(self) -> memoryview:
        if data := self._base64.finish():
            await self._receiver.write(data)
        return await self._receiver.file.finish()
