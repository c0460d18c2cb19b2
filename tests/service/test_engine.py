"""The requests that the service sends to an engine, how it handles the responses, and its engine settings."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import ml_dtypes
import numpy as np
import pytest

from engine_client import EngineCapabilities, EngineOverloaded, EngineRequest, EngineUnavailable, PixelType
from engine_client.contract.tensors import CONTRACT_INPUTS, VISION_TENSORS
from engine_client.testing import FakeEngine
from preprocessor import pipeline
from preprocessor.client import CallFailed
from preprocessor.config import EngineSettings, SettingError
from preprocessor.models.family import Model
from preprocessor.service import engine_pixels
from preprocessor.service.engine import connect_engines
from preprocessor.service.reading import read_spec
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.media import moving_shapes_clip, photo
from tests.plans import pixels_of as plan_pixels
from tests.service.conftest import Caller, chat, image, serving, video
from tests.waiting import eventually

CLIP = moving_shapes_clip(seconds=1, width=96, height=64)


class Keeping(FakeEngine):
    """Keeps what it was asked as it was: the arrays are the service's only until the first token."""

    def __init__(self, capabilities: EngineCapabilities) -> None:
        super().__init__(token_ids=(11, 12), capabilities=capabilities)
        self.pixels: list[np.ndarray] = []
        self.are_shared: list[bool] = []

    async def generate(self, request: EngineRequest, **options: object):  # type: ignore[no-untyped-def]
        pixels = request.tensors["pixel_patches"]
        if request.pending is not None:
            await request.pending.wait_past(len(pixels) - 1)
        self.pixels.append(pixels.copy())
        self.are_shared.append(self.region is not None and self.region.offset_of(pixels) is not None)
        async for step in super().generate(request, **options):  # type: ignore[arg-type]
            yield step


def pixels_of(model: Model, spec: pb.PrepareSpec, form: pb.PixelForm.ValueType) -> bytes:
    """What the pipeline makes of that prompt in that form."""
    asked = pb.PrepareSpec()
    asked.CopyFrom(spec)
    asked.pixel_form = form
    result = pipeline.prepare(model, read_spec(asked)[0])
    return result.tensors[plan_pixels(result.plan).name].tobytes()


def test_what_the_pipeline_makes_is_what_the_contract_says(model: Model) -> None:
    """The pipeline knows no engine, so it has these names and types a second time: here they are compared."""
    tensors = pipeline.prepare(model, read_spec(chat(video("clip", CLIP)))[0]).tensors
    declared = {name: CONTRACT_INPUTS[name] for name in tensors}
    assert {*VISION_TENSORS, "input_ids", "item_hash", "mrope_position_ids", "mrope_position_delta"} <= declared.keys()
    for name, array in tensors.items():
        assert array.dtype == declared[name].dtype, name
        assert len(array.shape) == len(declared[name].shape), name
        assert all(want in (-1, got) for want, got in zip(declared[name].shape, array.shape, strict=True)), name


@pytest.mark.parametrize("takes_pieces", [True, False], ids=["pieces", "whole"])
@pytest.mark.parametrize(
    ("pixel_types", "form", "dtype"),
    [
        ((PixelType.UINT8, PixelType.FP16), pb.PIXEL_FORM_UINT8, np.uint8),
        ((PixelType.FP16,), pb.PIXEL_FORM_FP16, np.float16),
        ((PixelType.BF16, PixelType.UINT8), pb.PIXEL_FORM_BF16, ml_dtypes.bfloat16),
    ],
    ids=["uint8", "fp16", "bf16"],
)
async def test_the_engine_gets_pixels_of_the_type_that_it_prefers_in_pieces_or_whole(
    model: Model, pixel_types: tuple[PixelType, ...], form: pb.PixelForm.ValueType, dtype: type, takes_pieces: bool
) -> None:
    engine, spec = Keeping(EngineCapabilities(pixel_types, takes_pieces)), chat(video("clip", CLIP))
    spec.pixel_form = pb.PIXEL_FORM_FP32  # the engine decides, not the caller
    async with serving(model, engine) as caller:
        await caller.generate(spec, max_tokens=2)
        assert caller.server.pool.used_bytes == 0
    assert (engine.requests[0].pending is not None) == takes_pieces
    assert engine.pixels[0].dtype == dtype
    assert engine.pixels[0].tobytes() == pixels_of(model, spec, form)


async def test_a_file_that_cannot_be_decoded_reaches_no_engine_that_takes_pixels_whole(model: Model) -> None:
    engine, half = FakeEngine([11], capabilities=EngineCapabilities()), photo()
    async with serving(model, engine) as caller:
        with pytest.raises(CallFailed) as caught:
            await caller.generate(chat(image("photo", half[: len(half) // 2])), max_tokens=2)
        await eventually(lambda: caller.server.pool.used_bytes == 0)
    assert caught.value.reason == "CORRUPT_MEDIA"
    assert engine.requests == []


@pytest.mark.parametrize("takes_pieces", [True, False], ids=["pieces", "whole"])
@pytest.mark.parametrize("error", [RuntimeError("a bug"), OSError("a bug"), AssertionError("a bug")], ids=repr)
async def test_a_fault_while_pixels_are_made_ends_the_call_however_the_engine_takes_them(
    model: Model, monkeypatch: pytest.MonkeyPatch, takes_pieces: bool, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(pipeline, "write_pixels", fail)
    engine = FakeEngine([11], capabilities=EngineCapabilities(takes_pieces=takes_pieces))
    async with serving(model, engine, is_in_process=True) as caller:
        with pytest.raises(CallFailed) as caught:
            await caller.generate(chat(video("clip", CLIP)), max_tokens=2)
        await eventually(lambda: caller.server.pool.used_bytes == 0)
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")


async def test_a_fault_after_the_last_row_ends_the_call(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> None:
        raise AssertionError("a bug")

    monkeypatch.setattr(engine_pixels, "finish_pixels", fail)
    async with serving(model, FakeEngine([11])) as caller:
        with pytest.raises(CallFailed) as caught:
            await caller.generate(chat(video("clip", CLIP)), max_tokens=2)
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")


@pytest.mark.parametrize("reads_shared_memory", [True, False], ids=["shared", "sent"])
async def test_pixels_are_in_shared_memory_where_the_engine_reads_it(model: Model, reads_shared_memory: bool) -> None:
    engine = Keeping(EngineCapabilities(reads_shared_memory=reads_shared_memory))
    before = regions_held()
    async with serving(model, engine, memory_budget_bytes=64 << 20) as caller:
        await caller.generate(chat(video("clip", CLIP)), max_tokens=2)
        assert len(set(regions_held()) - set(before)) == reads_shared_memory
    assert engine.are_shared == [reads_shared_memory]
    assert regions_held() == before


async def test_shared_memory_that_the_engine_cannot_read_is_refused_at_the_start(model: Model) -> None:
    with pytest.raises(SettingError, match=r"--engine-transport.*this engine reads no shared memory"):
        async with serving(model, FakeEngine(), engine_settings=EngineSettings(transport="shared-memory")):
            pass


async def test_no_pixels_are_made_for_an_engine_that_finds_them_by_hash(model: Model) -> None:
    engine = FakeEngine([11], capabilities=EngineCapabilities(takes_hashes_only=True))
    spec = chat(video("clip", CLIP))
    async with serving(model, engine) as caller:
        await caller.generate(spec, max_tokens=2)
        assert caller.server.pool.used_bytes == 0
    tensors = engine.requests[0].tensors
    assert "pixel_patches" not in tensors
    expected = pipeline.prepare(model, read_spec(spec)[0]).tensors
    assert tensors["item_hash"].tobytes() == expected["item_hash"].tobytes()
    assert tensors["grid_thw"].tolist() == expected["grid_thw"].tolist()


@pytest.mark.parametrize(
    ("profile", "pixel_types"), [("", (PixelType.UINT8,)), ('pixel_form = "fp16"', (PixelType.FP16,))]
)
def test_a_tensor_mapping_says_which_pixels_its_engine_takes(
    model: Model, tmp_path: Path, profile: str, pixel_types: tuple[PixelType, ...]
) -> None:
    (tmp_path / "engine.toml").write_text(profile)
    settings = EngineSettings(address="a:1", profile=str(tmp_path / "engine.toml") if profile else "")
    with ThreadPoolExecutor(1) as executor:
        assert connect_engines(settings, model, executor).capabilities.pixel_types == pixel_types


@pytest.mark.parametrize("address", ["tgi://a:1", "a:1,tgi://b:1"])
def test_an_engine_of_an_unknown_scheme_is_refused_with_those_that_there_are(model: Model, address: str) -> None:
    with ThreadPoolExecutor(1) as executor, pytest.raises(SettingError) as raised:
        connect_engines(EngineSettings(address=address), model, executor)
    assert str(raised.value).startswith("--engine: ")
    assert "is unknown; known: triton://, vllm://; none means triton://" in str(raised.value)


class ReadsOn(FakeEngine):
    """Fails, and may go on reading the request's arrays until `read` is called."""

    async def generate(self, request: EngineRequest, **options: object):  # type: ignore[no-untyped-def]
        assert request.on_released is not None
        self.read = request.on_released
        raise EngineUnavailable("the stream broke")
        yield


async def test_memory_that_a_failed_engine_may_still_read_is_not_reused(model: Model) -> None:
    engine = ReadsOn()
    async with serving(model, engine) as caller:
        with pytest.raises(CallFailed, match="the stream broke"):
            await caller.generate(chat(video("clip", CLIP)))
        pool = caller.server.pool
        await eventually(lambda: not pool.running_count)
        assert pool.rows.leased_bytes > 0
        engine.read()
        await eventually(lambda: pool.used_bytes == 0)


async def test_an_overloaded_engine_is_reported_with_retry_info(model: Model) -> None:
    async with serving(model, FakeEngine(error=EngineOverloaded("64 prompts wait already"))) as caller:
        with pytest.raises(CallFailed) as caught:
            await caller.generate(chat("hello"))
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "ENGINE_OVERLOADED")
    assert caught.value.retry_after_seconds == 1.0


@pytest.mark.parametrize(
    ("settings", "option"),
    [
        (EngineSettings(address="a:1", tls_root="/nowhere/ca.pem"), "--engine-tls"),
        (EngineSettings(address="a:1", token_file="/nowhere/token"), "--engine-token-file"),
        (EngineSettings(address="a:1", profile="/nowhere/profile.toml"), "--engine-profile"),
    ],
    ids=["authorities", "token", "profile"],
)
def test_an_unusable_file_is_refused_at_startup(model: Model, settings: EngineSettings, option: str) -> None:
    with ThreadPoolExecutor(1) as executor, pytest.raises(SettingError, match=option):
        connect_engines(settings, model, executor)


@pytest.mark.parametrize("wrong", ["profile", "address", "http_address"])
async def test_a_start_that_is_refused_leaves_no_shared_memory_behind(model: Model, caller: Caller, wrong: str) -> None:
    engine = EngineSettings(address="127.0.0.1:1", profile="/nowhere/profile.toml" if wrong == "profile" else "")
    taken = {} if wrong == "profile" else {wrong: getattr(caller.server, wrong)}
    before = regions_held()
    with pytest.raises(SettingError, match=wrong.replace("_", "-")):
        async with serving(model, engine_settings=engine, memory_budget_bytes=64 << 20, **taken):
            pass
    assert regions_held() == before


def regions_held() -> list[Path]:
    """Regions of this process that have a file in /dev/shm."""
    opened = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            opened.append(link.readlink())
    return sorted(path for path in opened if path.name.startswith("vlm-preprocessor-") and path.exists())
