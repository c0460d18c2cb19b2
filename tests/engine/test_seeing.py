"""A model that sees, behind a real Triton: it says what a clip was drawn from, so pixels and times reach it as they are."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import pytest_asyncio

from deploy.demo_model.questions import KINDS, ask
from deploy.demo_model.story import draw_all, make_clip, make_story
from deploy.triton.local_server import TritonServer
from engine_client.triton import messages
from preprocessor.client import AsyncClient, chat
from preprocessor.config import EngineSettings
from preprocessor.models.family import Model
from tests.engine import seeing
from tests.engine.seeing import BACKWARDS, SAID, SWAPPED, WHAT, WHEN_FIRST, WHEN_LAST, seen, told
from tests.engine.servers import serving
from tests.service.conftest import Caller
from tests.service.conftest import serving as serving_prompts

# A few rows, so that even these clips come in pieces.
PIECE_BYTES = 7 * 1536


@pytest.fixture(scope="module")
def seeing_triton(demo_model: Path) -> Iterator[TritonServer]:
    """`vlm_transformers` with the demo's model."""
    with serving("vlm_transformers", environment={"VLM_CHECKPOINT": str(demo_model)}) as server:
        yield server


@pytest_asyncio.fixture(scope="module", params=["grpc", "shared-memory"])
async def caller(model: Model, seeing_triton: TritonServer, request: pytest.FixtureRequest) -> AsyncIterator[Caller]:
    settings = EngineSettings(address=seeing_triton.grpc_address, transport=request.param)
    async with serving_prompts(model, engine_settings=settings, memory_budget_bytes=512 << 20) as one:
        yield one


@pytest.mark.parametrize(
    ("clip", "expected"),
    [(seeing.forwards, SAID), (seeing.backwards, BACKWARDS), (seeing.swapped, SWAPPED)],
    ids=["as it is", "backwards", "red and blue swapped"],
)
async def test_it_says_what_happens(caller: Caller, clip: Callable[[], bytes], expected: str) -> None:
    assert await told(caller, seen(clip()), WHAT) == expected


async def test_it_says_what_happens_where_rows_come_in_pieces(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "MIN_PIECE_BYTES", 1)
    monkeypatch.setattr(messages, "MAX_INLINE_PIECE_BYTES", PIECE_BYTES)
    monkeypatch.setattr(messages, "MAX_REFERRED_PIECE_BYTES", PIECE_BYTES)
    for clip, expected in ((seeing.backwards(), BACKWARDS), (seeing.swapped(), SWAPPED)):
        assert await told(caller, seen(clip), WHAT, salt="pieces") == expected


async def test_it_says_when_by_the_times_of_the_clip(caller: Caller) -> None:
    """The same pictures: of the whole clip, of its end alone, twice as many, and said to be shown later."""
    clip = seeing.forwards()
    assert await told(caller, seen(clip), WHEN_FIRST) == "1.0 seconds."
    assert await told(caller, seen(clip), WHEN_LAST) == "4.0 seconds."
    assert await told(caller, seen(clip, start_seconds=3, seconds=3), WHEN_LAST) == "4.0 seconds."
    assert await told(caller, seen(clip, fps=4), WHEN_LAST) == "4.0 seconds."
    assert await told(caller, seeing.listed(0), WHEN_LAST) == "4.0 seconds."
    assert await told(caller, seeing.listed(2), WHEN_FIRST) == "3.0 seconds."
    assert await told(caller, seeing.listed(2), WHEN_LAST) == "6.0 seconds."


async def test_transformers_says_the_same_of_what_is_prepared_in_bf16(
    caller: Caller, model: Model, demo_model: Path
) -> None:
    import torch  # not above, nor what follows: it changes how torch registers operators for the process

    import tests.golden.huggingface  # noqa: F401
    from deploy.examples.to_transformers import model_inputs

    from transformers import AutoModelForImageTextToText  # isort: skip

    network = AutoModelForImageTextToText.from_pretrained(demo_model, dtype=torch.bfloat16)
    for clip, expected in ((seeing.forwards(), SAID), (seeing.backwards(), BACKWARDS), (seeing.swapped(), SWAPPED)):
        prompt = chat([{"role": "user", "content": [seen(clip), WHAT]}], pixel_form="bf16", with_token_types=True)
        async with AsyncClient(caller.server.address) as client:
            tensors = (await client.prepare(prompt)).tensors
        assert tensors["pixel_values"].dtype == ml_dtypes.bfloat16
        inputs = model_inputs({**tensors, "pixel_values": tensors["pixel_values"].astype(np.float32)})
        given = inputs["input_ids"].shape[1]
        answer = network.generate(**inputs, max_new_tokens=48, do_sample=False)[0, given:]
        assert model.tokenizer.decode(answer, skip_special_tokens=True) == expected


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["libx264", "libx265", "libvpx-vp9", "mpeg4"])
async def test_at_least_95_of_100_answers_about_clips_that_it_has_not_seen_are_right(
    caller: Caller, codec: str
) -> None:
    right = asked = 0
    for seed in range(500_000, 500_015):
        story, random = make_story(seed), np.random.default_rng(seed)
        clip = make_clip(draw_all(story), codec=codec, container="mp4")
        for question in [ask(story, kind, random) for kind in KINDS]:
            asked += 1
            answer = await told(caller, seen(clip, seconds=story.seconds), question.text)
            right += answer == question.answer
    assert right >= 0.95 * asked
