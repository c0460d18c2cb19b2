"""`/inspect` of the HTTP port, as browsers and curl call it."""

from __future__ import annotations

import asyncio
import base64
import threading
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from preprocessor.client.answers import ResultAssembler
from preprocessor.config import AccessSettings, Limits
from preprocessor.models.family import Model
from preprocessor.service.inspection import Inspection
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.media import moving_shapes_clip, photo
from tests.service.conftest import Caller, serving
from tests.waiting import PATIENCE_SECONDS, eventually

TOKEN = "not-for-everyone"


def form(text: str = "What is this?", file: bytes | None = None, kind: str = "image/png", **fields: str) -> Any:
    data = aiohttp.FormData({"text": text, **fields}, default_to_multipart=True)
    if file is not None:
        data.add_field("file", file, filename="a.bin" if file else "", content_type=kind)
    return data


async def call(caller: Caller, data: Any = None, **headers: str) -> tuple[int, str, Any]:
    url = f"http://{caller.server.http_address}/inspect"
    async with (
        aiohttp.ClientSession() as session,
        session.request("GET" if data is None else "POST", url, data=data, headers=headers) as response,
    ):
        return response.status, await response.text(), response.headers


def repeated(name: str, *values: str) -> Any:
    data = aiohttp.FormData(default_to_multipart=True)
    for value in values:
        data.add_field(name, value)
    return data


def empty_file() -> Any:
    data = aiohttp.FormData(default_to_multipart=True)
    data.add_field("file", b"", filename="a.png", content_type="image/png")
    return data


async def post_raw(
    caller: Caller, body: bytes, content_type: str = "multipart/form-data; boundary=b", host: str = "localhost"
) -> tuple[int, str]:
    """Status and text of the answer to a body as it is, whose connection stays open."""
    reader, writer = await connect(caller)
    writer.write(head(len(body), content_type, host) + body)
    try:
        status = int((await reader.readline()).split()[1])
        headers = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(headers.partition("content-length:")[2].split()[0])
        return status, (await reader.readexactly(length)).decode()
    finally:
        writer.close()


async def connect(caller: Caller) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = caller.server.http_address.split(":")
    return await asyncio.open_connection(host, int(port))


def head(length: int, content_type: str = "multipart/form-data; boundary=b", host: str = "localhost") -> bytes:
    lines = ("POST /inspect HTTP/1.1", f"Host: {host}", f"Content-Type: {content_type}", f"Content-Length: {length}")
    return "\r\n".join((*lines, "", "")).encode()


TEXT_BEGUN = b"--b\r\nContent-Disposition: form-data; name=text\r\n\r\nHa"
FILE_BEGUN = b"--b\r\nContent-Disposition: form-data; name=file; filename=x\r\nContent-Type: image/png\r\n\r\n"


def is_shown(page: str, token: str) -> bool:
    """Whether the page has frames and a token with that text."""
    return "data:image/png;base64," in page and f">{token}</span>" in page


async def test_it_is_off_by_default(caller: Caller) -> None:
    assert (await call(caller))[0] == 404


async def test_a_form_becomes_a_page_with_frames_and_tokens(model: Model) -> None:
    async with serving(model, is_inspectable=True) as caller:
        status, text, headers = await call(caller)
        assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        assert model.name in text and 'enctype="multipart/form-data"' in text

        status, text, headers = await call(caller, form(file=photo(640, 480), kind="image/jpeg"))
        assert (status, headers["Cache-Control"]) == (200, "no-store")
        assert is_shown(text, "What")

        clip = moving_shapes_clip(seconds=2)
        status, text, _ = await call(caller, form("And now?", fps="2", file=clip, kind="video/mp4"))
        assert status == 200 and is_shown(text, "And") and "2 a second" in text
        assert "decided by" in text and "fps" in text
        for nothing in (None, b""):  # a browser sends an empty file where none was chosen
            status, text, _ = await call(caller, form("Only a text.", file=nothing))
            assert status == 200 and "no media" in text

        refused = (
            (form(file=b"no image"), 400, "NOT_MEDIA"),
            (form(file=b"x", kind="application/pdf"), 400, "INVALID_FORM"),
            (form(fps="fast", file=clip, kind="video/mp4"), 400, "INVALID_FORM"),
            (form("x" * 70_000), 400, "INVALID_FORM"),
            (form(colour="<b>blue</b>"), 400, "INVALID_FORM"),
            (empty_file(), 400, "EMPTY_MEDIA"),
            (repeated("text", "Once.", "Twice."), 400, "INVALID_FORM"),
            (repeated("file", "no name, so no file"), 400, "INVALID_FORM"),
            ({"text": "not multipart"}, 415, "multipart/form-data"),
        )
        for data, expected, reason in refused:
            status, text, _ = await call(caller, data)
            assert (status, reason in text) == (expected, True), text
            assert "<b>blue" not in text
        assert (await call(caller, form()))[0] == 200, "a refusal leaves nothing behind"


async def test_limits_of_requests_and_of_the_page_hold(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(model, is_inspectable=True, limits=Limits(max_media_bytes=10_000)) as caller:
        status, text, _ = await call(caller, form(file=photo(640, 480) + bytes(10_000), kind="image/jpeg"))
        assert (status, "MEDIA_TOO_LARGE" in text) == (413, True)
    monkeypatch.setattr("preprocessor.service.inspection.INSPECTED_BYTES", 1000)
    async with serving(model, is_inspectable=True) as caller:
        status, text, _ = await call(caller, form(file=photo(640, 480), kind="image/jpeg"))
        assert (status, "PAGE_TOO_LARGE" in text) == (400, True)


async def test_a_token_is_needed_where_the_service_needs_one(model: Model, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"someone {TOKEN}\n")
    tokens.chmod(0o600)

    def basic(token: str) -> str:
        return "Basic " + base64.b64encode(f"anyone:{token}".encode()).decode()

    async with serving(model, is_inspectable=True, access=AccessSettings(token_file=str(tokens))) as caller:
        for headers in ({}, {"Authorization": basic("wrong")}, {"Authorization": "Basic !"}):
            for data in (None, form()):
                status, text, answered = await call(caller, data, **headers)
                assert status == 401 and answered["WWW-Authenticate"].startswith("Basic ")
                assert model.name not in text
        for right in (basic(TOKEN), f"Bearer {TOKEN}"):
            assert (await call(caller, Authorization=right))[0] == 200
            assert (await call(caller, form(), Authorization=right))[0] == 200


async def test_pages_of_other_sites_and_other_hosts_are_refused(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(model, is_inspectable=True) as caller:
        own = f"http://{caller.server.http_address}"
        for headers, expected in (
            ({"Origin": own, "Sec-Fetch-Site": "same-origin"}, 200),
            ({"Sec-Fetch-Site": "none"}, 200),
            ({"Origin": "http://elsewhere.example"}, 403),
            ({"Origin": "null"}, 403),
            ({"Sec-Fetch-Site": "cross-site"}, 403),
        ):
            for data in (None, form()):
                assert (await call(caller, data, **headers))[0] == expected, headers
        monkeypatch.setattr("preprocessor.service.inspection.is_loopback", lambda host: host != "127.0.0.1")
        status, text, _ = await call(caller)
        assert (status, "on this host alone" in text) == (403, True)


async def test_fields_count_before_and_behind_the_file(model: Model) -> None:
    async with serving(model, is_inspectable=True) as caller:
        clip = moving_shapes_clip(seconds=2)
        for names in (("file", "text", "fps"), ("fps", "file", "text"), ("text", "fps", "file")):
            data = aiohttp.FormData(default_to_multipart=True)
            for name in names:
                if name == "file":
                    data.add_field(name, clip, filename="a.mp4", content_type="video/mp4")
                else:
                    data.add_field(name, {"text": "Behind?", "fps": "2"}[name])
            status, text, _ = await call(caller, data)
            assert status == 200 and is_shown(text, "Behind") and "2 a second" in text, names


async def test_a_body_that_is_no_form_is_the_callers_fault(model: Model) -> None:
    async with serving(model, is_inspectable=True) as caller:
        for content_type in ("multipart/form-data", f"multipart/form-data; boundary={'b' * 71}"):
            status, text = await post_raw(caller, b"x", content_type)
            assert (status, "INVALID_FORM" in text) == (400, True), content_type
        nested = b"--b\r\nContent-Disposition: form-data; name=text\r\nContent-Type: multipart/mixed\r\n\r\n--b--\r\n"
        for body in (
            b"",
            b"x",
            b"--b",
            b"--b\r\n",
            b"--b\r\nno header\r\n\r\n",
            TEXT_BEGUN,
            TEXT_BEGUN + b"\r\n--b",
            TEXT_BEGUN + b"\r\n--b\r\nx",
            FILE_BEGUN,
            FILE_BEGUN + bytes(100_000),
            b"--b\r\nContent-Disposition: form-data; name=_charset_\r\n\r\n" + b"x" * 100 + b"\r\n--b--\r\n",
            nested,
        ):
            status, text = await post_raw(caller, body)
            assert (status, 'role="alert"' in text) == (400, True), body[:200]
        assert (await call(caller, form()))[0] == 200


async def test_an_upload_that_stalls_keeps_nobody_waiting(model: Model) -> None:
    async with serving(model, is_inspectable=True) as caller:
        stalled = [await connect(caller) for _ in range(3)]
        for (_, writer), begun in zip(stalled, (b"", TEXT_BEGUN, FILE_BEGUN + b"x"), strict=True):
            writer.write(head(1000) + begun)
            await writer.drain()
        await eventually(lambda: caller.server.metrics.open_call_count() == 3)
        async with asyncio.timeout(10):  # of the 30 s that an upload may be silent
            assert (await call(caller, form(file=photo(64, 64), kind="image/jpeg")))[0] == 200
        for _, writer in stalled:
            writer.close()


async def test_one_page_is_made_at_a_time(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    being_made, most, is_free = 0, 0, threading.Event()
    write_page = Inspection._write_page

    class Assembler(ResultAssembler):
        def add(self, response: pb.PrepareResponse) -> None:
            nonlocal being_made, most
            being_made += response.HasField("header")
            most = max(most, being_made)
            super().add(response)

    def write(self: Inspection, assembler: ResultAssembler, spec: pb.PrepareSpec) -> str:
        nonlocal being_made
        assert is_free.wait(PATIENCE_SECONDS)
        being_made -= 1
        return write_page(self, assembler, spec)

    monkeypatch.setattr("preprocessor.service.inspection.ResultAssembler", Assembler)
    monkeypatch.setattr(Inspection, "_write_page", write)
    async with serving(model, is_inspectable=True) as caller:
        forms = [form(file=photo(640 + number, 480), kind="image/jpeg") for number in range(4)]
        calls = [asyncio.create_task(call(caller, one)) for one in forms]
        await eventually(lambda: being_made == 1)
        with monkeypatch.context() as impatient:
            impatient.setattr("preprocessor.service.inspection._TURN_SECONDS", 0.01)
            status, text, _ = await call(caller, form())
            assert (status, "DEADLINE_EXCEEDED: other pages" in text) == (504, True)
        is_free.set()
        assert [status for status, _, _ in await asyncio.gather(*calls)] == [200] * 4
        assert (most, being_made) == (1, 0)


async def test_another_name_of_the_host_is_refused(model: Model) -> None:
    """A site whose name leads here, DNS rebinding, has pages that a browser takes for this service's own."""
    async with serving(model, is_inspectable=True) as caller:
        port = caller.server.http_address.partition(":")[2]
        for host in (f"evil.com:{port}", "evil.com", "127.0.0.1.evil.com", "localhost.evil.com", "[::1", ""):
            for data in (None, form()):
                status, text, _ = await call(caller, data, Host=host, Origin=f"http://{host}")
                assert (status, "by no other name" in text) == (421, True), host
        for host in (f"127.0.0.1:{port}", "localhost", f"LOCALHOST:{port}", "[::1]:8080", "10.0.0.1"):
            assert (await call(caller, Host=host, Origin=f"http://{host}"))[0] == 200, host
    async with serving(model, is_inspectable=True, http_address="localhost:0") as caller:
        assert (await call(caller))[0] == 200


async def test_a_caller_who_leaves_half_way_keeps_nobody_waiting(model: Model) -> None:
    async with serving(model, is_inspectable=True) as caller:
        _, writer = await connect(caller)
        writer.write(head(1000) + TEXT_BEGUN)
        await writer.drain()
        writer.close()
        assert (await call(caller, form()))[0] == 200
