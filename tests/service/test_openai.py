"""OpenAI's chat completions, asked for by OpenAI's own client: the same prompts, answers and counts as by gRPC."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from engine_client import EngineFailed
from engine_client.testing import FakeEngine
from preprocessor.client.requests import json_text
from preprocessor.config import FetchSettings
from preprocessor.models.family import Model
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.media import moving_shapes_clip, photo
from tests.service.conftest import Caller, chat, image, video
from tests.service.openai_calls import QUESTION, image_part, serving_openai, user, video_part
from tests.waiting import eventually

CLIP = moving_shapes_clip(seconds=2, width=128, height=96)
PHOTO = photo(96, 64)
ANSWER = 'A "red" circle, ünï 🎉.'
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "zoom", "parameters": {"type": "object", "properties": {}}}},
    {"type": "function", "function": {"name": "crop", "description": "Cut out."}},
]


@dataclass
class Service:
    """A service, its engine, and OpenAI's client."""

    caller: Caller
    engine: FakeEngine
    openai: AsyncOpenAI
    model: Model

    async def complete(self, messages: Any, **options: Any) -> Any:
        return await self.openai.chat.completions.create(
            model="qwen3-vl", messages=messages, **{"temperature": 0, "max_tokens": 100, **options}
        )

    async def chunks(self, messages: Any, **options: Any) -> list[Any]:
        return [chunk async for chunk in await self.complete(messages, stream=True, **options)]

    def answer(self, text: str) -> None:
        self.engine.token_ids = tuple(self.model.tokenizer.encode(text))


@pytest_asyncio.fixture(scope="module")
async def shared(model: Model) -> AsyncIterator[Service]:
    engine = FakeEngine()
    async with serving_openai(model, engine) as (caller, client):
        yield Service(caller, engine, client, model)


@pytest.fixture
def service(shared: Service) -> Service:
    """With an engine that answers `ANSWER`."""
    shared.engine.requests.clear()
    shared.engine.gate = shared.engine.error = None
    shared.answer(ANSWER)
    return shared


async def assert_same_prompt(service: Service, messages: Any, spec: pb.PrepareSpec, **options: Any) -> None:
    """The engine gets what it gets of that spec by gRPC, and both callers are told the same counts."""
    by_http = await service.complete(messages, **options)
    by_grpc = (await service.caller.generate(spec, max_tokens=100))[-1].completion
    first, second = service.engine.requests[-2:]
    assert first.tensors.keys() == second.tensors.keys()
    for name in first.tensors.keys() - {"pixel_patches"}:  # whose memory is free by now; `item_hash` stands for it
        assert first.tensors[name].tolist() == second.tensors[name].tolist(), name
    assert by_http.usage.prompt_tokens == by_grpc.prompt_token_count
    assert by_http.usage.completion_tokens == by_grpc.completion_token_count
    assert by_http.usage.total_tokens == by_grpc.prompt_token_count + by_grpc.completion_token_count


@pytest.mark.parametrize(
    ("messages", "spec", "options"),
    [
        ([QUESTION], chat("What is this?"), {}),
        (user(image_part(PHOTO), "And ", video_part(CLIP)), chat(image("a", PHOTO), "And ", video("b", CLIP)), {}),
        (
            user(video_part(CLIP)),
            chat(video("a", CLIP, sampling=pb.Sampling(fps=4), max_pixel_count=100_000)),
            {"mm_processor_kwargs": {"fps": 4, "max_pixels": 100_000, "do_sample_frames": True}},
        ),
        (
            user(video_part(CLIP), image_part(PHOTO)),
            chat(video("a", CLIP, sampling=pb.Sampling(frame_count=6)), image("b", PHOTO, min_pixel_count=65_536)),
            {
                "media_io_kwargs": {"video": {"num_frames": 6}},
                "mm_processor_kwargs": {"images_kwargs": {"size": {"shortest_edge": 65_536}}},
            },
        ),
        (
            user(video_part(CLIP)),
            chat(video("a", CLIP, sampling=pb.Sampling(every_frame=pb.EveryFrame()))),
            {"media_io_kwargs": {"video": {"num_frames": -1}}},
        ),
        (
            user(video_part(CLIP)),
            chat(video("a", CLIP, sampling=pb.Sampling(fps=3))),
            {"media_io_kwargs": {"video": {"num_frames": -1}}, "mm_processor_kwargs": {"videos_kwargs": {"fps": 3}}},
        ),
    ],
    ids=["text", "media", "fps", "frames", "every frame", "all frames, of which fps"],
)
async def test_the_engine_gets_the_prompt_that_it_gets_by_grpc(
    service: Service, messages: Any, spec: pb.PrepareSpec, options: dict[str, Any]
) -> None:
    await assert_same_prompt(service, messages, spec, extra_body=options)


async def test_a_whole_conversation_is_rendered_with_its_tools(service: Service) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "zoom", "arguments": '{"by": 2, "at": "é"}'}}
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Zoom."}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "done"},
    ]
    spec = pb.PrepareSpec()
    spec.chat.tools_json = json_text(TOOLS)
    spec.chat.messages.add(role="system").parts.add(text="Be brief.")
    spec.chat.messages.add(role="user").parts.add(text="Zoom.")
    spec.chat.messages.add(
        role="assistant", tool_calls_json=json_text([{"function": {"name": "zoom", "arguments": {"by": 2, "at": "é"}}}])
    )
    spec.chat.messages.add(role="tool").parts.add(text="done")
    await assert_same_prompt(service, messages, spec, tools=TOOLS)


async def test_the_answer_is_openai_s_object(service: Service) -> None:
    answer = await service.complete([QUESTION], seed=7)
    assert answer.object == "chat.completion"
    assert answer.model == "qwen3-vl"
    assert answer.system_fingerprint == service.model.fingerprint
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", ANSWER, "stop")
    assert choice.logprobs is None
    cut = await service.complete([QUESTION], max_completion_tokens=3)
    assert (cut.choices[0].finish_reason, cut.usage.completion_tokens) == ("length", 3)


async def test_a_stream_has_the_same_text_and_ends_with_the_usage_if_that_is_wanted(service: Service) -> None:
    chunks = await service.chunks([QUESTION])
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ANSWER
    assert [chunk.choices[0].delta.role for chunk in chunks] == ["assistant", *[None] * (len(chunks) - 1)]
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [*[None] * (len(chunks) - 1), "stop"]
    assert len(chunks) > 5
    assert not any(chunk.usage for chunk in chunks)
    counted = await service.chunks([QUESTION], stream_options={"include_usage": True})
    assert counted[-1].choices == []
    assert counted[-1].usage == (await service.complete([QUESTION])).usage
    assert not any(chunk.usage for chunk in counted[:-1])


async def test_several_answers_have_their_own_texts_and_log_probabilities(service: Service) -> None:
    ids = service.engine.token_ids
    whole = await service.complete([QUESTION], n=2, temperature=1, logprobs=True, top_logprobs=2)
    text = service.model.tokenizer.decode
    assert [choice.message.content for choice in whole.choices] == [text(ids), text(ids[1:])]
    for choice, own in zip(whole.choices, (ids, ids[1:]), strict=True):
        assert [one.logprob for one in choice.logprobs.content] == [-float(token) for token in own]
        assert [one.token for one in choice.logprobs.content] == [text([token]) for token in own]
        assert all(len(one.top_logprobs) == 2 for one in choice.logprobs.content)
    assert whole.usage.completion_tokens == 2 * len(ids) - 1
    chunks = await service.chunks([QUESTION], n=2, temperature=1, logprobs=True)
    for index, choice in enumerate(whole.choices):
        parts = [one for chunk in chunks for one in chunk.choices if one.index == index]
        assert "".join(one.delta.content or "" for one in parts) == choice.message.content
        told = [each.logprob for one in parts if one.logprobs for each in one.logprobs.content]
        assert told == [each.logprob for each in choice.logprobs.content]


async def test_parameters_reach_the_engine(service: Service) -> None:
    schema = {"type": "object", "properties": {"b": {}, "a": {"const": 3}}}
    await service.complete(
        [QUESTION],
        temperature=0.5,
        top_p=0.25,
        seed=-1,
        presence_penalty=0.5,
        frequency_penalty=-1,
        stop=["circle", "x"],
        response_format={"type": "json_schema", "json_schema": {"name": "shape", "schema": schema, "strict": True}},
        extra_body={"top_k": 5, "min_p": 0.125, "repetition_penalty": 1.5, "stop_token_ids": [13]},
    )
    sampling = service.engine.requests[-1].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.25, 5, 0.125)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (0.5, -1, 1.5)
    assert (sampling.seed, sampling.stop_token_ids) == (2**64 - 1, (13,))
    assert sampling.json_schema == json_text(schema)
    await service.complete([QUESTION], extra_body={"top_k": -1})
    assert service.engine.requests[-1].sampling.top_k == 0
    stopped = await service.complete([QUESTION], stop="circle")
    assert (stopped.choices[0].message.content, stopped.choices[0].finish_reason) == ('A "red" ', "stop")


async def test_an_answer_is_random_unless_the_request_says_otherwise(service: Service) -> None:
    for _ in range(2):
        await service.openai.chat.completions.create(model="qwen3-vl", messages=[QUESTION])  # type: ignore[list-item]
    first, second = (request.sampling for request in service.engine.requests)
    assert first.temperature == 1
    assert first.seed != second.seed
    assert first.max_tokens == 1024


async def test_a_tool_call_is_taken_out_of_the_text(service: Service) -> None:
    call = '<tool_call>\n{"name": "zoom", "arguments": {"by": 2}}\n</tool_call>'
    service.answer(f"Let me look. {call}\n{call}")
    whole = (await service.complete([QUESTION], tools=TOOLS)).choices[0]
    assert (whole.message.content, whole.finish_reason) == ("Let me look. ", "tool_calls")
    assert [one.function.name for one in whole.message.tool_calls] == ["zoom", "zoom"]
    assert [one.function.arguments for one in whole.message.tool_calls] == ['{"by": 2}'] * 2
    assert len({one.id for one in whole.message.tool_calls}) == 2
    chunks = await service.chunks([QUESTION], tools=TOOLS)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Let me look. "
    calls = [one for chunk in chunks for one in chunk.choices[0].delta.tool_calls or ()]
    assert [(one.index, one.function.name) for one in calls] == [(0, "zoom"), (1, "zoom")]
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    without = (await service.complete([QUESTION], tools=TOOLS, tool_choice="none")).choices[0]
    assert without.message.tool_calls is None
    assert call in without.message.content


@pytest.mark.parametrize(
    "choice", [{"type": "function", "function": {"name": "zoom"}}, "required"], ids=["named", "the only one"]
)
async def test_a_function_that_must_be_called_constrains_the_answer(service: Service, choice: Any) -> None:
    service.answer('{"by": 2}')
    whole = (await service.complete([QUESTION], tools=TOOLS[:1], tool_choice=choice)).choices[0]
    assert service.engine.requests[-1].sampling.json_schema == json_text(TOOLS[0]["function"]["parameters"])
    assert whole.message.content is None
    (call,) = whole.message.tool_calls
    assert (call.function.name, call.function.arguments) == ("zoom", '{"by": 2}')
    chunks = await service.chunks([QUESTION], tools=TOOLS[:1], tool_choice=choice)
    calls = [one for chunk in chunks for one in chunk.choices[0].delta.tool_calls or ()]
    assert calls[0].function.name == "zoom"
    assert len(calls) > 1
    assert "".join(one.function.arguments for one in calls) == '{"by": 2}'


async def test_a_file_is_sent_once_and_then_named_by_its_uuid(service: Service) -> None:
    named = {"type": "image_url", "image_url": None, "uuid": "the-photo-of-this-test"}
    with pytest.raises(openai.BadRequestError) as caught:
        await service.complete(user(named))
    assert caught.value.code == "MEDIA_NOT_CACHED"
    first = await service.complete(user(image_part(PHOTO, uuid=named["uuid"])))
    assert (await service.complete(user(named))).usage == first.usage
    before, after = service.engine.requests[-2:]
    assert before.tensors["item_hash"].tolist() == after.tensors["item_hash"].tolist()


async def test_media_are_fetched_where_the_deployment_allows_it(model: Model, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(PHOTO)
    part = {"type": "image_url", "image_url": {"url": (tmp_path / "photo.jpg").as_uri(), "detail": "auto"}}
    async with serving_openai(model, FakeEngine([5])) as (_, client):
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(model="", messages=user(part))  # type: ignore[arg-type]
        assert caught.value.code == "FETCH_DISABLED"
        assert caught.value.param == "messages[0].content[0]"
    async with serving_openai(model, FakeEngine([5]), fetch=FetchSettings(roots=str(tmp_path))) as (_, client):
        answer = await client.chat.completions.create(model="", messages=user(part))  # type: ignore[arg-type]
        same = await client.chat.completions.create(model="", messages=user(image_part(PHOTO)))  # type: ignore[arg-type]
        assert answer.usage == same.usage


class Halt(asyncio.Event):
    """A gate that lets three steps pass, and no more."""

    def __init__(self) -> None:
        super().__init__()
        self.passed_count = 0

    async def wait(self) -> Any:
        if self.passed_count == 3:
            await super().wait()
        self.passed_count += 1


@pytest.mark.parametrize("is_stream", [True, False], ids=["stream", "whole"])
async def test_a_caller_who_leaves_in_mid_answer_stops_the_generation(service: Service, is_stream: bool) -> None:
    before, service.engine.gate = service.engine.cancelled_count, (halt := Halt())
    if is_stream:
        answer = await service.complete([QUESTION], stream=True)
        for _ in range(3):
            await anext(answer)
        await answer.close()
    else:
        asked = asyncio.create_task(service.complete([QUESTION]))
        await eventually(lambda: halt.passed_count == 3)
        asked.cancel()
    await eventually(lambda: service.engine.cancelled_count == before + 1)
    await eventually(lambda: service.caller.server.metrics.open_call_count() == 0)
    assert service.caller.server.pool.used_bytes == 0
    assert (await service.caller.samples())["preprocessor_requests_total", "CANCELLED", "Generate"] > 0


async def test_an_engine_that_fails_in_mid_answer_ends_the_stream_with_an_error(service: Service) -> None:
    service.engine.error, service.engine.fail_at_step = EngineFailed("the engine broke"), 3
    answer = await service.complete([QUESTION], stream=True)
    for _ in range(3):
        await anext(answer)
    with pytest.raises(openai.APIError) as caught:
        await anext(answer)
    assert caught.value.code == "ENGINE_FAILED"
    with pytest.raises(openai.InternalServerError) as refused:
        await service.complete([QUESTION])
    assert refused.value.code == "ENGINE_FAILED"


async def test_the_model_that_is_served_is_listed(service: Service) -> None:
    (listed,) = (await service.openai.models.list()).data
    assert listed.id == "qwen3-vl"
    assert await service.openai.models.retrieve("qwen3-vl") == listed
    with pytest.raises(openai.NotFoundError):
        await service.openai.models.retrieve("another")


async def test_synchronous_callers_are_served_too(service: Service) -> None:
    def ask() -> Any:
        with openai.OpenAI(api_key="none", base_url=service.openai.base_url, max_retries=0) as client:
            return client.chat.completions.create(model="", messages=[QUESTION])  # type: ignore[list-item]

    assert (await asyncio.to_thread(ask)).choices[0].message.content == ANSWER


async def test_sound_is_refused_by_a_model_that_takes_none(service: Service) -> None:
    part = {"type": "input_audio", "input_audio": {"data": base64.b64encode(b"RIFF" * 500).decode(), "format": "wav"}}
    with pytest.raises(openai.BadRequestError) as caught:
        await service.complete(user(part))
    assert caught.value.code == "UNSUPPORTED_MODALITY"
