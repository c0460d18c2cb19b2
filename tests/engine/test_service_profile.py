"""`preprocessor serve --engine-profile`: an engine of another layout gets Hugging Face's own floats, bit for bit."""

from __future__ import annotations

import asyncio
import re
import shutil
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import resources

import grpc
import numpy as np
import pytest

from deploy.triton.local_server import TritonServer
from engine_client import format_parameters
from preprocessor.client import CHANNEL_OPTIONS, CallFailed, generate
from preprocessor.models.family import Model
from preprocessor.models.fingerprint import fingerprint_parts
from preprocessor.service.reading import read_spec
from preprocessor.types.asked import PixelForm
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.bench.service.watched import WatchedServer
from tests.engine.servers import SCRIPTED_REPOSITORY, serving
from tests.media import photo
from tests.service.conftest import chat, image
from tests.waiting import eventually

SPEC = chat(image("photo", photo(333, 222)), "What is this?")
MAX_TOKENS = 99


@pytest.fixture(scope="module")
def qwen2_vl(load: Callable[[str], Model]) -> Model:
    return load("qwen2-vl")


@pytest.fixture(scope="module", params=[PixelForm.FP16, PixelForm.FP32], ids=lambda form: form.name)
def form(request: pytest.FixtureRequest) -> PixelForm:
    found = request.param
    assert isinstance(found, PixelForm)
    return found


@pytest.fixture(scope="module")
def legacy_triton(qwen2_vl: Model, form: PixelForm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """`legacy_encoders`, set up for this model as `preprocessor fingerprint` says, for pixels in that form."""
    repository = tmp_path_factory.mktemp("repository")
    shutil.copytree(SCRIPTED_REPOSITORY / "legacy_encoders", repository / "legacy_encoders")
    config = repository / "legacy_encoders" / "config.pbtxt"
    text = re.sub(r"parameters \[.*?\n\]\n", "", config.read_text(), flags=re.DOTALL)
    text = text.replace("TYPE_FP16", f"TYPE_{form.name}")
    config.write_text(f"{text}parameters [\n{format_parameters(fingerprint_parts(qwen2_vl))}\n]\n")
    with serving("legacy_encoders", repository) as server:
        yield server


@pytest.fixture(scope="module", params=["grpc", "shared-memory"])
def server(
    legacy_triton: TritonServer,
    form: PixelForm,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[WatchedServer]:
    """`preprocessor serve`, with the profile that ships or, for another form, a copy of it."""
    profile = "multimodal_encoders"
    if form is not PixelForm.FP16:
        path = tmp_path_factory.mktemp("profile") / "engine.toml"
        shipped = resources.files("engine_client") / "builtin_profiles" / f"{profile}.toml"
        path.write_text(shipped.read_text().replace('"fp16"', f'"{form.value}"'))
        profile = str(path)
    options = ("--model", "qwen2-vl", "--workers", "1", "--memory-budget", "512MiB", "--engine-profile", profile)
    engine = ("--engine", legacy_triton.grpc_address, "--engine-model", "legacy_encoders")
    with WatchedServer(*options, *engine, "--engine-transport", request.param) as one:
        yield one


async def answer(server: WatchedServer, spec: pb.PrepareSpec) -> list[pb.GenerateResponse]:
    def call() -> list[pb.GenerateResponse]:
        with grpc.insecure_channel(server.address, options=CHANNEL_OPTIONS) as channel:
            parameters = pb.GenerationParameters(max_tokens=MAX_TOKENS)
            return list(generate(channel, spec, parameters, {}, timeout_seconds=60))

    return await asyncio.to_thread(call)


async def test_the_engine_gets_what_hugging_face_s_processor_would_have_given_it(
    server: WatchedServer, qwen2_vl: Model, form: PixelForm
) -> None:
    from tests.golden import oracle  # not above: it changes how torch registers operators for the process
    from tests.parity.compare import pixels_in_form

    theirs = oracle.answer(qwen2_vl, replace(read_spec(SPEC)[0], pixel_form=form))
    pixels, ids = pixels_in_form(theirs, form), theirs.token_ids
    responses = await answer(server, SPEC)
    assert [token_id for response in responses for token_id in response.delta.token_ids] == [
        *(1, 1, 1, *pixels.shape),
        int(pixels.astype(np.float64).sum()),
        *theirs.grid_thw[0],
        *(1, len(ids)),
        len(ids),
        ids.sum(),
        MAX_TOKENS,
        zlib.crc32(np.ascontiguousarray(pixels)) & 0x7FFFFFFF,
    ]
    # The engine tells no reason: it is told from the count of tokens.
    assert responses[-1].completion.finish_reason == pb.FINISH_REASON_STOP
    await eventually(server.is_at_rest)


async def test_a_prompt_beyond_the_layout_is_refused_in_the_caller_s_words(server: WatchedServer) -> None:
    two = chat(image("a", photo(90, 60)), image("b", photo(60, 90)), "Which?")
    with pytest.raises(CallFailed, match=r"grid_thw has shape \[2, 3\]; it is to be sent as \[1, 3\]") as caught:
        await answer(server, two)
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "ENGINE_REJECTED")
    await eventually(server.is_at_rest)
