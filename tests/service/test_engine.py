"""The requests that the service sends to an engine, how it handles the responses, and its engine settings."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import ml_dtypes
import numpy as np
import pytest

from engine_client import EngineOverloaded, EngineRequest, EngineUnavailable
from engine_client.testing import FakeEngine
from preprocessor import pipeline
from preprocessor.client.calls import CallFailed
from preprocessor.config import EngineSettings, SettingError
from preprocessor.models.family import Model
from preprocessor.service.engine import connect_engine
from preprocessor.service.reading import read_spec
from preprocessor.types.request import PixelForm
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.media import moving_shapes_clip
from tests.service.conftest import Caller, chat, serving, video
from tests.waiting import eventually

CLIP = moving_shapes_clip(seconds=1, width=96, height=64)


class Keeping(FakeEngine):
    """Keeps what it was asked as it was: the arrays are the service's only until the first token."""

    def __init__(self) -> None:
        super().__init__(token_ids=(11, 12))
        self.pixels: list[np.ndarray] = []

    async def generate(self, request: EngineRequest, **options: object):  # type: ignore[no-untyped-def, override]
        pixels = request.tensors["pixel_patches"]
        assert request.pending is not None
        await request.pending.wait_beyond(len(pixels) - 1)
        self.pixels.append(pixels.copy())
        async for step in super().generate(request, **options):  # type: ignore[arg-type]
            yield step


@pytest.mark.parametrize(
    ("profile", "form", "dtype"),
    [
        ("", PixelForm.UINT8, np.uint8),
        ("fp16", PixelForm.FP16, np.float16),
        ("bf16", PixelForm.BF16, ml_dtypes.bfloat16),
    ],
)
async def test_the_engine_gets_pixels_in_the_configured_form(
    model: Model, tmp_path: Path, profile: str, form: PixelForm, dtype: type
) -> None:
    if profile:
        (tmp_path / "engine.toml").write_text(f'pixel_form = "{profile}"\n')
    engine, spec = Keeping(), chat(video("clip", CLIP), pixel_form=pb.PIXEL_FORM_FP32)
    async with serving(
        model, engine, engine_settings=EngineSettings(profile=str(tmp_path / "engine.toml") if profile else "")
    ) as caller:
        await caller.generate(spec, max_tokens=2)
    spec.pixel_form = {PixelForm.UINT8: pb.PIXEL_FORM_UINT8, PixelForm.FP16: pb.PIXEL_FORM_FP16}.get(
        form, pb.PIXEL_FORM_BF16
    )
    expected = pipeline.prepare(model, read_spec(spec)[0])
    assert engine.pixels[0].dtype == dtype
    assert engine.pixels[0].tobytes() == expected.tensors[expected.plan.pixels.name].tobytes()


class ReadsOn(FakeEngine):
    """Fails, and may go on reading the request's arrays until `read` is called."""

    async def generate(self, request: EngineRequest, **options: object):  # type: ignore[no-untyped-def, override]
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
        assert pool.used_bytes == 0


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
        connect_engine(settings, model, executor)


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
    opened = (link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink())
    return sorted(path for path in opened if path.name.startswith("vlm-preprocessor-") and path.exists())
