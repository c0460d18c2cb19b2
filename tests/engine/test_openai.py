"""OpenAI's client, this service, a real Triton: the answers that a caller by gRPC gets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from deploy.triton.local_server import TritonServer
from preprocessor.config import EngineSettings
from preprocessor.models.family import Model
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.engine.servers import outcome_count
from tests.media import moving_shapes_clip, photo
from tests.service.conftest import Caller, chat, image, video
from tests.service.openai_calls import image_part, serving_openai, user, video_part
from tests.waiting import eventually

CLIP = moving_shapes_clip(seconds=2, width=160, height=120)
PHOTO = photo(333, 222)
PROMPTS: dict[str, tuple[Any, pb.PrepareSpec]] = {
    "text": (user("What is this?"), chat("What is this?")),
    "mixed": (
        user("Compare", image_part(PHOTO), "with", video_part(CLIP), "briefly."),
        chat("Compare", image("a", PHOTO), "with", video("b", CLIP), "briefly."),
    ),
}


@pytest_asyncio.fixture
async def service(model: Model, triton: TritonServer) -> AsyncIterator[tuple[Caller, AsyncOpenAI]]:
    """A service in front of `triton`."""
    settings = EngineSettings(address=triton.grpc_address)
    async with serving_openai(model, engine_settings=settings, memory_budget_bytes=512 << 20) as served:
        yield served


@pytest.mark.parametrize("name", PROMPTS)
async def test_the_answer_and_its_counts_are_those_by_grpc(service: tuple[Caller, AsyncOpenAI], name: str) -> None:
    caller, client = service
    messages, spec = PROMPTS[name]
    responses = await caller.generate(spec, max_tokens=12)
    options: dict[str, Any] = {"model": "qwen3-vl", "messages": messages, "max_tokens": 12, "temperature": 0}
    whole = await client.chat.completions.create(**options)
    assert whole.choices[0].message.content == "".join(one.delta.text for one in responses)
    completion = responses[-1].completion
    assert whole.usage.prompt_tokens == completion.prompt_token_count
    assert whole.usage.completion_tokens == completion.completion_token_count == 12
    assert whole.choices[0].finish_reason == "length"
    stream = await client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage


async def test_a_caller_who_leaves_stops_the_generation(
    service: tuple[Caller, AsyncOpenAI], triton: TritonServer
) -> None:
    _, client = service
    before = outcome_count(triton, "cancelled")
    stream = await client.chat.completions.create(
        model="", messages=PROMPTS["mixed"][0], max_tokens=100_000, stream=True
    )
    await anext(aiter(stream))
    await stream.close()
    await eventually(lambda: outcome_count(triton, "cancelled") == before + 1)


async def test_what_the_engine_rejects_is_a_bad_request(service: tuple[Caller, AsyncOpenAI]) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await service[1].chat.completions.create(model="", messages=PROMPTS["text"][0], max_tokens=2**31 - 1)
    assert caught.value.code == "ENGINE_REJECTED"
    assert "positions" in caught.value.message
