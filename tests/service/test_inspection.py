"""`/inspect` of the HTTP port, as browsers and curl call it."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from preprocessor.config import AccessSettings, Limits
from preprocessor.models.family import Model
from tests.media import moving_shapes_clip, photo
from tests.service.conftest import Caller, serving

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


async def test_a_caller_who_leaves_half_way_keeps_nobody_waiting(model: Model) -> None:
    async with serving(model, is_inspectable=True) as caller:
        host, port = caller.server.http_address.split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            b"POST /inspect HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
            b"Content-Length: 1000\r\n\r\n--b\r\nContent-Disposition: form-data; name=text\r\n\r\nHa"
        )
        await writer.drain()
        writer.close()
        assert (await call(caller, form()))[0] == 200
