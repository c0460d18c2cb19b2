"""A service with `--engine-profile`: an engine of another layout gets Hugging Face's own floats, bit for bit."""

from __future__ import annotations

import re
import shutil
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from importlib import resources
from pathlib import Path

import grpc
import numpy as np
import pytest
import pytest_asyncio

from deploy.triton.local_server import TritonServer
from engine_client import format_parameters
from preprocessor.client import CallFailed
from preprocessor.config import EngineSettings
from preprocessor.models.family import Model
from preprocessor.models.fingerprint import fingerprint_parts
from preprocessor.service.reading import read_spec
from preprocessor.types.request import PixelForm
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.engine.served import assert_at_rest
from tests.engine.servers import SCRIPTED_REPOSITORY
from tests.engine.servers import serving as triton_serving
from tests.media import photo
from tests.service.conftest import Caller, chat, image, serving

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
    with triton_serving("legacy_encoders", repository) as server:
        yield server


@pytest_asyncio.fixture(params=["grpc", "shared-memory"])
async def caller(
    legacy_triton: TritonServer, qwen2_vl: Model, form: PixelForm, request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[Caller]:
    """A service with the profile that ships or, for another form, a copy of it."""
    profile = "multimodal_encoders"
    if form is not PixelForm.FP16:
        path = tmp_path / "engine.toml"
        shipped = resources.files("engine_client.triton") / "builtin_mappings" / f"{profile}.toml"
        path.write_text(shipped.read_text().replace('"fp16"', f'"{form.value}"'))
        profile = str(path)
    settings = EngineSettings(
        address=legacy_triton.grpc_address, model="legacy_encoders", profile=profile, transport=request.param
    )
    async with serving(qwen2_vl, engine_settings=settings, worker_count=1, memory_budget_bytes=512 << 20) as one:
        yield one
        await assert_at_rest(one)


async def test_the_engine_gets_what_hugging_face_s_processor_would_have_given_it(
    caller: Caller, qwen2_vl: Model, form: PixelForm
) -> None:
    from tests.golden import oracle  # not above: it changes how torch registers operators for the process
    from tests.parity.compare import pixels_in_form

    theirs = oracle.answer(qwen2_vl, replace(read_spec(SPEC)[0], pixel_form=form))
    pixels, ids = pixels_in_form(theirs, form), theirs.token_ids
    responses = await caller.generate(SPEC, max_tokens=MAX_TOKENS)
    assert [token_id for response in responses for token_id in response.delta.token_ids] == [
        *(1, 1, 1, *pixels.shape),
        int(pixels.astype(np.float64).sum()),
        *theirs.grid_thw[0],
        *(1, len(ids)),
        len(ids),
        ids.sum(),
        MAX_TOKENS,
        zlib.crc32(np.ascontiguousarray(pixels).data) & 0x7FFFFFFF,
    ]
    # The engine tells no reason: it is told from the count of tokens.
    assert responses[-1].completion.finish_reason == pb.FINISH_REASON_STOP


async def test_a_prompt_beyond_the_layout_is_refused_in_the_caller_s_words(caller: Caller) -> None:
    two = chat(image("a", photo(90, 60)), image("b", photo(60, 90)), "Which?")
    with pytest.raises(CallFailed, match=r"grid_thw has shape \[2, 3\]; it is to be sent as \[1, 3\]") as caught:
        await caller.generate(two, max_tokens=MAX_TOKENS)
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "ENGINE_REJECTED")
