"""The demo's model behind a real vLLM: it says what a clip was drawn from, as it does in Triton, see `test_seeing.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

from preprocessor.config import EngineSettings
from tests.engine import seeing
from tests.engine.seeing import BACKWARDS, SAID, SWAPPED, WHAT, WHEN_FIRST, WHEN_LAST, seen, told
from tests.engine.vllm_server import INSTALLED, NORMALIZED_BEFORE, SharedVllm
from tests.loading import load_family_model
from tests.service.conftest import Caller, serving

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not INSTALLED.exists(), reason="no vLLM; `make vllm` sets one up"),
]


@pytest.mark.parametrize("transport", ["grpc", "shared-memory"])
async def test_it_says_what_happens_and_when_by_uint8(vllm: SharedVllm, demo_model: Path, transport: str) -> None:
    address = vllm.serving(demo_model).address
    settings = EngineSettings(address=f"vllm://{address}", transport=transport)
    async with serving(load_family_model(str(demo_model)), engine_settings=settings) as caller:
        await _assert_it_sees(caller, transport)


async def test_it_says_what_happens_and_when_by_bf16(vllm: SharedVllm, demo_model: Path) -> None:
    address = vllm.serving(demo_model, *NORMALIZED_BEFORE, "--dtype", "bfloat16").address
    settings = EngineSettings(address=f"vllm://{address}")
    async with serving(load_family_model(str(demo_model)), engine_settings=settings) as caller:
        await _assert_it_sees(caller, "bf16")


async def _assert_it_sees(caller: Caller, salt: str) -> None:
    for clip, expected in ((seeing.forwards(), SAID), (seeing.backwards(), BACKWARDS), (seeing.swapped(), SWAPPED)):
        assert await told(caller, seen(clip), WHAT, salt) == expected
    assert await told(caller, seen(seeing.forwards()), WHEN_FIRST, salt) == "1.0 seconds."
    assert await told(caller, seen(seeing.forwards(), start_seconds=3, seconds=3), WHEN_LAST, salt) == "4.0 seconds."
    assert await told(caller, seeing.listed(2), WHEN_LAST, salt) == "6.0 seconds."
