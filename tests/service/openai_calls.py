"""Requests to the port of OpenAI's API, by OpenAI's own client and by hand."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from openai import AsyncOpenAI

from engine_client import EngineClient
from preprocessor.config import EngineSettings
from preprocessor.models.loaded import LoadedModel
from tests.service.conftest import Caller, serving
from tests.waiting import PATIENCE_SECONDS

QUESTION = {"role": "user", "content": "What is this?"}


def data_url(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def image_part(data: bytes, **fields: object) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(data, "image/jpeg")}, **fields}


def video_part(data: bytes, **fields: object) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": data_url(data, "video/mp4")}, **fields}


def user(*parts: dict[str, Any] | str) -> list[dict[str, Any]]:
    """A conversation of one message."""
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return [{"role": "user", "content": content}]


def client_of(caller: Caller, token: str = "none", **options: Any) -> AsyncOpenAI:
    """A client that makes every call once."""
    return AsyncOpenAI(
        api_key=token,
        base_url=f"http://{caller.server.openai_address}/v1",
        max_retries=0,
        timeout=PATIENCE_SECONDS,
        **options,
    )


@asynccontextmanager
async def serving_openai(
    model: LoadedModel, engine: EngineClient | None = None, **settings: Any
) -> AsyncIterator[tuple[Caller, AsyncOpenAI]]:
    """A service with the port, and a client of it."""
    options: dict[str, Any] = {"openai_address": "127.0.0.1:0", "engine_settings": EngineSettings(), **settings}
    async with serving(model, engine, **options) as caller, client_of(caller) as client:
        yield caller, client
