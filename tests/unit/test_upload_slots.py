"""Which of the calls that wait to upload goes first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest

from preprocessor.config import WireSettings
from preprocessor.service import upload_stream
from preprocessor.service.upload_stream import UploadStream
from preprocessor.v1 import preprocessor_pb2 as pb


async def nothing() -> AsyncIterator[pb.PrepareRequest]:
    return
    yield


async def test_the_connection_whose_uploads_took_the_least_time_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(upload_stream, "time", SimpleNamespace(monotonic=lambda: now))
    uploads, order = UploadStream(WireSettings(), 1), []

    async def upload(peer: str, *, held_seconds: float = 0.0) -> None:
        nonlocal now
        async with uploads.upload(nothing(), peer):
            order.append(peer)
            now += held_seconds
            await asyncio.sleep(0)

    await upload("heavy", held_seconds=0.2)
    await upload("light", held_seconds=0.01)
    order.clear()
    async with uploads.upload(nothing(), "somebody"):
        waiting = [asyncio.create_task(upload(peer)) for peer in ("heavy", "heavy", "light", "new")]
        await asyncio.sleep(0)
    await asyncio.gather(*waiting)
    assert order == ["new", "light", "heavy", "heavy"]
