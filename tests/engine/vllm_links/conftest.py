"""A region whose pixels a stand-in for vLLM reads, and prompts with pixels in it."""

from __future__ import annotations

import time
import zlib
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from engine_client import (
    EngineClient,
    EngineRequest,
    OwnedRegion,
)
from engine_client.contract.tensors import Array
from engine_client.vllm import VllmEngine
from preprocessor import pipeline
from preprocessor.models.family import Model
from preprocessor.types.request import ChatPrompt, Media, MediaPart, Message, Modality, PreparationRequest, Sampling
from tests.engine.vllm_stand_in import StandIn, serving_stand_in
from tests.media import moving_shapes_clip, photo
from tests.waiting import PATIENCE_SECONDS

CLIP, PHOTO = moving_shapes_clip(seconds=2, width=160, height=120), photo()
IMAGE, VIDEO = Media("i", Modality.IMAGE, PHOTO), Media("v", Modality.VIDEO, CLIP, Sampling(fps=4))


@pytest.fixture
def region() -> Iterator[OwnedRegion]:
    with OwnedRegion.create(64 << 20) as made:
        yield made
        assert links_of(made) == []


@pytest_asyncio.fixture
async def server() -> AsyncIterator[StandIn]:
    async with serving_stand_in() as made:
        yield made


@pytest_asyncio.fixture
async def engine(server: StandIn, region: OwnedRegion) -> AsyncIterator[VllmEngine]:
    async with VllmEngine(server.address) as client:
        client.share(region)
        yield client


def links_of(region: OwnedRegion) -> list[Path]:
    return list(Path("/dev/shm").glob(f"{region.key[1:]}?*"))


def tensors_of(model: Model, *media: Media) -> dict[str, Array]:
    named = tuple(Media(str(index), one.modality, one.data, one.sampling) for index, one in enumerate(media))
    message = Message("user", tuple(MediaPart(one.key) for one in named))
    return dict(pipeline.prepare(model, PreparationRequest(ChatPrompt((message,)), named)).tensors)


def inside(region: OwnedRegion, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """The same, with the pixels in the region."""
    pixels = tensors["pixel_patches"]
    placed = np.frombuffer(region.buffer, np.uint8, pixels.size, 8192).reshape(pixels.shape)
    placed[:] = pixels
    return {**tensors, "pixel_patches": placed}


@dataclass
class Asked:
    """One prompt and what became of it."""

    tensors: Mapping[str, Array]
    token_ids: list[int] = field(default_factory=list)
    released_at_seconds: float = 0.0
    """On `time.monotonic`'s clock; 0 until then."""

    @property
    def is_released(self) -> bool:
        return self.released_at_seconds > 0

    def released(self) -> None:
        assert not self.is_released
        self.released_at_seconds = time.monotonic()

    async def of(self, engine: EngineClient) -> list[int]:
        request = EngineRequest("r", self.tensors, on_released=self.released)
        async with aclosing(engine.generate(request, timeout_seconds=PATIENCE_SECONDS)) as steps:
            async for step in steps:
                self.token_ids += step.token_ids
        return self.token_ids


def checksum(rows: Array) -> int:
    return zlib.crc32(rows.tobytes()) & 0x7FFFFFFF


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if "tensors go to" in each.getMessage()]
