"""Prompts that this project prepares, through a real Triton to `vlm_tensorrt_llm`, by every way in which they can come.

With `stand_in/` in TensorRT-LLM's place, which answers with a checksum of the pixels that it was given. They must be
those that Hugging Face's processor makes, in the model's bfloat16.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any

import grpc.aio
import numpy as np
import pytest
import pytest_asyncio

from deploy.triton.local_server import TritonServer
from engine_client import (
    EngineRejected,
    EngineRequest,
    EngineUnavailable,
    OwnedRegion,
    RowProgress,
    SamplingParameters,
    Transport,
    TritonEngine,
)
from engine_client.triton import kserve, messages
from preprocessor.config import EngineSettings
from preprocessor.models.family import Model
from preprocessor.pipeline import prepare
from preprocessor.types.request import (
    ChatPrompt,
    Media,
    MediaPart,
    Message,
    Modality,
    PixelForm,
    PreparationRequest,
    Sampling,
    TextPart,
)
from tests.engine.servers import answer, outcome_count
from tests.engine.tensorrt_llm_model import FOLDER, QWEN3_VL_LAYOUT
from tests.engine.tensorrt_llm_server import serving_stand_in
from tests.media import moving_shapes_clip, photo
from tests.service.conftest import chat, image, serving, video
from tests.waiting import eventually

MODEL = FOLDER.name
CHECKSUM, KEYS, SAMPLING = 9, 10, 11  # stand_in/tensorrt_llm/script.py
END_OF_TURN = 151645
CLIP = Media("clip", Modality.VIDEO, moving_shapes_clip(2, 10, 320, 240), Sampling(frame_count=16))
MEDIA = {
    "photo": (Media("photo", Modality.IMAGE, photo(150, 200, "PNG")),),
    "clip": (CLIP,),
    "mixed": (Media("one", Modality.IMAGE, photo(150, 200, "PNG")), CLIP, Media("two", Modality.IMAGE, photo(90, 300))),
}
Tensors = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    with serving_stand_in(tmp_path_factory, QWEN3_VL_LAYOUT, max_in_flight="16") as running:
        yield running


@pytest_asyncio.fixture
async def client(server: TritonServer) -> AsyncIterator[TritonEngine]:
    async with TritonEngine(server.grpc_address, MODEL) as one:
        yield one


@pytest.fixture(params=MEDIA)
def case(request: pytest.FixtureRequest, load: Callable[[str], Model]) -> tuple[Tensors, int]:
    """A prompt, and the checksum of its pixels in bfloat16 as this project makes them for an engine that wants those."""
    return prepared(load("qwen3-vl"), MEDIA[request.param])


def prepared(model: Model, media: tuple[Media, ...], course: int = CHECKSUM) -> tuple[Tensors, int]:
    parts: tuple[MediaPart | TextPart, ...] = (*(MediaPart(medium.key) for medium in media), TextPart("What is this?"))
    asked = PreparationRequest(ChatPrompt((Message("user", parts),)), media, PixelForm.UINT8)
    tensors = dict(prepare(model, asked).tensors)
    tensors["input_ids"] = tensors["input_ids"].copy()
    tensors["input_ids"][0] = course
    floats = prepare(model, replace(asked, pixel_form=PixelForm.BF16)).tensors["pixel_values"].astype(np.float32)
    kinds = np.repeat(tensors["item_modality"], tensors["grid_thw"].prod(axis=1))
    by_kind = np.concatenate([floats[kinds == kind] for kind in (1, 2)])
    return tensors, zlib.crc32(by_kind.tobytes()) & 0x7FFFFFFF


def finish(request: EngineRequest) -> None:
    assert request.pending is not None
    request.pending.finish(len(request.tensors["pixel_patches"]))


def pending(tensors: Tensors, name: str = "asked") -> EngineRequest:
    return EngineRequest(name, tensors, pending=RowProgress("pixel_patches"))


@pytest.fixture
def tiny_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run of rows that is final is worth a message, and none holds more than 50 rows."""
    monkeypatch.setattr(messages, "MIN_PIECE_BYTES", 1)
    monkeypatch.setattr(messages, "MAX_INLINE_PIECE_BYTES", 50 * 1536)


# -- every way ---------------------------------------------------------------------------------------------------------


async def test_a_prompt_that_is_there_arrives(client: TritonEngine, case: tuple[Tensors, int]) -> None:
    tensors, checksum = case
    assert await answer(client, EngineRequest("asked", tensors)) == [checksum]


@pytest.mark.parametrize("step", [7, 64, 1000])
async def test_a_prompt_arrives_while_it_is_written(
    client: TritonEngine, case: tuple[Tensors, int], step: int, tiny_pieces: None
) -> None:
    tensors, checksum = case
    final = tensors["pixel_patches"]
    request = pending(tensors | {"pixel_patches": np.full_like(final, 99)})
    assert request.pending is not None
    asking = asyncio.create_task(answer(client, request))
    for start in range(0, len(final), step):
        await asyncio.sleep(0)
        request.tensors["pixel_patches"][start : start + step] = final[start : start + step]
        request.pending.finish(min(start + step, len(final)))
    assert await asking == [checksum]


@pytest.mark.parametrize("is_written", [True, False])
async def test_a_prompt_arrives_by_reference(
    server: TritonServer, case: tuple[Tensors, int], is_written: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "MAX_REFERRED_PIECE_BYTES", 100 * 1536)
    tensors, checksum = case
    final = tensors["pixel_patches"]
    with OwnedRegion.create(16 << 20) as region:
        rows = np.frombuffer(region.buffer, np.uint8, final.nbytes, 4096).reshape(final.shape)
        rows[:] = final
        request = pending(tensors | {"pixel_patches": rows})
        async with TritonEngine(
            server.grpc_address, MODEL, shared_region=region, transport=Transport.SHARED_MEMORY
        ) as client:
            asking = asyncio.create_task(answer(client, request))
            if not is_written:
                await eventually(lambda: any(stream.sent_message_count for stream in client._streams))
            finish(request)
            assert await asking == [checksum]
        del request, rows


async def test_a_prompt_in_one_message_of_a_client_that_knows_no_pieces_arrives(
    server: TritonServer, case: tuple[Tensors, int]
) -> None:
    tensors, checksum = case
    wire = kserve.encode_infer_request(MODEL, "asked", tensors)
    async with grpc.aio.insecure_channel(server.grpc_address) as channel:
        call: Any = channel.stream_stream(kserve.SERVICE + "ModelStreamInfer")()
        await call.write(wire)
        replies: list[kserve.InferReply] = []
        while not replies or not replies[-1].is_final:
            replies.append(kserve.decode_infer_reply(await call.read()))
        await call.done_writing()
    assert [token_id for reply in replies for token_id in reply.token_ids] == [checksum]


@pytest.mark.parametrize("transport", ["grpc", "shared-memory"])
async def test_a_gateway_s_request_is_answered_through_the_service(
    server: TritonServer, model: Model, transport: str
) -> None:
    settings = EngineSettings(address=server.grpc_address, model=MODEL, transport=transport)
    async with serving(model, engine_settings=settings, memory_budget_bytes=512 << 20) as caller:
        spec = chat(image("photo", MEDIA["photo"][0].content), video("clip", CLIP.content), "What is this?")
        replies = await caller.generate(spec, max_tokens=8)
    token_ids = [token_id for reply in replies for token_id in reply.delta.token_ids]
    assert token_ids == [0, 1, END_OF_TURN]  # the script's end, at the stop token that the service sends along


# -- what goes along ---------------------------------------------------------------------------------------------------


async def test_blocks_are_keyed_by_each_item_s_digest_and_runs(
    client: TritonEngine, load: Callable[[str], Model]
) -> None:
    tensors, _ = prepared(load("qwen3-vl"), MEDIA["mixed"], KEYS)
    digests = np.ascontiguousarray(tensors["item_hash"]).view(">i4").reshape(-1)
    _, starts, lengths = tensors["item_spans"].T
    assert await answer(client, EngineRequest("asked", tensors)) == [*digests, *starts, *lengths]


async def test_sampling_goes_along_with_the_message_that_opens(
    client: TritonEngine, load: Callable[[str], Model]
) -> None:
    tensors, _ = prepared(load("qwen3-vl"), MEDIA["photo"], SAMPLING)
    sampling = SamplingParameters(max_tokens=7, temperature=0.5, top_p=0.25, top_k=3, seed=5)
    request = EngineRequest("asked", tensors, sampling, pending=RowProgress("pixel_patches"))
    finish(request)
    assert await answer(client, request) == [7, 500, 250, 3, 5]


# -- many, and early ends ----------------------------------------------------------------------------------------------


async def test_prompts_that_come_at_once_do_not_mix(
    client: TritonEngine, load: Callable[[str], Model], tiny_pieces: None
) -> None:
    cases = [
        prepared(load("qwen3-vl"), (Media("photo", Modality.IMAGE, photo(100 + 20 * index, 200, "PNG")),))
        for index in range(8)
    ]
    answers = await asyncio.gather(*(answer(client, EngineRequest(f"{id(t)}", t)) for t, _ in cases))
    assert answers == [[checksum] for _, checksum in cases]


async def test_prompts_that_wait_for_rows_hold_nobody_up(client: TritonEngine, load: Callable[[str], Model]) -> None:
    tensors, checksum = prepared(load("qwen3-vl"), MEDIA["photo"])
    requests = [pending(tensors, f"waits-{index}") for index in range(6)]  # more than builder threads
    asking = [asyncio.create_task(answer(client, request)) for request in requests]
    assert await answer(client, EngineRequest("passes", tensors)) == [checksum]
    for request, task in zip(requests, asking, strict=True):
        assert not task.done()
        finish(request)
        assert await task == [checksum]


async def test_a_prompt_that_is_left_between_two_pieces_never_reaches_the_engine(
    server: TritonServer, client: TritonEngine, load: Callable[[str], Model], tiny_pieces: None
) -> None:
    def reached() -> int:
        return server.log_path.read_text().count("the stand-in takes a prompt")

    tensors, checksum = prepared(load("qwen3-vl"), MEDIA["photo"])
    assert await answer(client, EngineRequest("before", tensors)) == [checksum]
    before, cancelled = reached(), outcome_count(server, "cancelled")
    request = pending(tensors, "left")
    assert request.pending is not None
    asking = asyncio.create_task(answer(client, request))
    request.pending.finish(20)
    await eventually(lambda: [stream.sent_message_count for stream in client._streams] == [2])
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await eventually(lambda: outcome_count(server, "cancelled") == cancelled + 1)
    assert await answer(client, EngineRequest("after", tensors)) == [checksum]
    assert reached() == before + 1


def one_more(rows: np.ndarray) -> np.ndarray:
    return np.concatenate([rows, rows[-1:]])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        pytest.param(one_more, r"has \d+ rows; grid_thw needs \d+", id="too many"),
        pytest.param(lambda rows: rows[:-1], r"\d+ in all; grid_thw needs more", id="too few"),
        pytest.param(lambda rows: rows[:, :-1].copy(), r"must be uint8 \[any, 1536\]", id="too short"),
    ],
)
async def test_wrong_rows_are_rejected_and_the_next_prompt_is_answered(
    client: TritonEngine, load: Callable[[str], Model], change: Any, complaint: str
) -> None:
    tensors, checksum = prepared(load("qwen3-vl"), MEDIA["photo"])
    request = pending(tensors | {"pixel_patches": change(tensors["pixel_patches"])})
    finish(request)
    with pytest.raises(EngineRejected, match=complaint):
        await answer(client, request)
    assert await answer(client, EngineRequest("right", tensors)) == [checksum]


async def test_a_prompt_whose_hashes_are_missing_is_refused_at_its_opening(
    client: TritonEngine, load: Callable[[str], Model]
) -> None:
    tensors, _ = prepared(load("qwen3-vl"), MEDIA["photo"])
    del tensors["item_hash"]
    with pytest.raises(EngineRejected, match="item_hash is missing"):
        await answer(client, pending(tensors))


async def test_a_prompt_whose_rows_never_come_is_ended(
    tmp_path_factory: pytest.TempPathFactory, load: Callable[[str], Model]
) -> None:
    tensors, _ = prepared(load("qwen3-vl"), MEDIA["photo"])
    with serving_stand_in(tmp_path_factory, QWEN3_VL_LAYOUT, max_row_wait_seconds="0.3") as server:
        async with TritonEngine(server.grpc_address, MODEL) as client:
            with pytest.raises(EngineUnavailable, match=r"no rows came for 0\.3 s"):
                await answer(client, pending(tensors))
