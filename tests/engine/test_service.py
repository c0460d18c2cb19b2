"""The whole way: a gateway's request, this service, a real Triton, and tokens back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio

from deploy.triton.local_server import TritonServer
from engine_client import TritonEngine
from preprocessor.client import CallFailed
from preprocessor.config import EngineSettings
from preprocessor.models.family import Model
from preprocessor.service.reading import read_spec
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.engine.served import is_in_shared_memory
from tests.engine.servers import ask_directly, outcome_count, serving
from tests.media import moving_shapes_clip, photo
from tests.service.conftest import Caller, chat, image, video
from tests.service.conftest import serving as serving_prompts
from tests.waiting import GROWING_SECONDS, PATIENCE_SECONDS, eventually

CLIP = moving_shapes_clip(seconds=2, width=160, height=120)
PHOTO = photo(333, 222)
TOKEN_COUNT = 24
SPECS = {
    "text": chat("What is this?"),
    "image": chat(image("photo", PHOTO), "What is this?"),
    "video": chat(video("clip", CLIP, sampling=pb.Sampling(fps=4)), "What moves?"),
    "mixed": chat(
        "Compare", image("a", PHOTO), "with", video("b", CLIP), "and", image("c", photo(90, 200)), "briefly."
    ),
}


@pytest_asyncio.fixture(params=["grpc", "shared-memory"])
async def caller(model: Model, triton: TritonServer, request: pytest.FixtureRequest) -> AsyncIterator[Caller]:
    """A service in front of `triton`, connected as its settings say."""
    settings = EngineSettings(address=triton.grpc_address, transport=request.param)
    async with serving_prompts(model, engine_settings=settings, memory_budget_bytes=512 << 20) as one:
        region = one.server._region
        yield one
    assert region is None or not is_in_shared_memory(region.key)


@pytest.fixture(scope="module")
def expected(triton: TritonServer, model: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    """Tokens of a direct transformers call on what Hugging Face's own processor makes of the same files."""
    from tests.golden import oracle  # not above: it changes how torch registers operators for the process

    prompts = {name: oracle_tensors(oracle, model, spec) for name, spec in SPECS.items()}
    return ask_directly(prompts, TOKEN_COUNT, tmp_path_factory.mktemp("prompts"))


def oracle_tensors(oracle, model: Model, spec: pb.PrepareSpec) -> dict[str, np.ndarray]:  # type: ignore[no-untyped-def]
    answer = oracle.answer(model, read_spec(spec)[0])
    if not len(answer.grid_thw):
        return {"input_ids": answer.token_ids}
    return {
        "input_ids": answer.token_ids,
        "pixel_patches": answer.patches,
        "pixel_mean": np.full(3, 0.5, np.float32),
        "pixel_std": np.full(3, 0.5, np.float32),
        "grid_thw": answer.grid_thw,
        "item_modality": np.array([1 if indices is None else 2 for indices in answer.frame_indices]),
    }


@pytest.mark.parametrize("name", SPECS)
async def test_tokens_equal_those_of_a_script_with_hugging_face_s_processor_and_model(
    caller: Caller, expected: dict[str, list[int]], name: str
) -> None:
    responses = await caller.generate(SPECS[name], max_tokens=TOKEN_COUNT)
    assert [token for response in responses for token in response.delta.token_ids] == expected[name]


async def test_the_answer_is_a_header_then_tokens_with_their_text_then_the_completion(
    caller: Caller, model: Model
) -> None:
    responses = await caller.generate(SPECS["image"], max_tokens=8)
    kinds = [response.WhichOneof("message") for response in responses]
    assert kinds == ["header", *["delta"] * (len(kinds) - 2), "completion"]
    token_ids = [token for response in responses for token in response.delta.token_ids]
    text = "".join(response.delta.text for response in responses)
    assert text == model.tokenizer.decode(token_ids, skip_special_tokens=True)
    completion = responses[-1].completion
    assert completion.finish_reason == pb.FINISH_REASON_LENGTH
    assert completion.prompt_token_count == responses[0].header.token_count
    assert completion.completion_token_count == len(token_ids) == 8
    assert {"decode", "first_token", "generate"} <= {stage.stage for stage in completion.report.stages}


async def test_a_stop_token_ends_the_answer(caller: Caller, expected: dict[str, list[int]]) -> None:
    stop = expected["image"][3]
    spec = pb.GenerateSpec(
        prompt=SPECS["image"], parameters=pb.GenerationParameters(max_tokens=24, stop_token_ids=[stop])
    )
    responses = [one async for one in caller.stub.Generate(iter([pb.GenerateRequest(spec=spec)]))]
    assert responses[-1].completion.finish_reason == pb.FINISH_REASON_STOP
    assert responses[-2].delta.token_ids == [stop]


async def test_a_stop_string_ends_the_answer_and_the_generation(
    caller: Caller, triton: TritonServer, model: Model, expected: dict[str, list[int]]
) -> None:
    before = outcome_count(triton, "cancelled")
    text = model.tokenizer.decode(expected["image"], skip_special_tokens=True)
    stop = text[4:9]
    parameters = pb.GenerationParameters(max_tokens=1000, stop_strings=[stop])
    spec = pb.GenerateSpec(prompt=SPECS["image"], parameters=parameters)
    responses = [one async for one in caller.stub.Generate(iter([pb.GenerateRequest(spec=spec)]))]
    assert "".join(one.delta.text for one in responses) == text[: text.index(stop)]
    assert responses[-1].completion.finish_reason == pb.FINISH_REASON_STOP
    await eventually(lambda: outcome_count(triton, "cancelled") == before + 1)


async def test_a_caller_who_leaves_stops_the_generation(caller: Caller, triton: TritonServer) -> None:
    before = outcome_count(triton, "cancelled")
    spec = pb.GenerateSpec(prompt=SPECS["image"], parameters=pb.GenerationParameters(max_tokens=100_000))
    call = caller.stub.Generate(iter([pb.GenerateRequest(spec=spec)]))
    async for response in call:
        if response.WhichOneof("message") == "delta":
            call.cancel()
            break
    await eventually(lambda: outcome_count(triton, "cancelled") == before + 1)


async def test_a_deadline_stops_the_generation(caller: Caller, triton: TritonServer) -> None:
    spec = pb.GenerateSpec(prompt=SPECS["text"], parameters=pb.GenerationParameters(max_tokens=100_000))
    for seconds in GROWING_SECONDS:
        before = outcome_count(triton, "cancelled")
        has_begun = False
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for response in caller.stub.Generate(iter([pb.GenerateRequest(spec=spec)]), timeout=seconds):
                has_begun |= response.WhichOneof("message") == "delta"
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        if has_begun:
            break
    assert has_begun
    await eventually(lambda: outcome_count(triton, "cancelled") > before)


async def test_what_the_engine_rejects_reaches_the_caller_with_its_text(caller: Caller) -> None:
    with pytest.raises(CallFailed) as caught:
        await caller.generate(SPECS["image"], max_tokens=2**31 - 1)
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "ENGINE_REJECTED")
    assert "positions" in caught.value.message
    assert await caller.generate(SPECS["image"], max_tokens=1)


@pytest.mark.parametrize(
    "parameters", [{"max_tokens": 0}, {"temperature": -1}, {"top_p": 0}, {"top_k": -1}, {"stop_strings": [""]}], ids=str
)
async def test_bad_generation_parameters_are_refused_before_the_engine_is_asked(
    caller: Caller, parameters: dict[str, Any]
) -> None:
    with pytest.raises(CallFailed) as caught:
        await caller.generate(SPECS["text"], **parameters)
    assert (caught.value.code, caught.value.reason) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_GENERATION_PARAMETERS",
    )


async def test_an_engine_that_dies_in_mid_answer_is_unavailable_and_preparing_goes_on(model: Model) -> None:
    with serving("vlm_transformers") as doomed:
        async with serving_prompts(model, TritonEngine(doomed.grpc_address)) as caller:
            spec = pb.GenerateSpec(prompt=SPECS["text"], parameters=pb.GenerationParameters(max_tokens=100_000))
            call = caller.stub.Generate(iter([pb.GenerateRequest(spec=spec)]), timeout=PATIENCE_SECONDS)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                async for response in call:
                    if response.WhichOneof("message") == "delta":
                        doomed.kill()
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            with pytest.raises(CallFailed) as again:
                await caller.generate(SPECS["text"])
            assert (again.value.code, again.value.reason) == (grpc.StatusCode.UNAVAILABLE, "ENGINE_UNAVAILABLE")
            assert (await caller.prepare(SPECS["image"])).header.token_count > 0
            await caller.server.health.refresh()
            assert caller.server.health.trouble
