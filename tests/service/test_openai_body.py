"""A body as it arrives, in any pieces: the text, and the files in it."""

from __future__ import annotations

import base64
import json
import random
import time
from collections.abc import AsyncIterator, Iterable, Mapping

import pytest
import pytest_asyncio

from preprocessor.config import Limits
from preprocessor.errors import InvalidRequest, LimitExceeded, PreprocessorError
from preprocessor.service.openai.base64_text import Base64Text
from preprocessor.service.openai.body import BodyReader
from preprocessor.types.timing import Timings
from preprocessor.workers.resources import RequestResources
from tests.service.conftest import Caller
from tests.waiting import PATIENCE_SECONDS

FILE = random.Random(1).randbytes(1000)
BASE64 = base64.b64encode(FILE).decode()
TEXT_BYTES = 1 << 20


@pytest_asyncio.fixture
async def resources(caller: Caller) -> AsyncIterator[RequestResources]:
    async with RequestResources(caller.server.pool, time.monotonic() + PATIENCE_SECONDS, Timings()) as held:
        yield held


async def read(
    resources: RequestResources,
    pieces: Iterable[bytes],
    limits: Limits | None = None,
    max_text_bytes: int = TEXT_BYTES,
) -> tuple[str, Mapping[str, memoryview]]:
    reader = BodyReader(resources, limits or Limits(), max_text_bytes)
    for piece in pieces:
        await reader.push(piece)
    return reader.finish()


async def filled(resources: RequestResources, pieces: Iterable[bytes]) -> object:
    """The JSON, with each file as bytes in its place."""
    text, files = await read(resources, pieces)

    def fill(value: object) -> object:
        match value:
            case dict():
                return {key: fill(one) for key, one in value.items()}
            case list():
                return [fill(one) for one in value]
            case str() if value in files:
                return bytes(files[value])
        return value

    return fill(json.loads(text))


BODY = json.dumps(
    {
        "text": 'a \\ and "quotes", and "data:image/png;base64,in a text" 🎉',
        "image": f"data:image/png;base64,{BASE64}",
        "input_audio": {"data": BASE64, "format": "wav"},
        "data": "a short text",
        "data:": "data:text/plain,no base64",
        "empty": "data:;base64,",
        "after": [1, 2, {"data": {"data": "x"}}],
    },
    ensure_ascii=False,
).encode()
FILLED = {**json.loads(BODY), "image": FILE, "input_audio": {"data": FILE, "format": "wav"}, "empty": b""}


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 553, 1024, len(BODY)])
async def test_a_body_is_the_same_in_pieces_of_any_size(resources: RequestResources, size: int) -> None:
    assert await filled(resources, (BODY[at : at + size] for at in range(0, len(BODY), size))) == FILLED


async def test_a_body_is_the_same_wherever_it_is_cut(resources: RequestResources) -> None:
    for at in range(0, len(BODY), 5):
        assert await filled(resources, (BODY[:at], BODY[at:])) == FILLED, at


@pytest.mark.parametrize("size", [1, 2, 5, 6, 7, 1000])
@pytest.mark.parametrize(
    "written",
    [
        BASE64,
        BASE64.rstrip("="),
        BASE64.replace("+", "-").replace("/", "_"),
        BASE64.replace("/", "\\/"),
        BASE64.replace("+", "\\u002B").replace("/", "\\/"),
        "\\r\\n".join(BASE64[at : at + 76] for at in range(0, len(BASE64), 76)),
    ],
    ids=["plain", "no padding", "URL-safe", "PHP", ".NET", "lines"],
)
def test_base64_is_read_as_any_client_writes_it(written: str, size: int) -> None:
    text, encoded = Base64Text("file"), written.encode()
    pieces = [text.push(encoded[at : at + size]) for at in range(0, len(encoded), size)]
    assert b"".join(pieces) + text.finish() == FILE


@pytest.mark.parametrize("length", range(8))
def test_base64_of_every_length_is_read_a_character_at_a_time(length: int) -> None:
    text = Base64Text("file")
    pieces = [text.push(bytes([one])) for one in base64.b64encode(FILE[:length])]
    assert b"".join(pieces) + text.finish() == FILE[:length]


@pytest.mark.parametrize("size", [1, 4, 1000])
@pytest.mark.parametrize(
    "written", ["AAAA=", "AA==AAAA", "A", "AB==", "AAAÄ", "AA*A", "AAAA\\", "AAAA\\x41", "AAAA\\u00e4", "=AAA"]
)
def test_what_is_no_base64_is_refused(written: str, size: int) -> None:
    text, encoded = Base64Text("file"), written.encode()
    with pytest.raises(InvalidRequest) as caught:
        for at in range(0, len(encoded), size):
            text.push(encoded[at : at + size])
        text.finish()
    assert caught.value.reason == "INVALID_DATA_URL"


@pytest.mark.parametrize(
    ("body", "limits", "reason"),
    [
        (b'{"a": "' + b"x" * TEXT_BYTES + b'"}', Limits(), "SPEC_TOO_LARGE"),
        (BODY, Limits(max_media_bytes=999), "MEDIA_TOO_LARGE"),
        (BODY, Limits(max_request_bytes=1999), "REQUEST_TOO_LARGE"),
        (BODY, Limits(max_media_count=2), "LIMIT_EXCEEDED"),
        (BODY[: BODY.index(BASE64.encode()) + 600], Limits(), "UPLOAD_INCOMPLETE"),
        (b'{"a": "\xff"}', Limits(), "INVALID_JSON"),
    ],
)
async def test_limits_hold_while_a_body_arrives(
    resources: RequestResources, body: bytes, limits: Limits, reason: str
) -> None:
    with pytest.raises(PreprocessorError) as caught:
        await read(resources, [body], limits)
    assert caught.value.reason == reason


async def test_text_is_counted_without_the_files(resources: RequestResources) -> None:
    text, _ = await read(resources, [BODY])
    await read(resources, [BODY], max_text_bytes=len(text.encode()))
    with pytest.raises(LimitExceeded):
        await read(resources, [BODY], max_text_bytes=len(text.encode()) - 200)


async def test_nobody_can_name_a_file_of_the_body(resources: RequestResources) -> None:
    first, second = [(await read(resources, [BODY]))[1].keys() for _ in range(2)]
    assert not first & second
