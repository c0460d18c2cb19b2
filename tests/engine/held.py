"""What tests of held items share: requests without pixels, and the bytes that were written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest

from deploy.triton.local_server import TritonServer
from engine_client import EngineRequest, Pixels, RowProgress, SamplingParameters
from engine_client.triton.stream import PromptStream
from tests.engine.prompts import TOKEN_COUNT

GREEDY = SamplingParameters(max_tokens=TOKEN_COUNT)
Tensors = Mapping[str, np.ndarray]


def hashed(tensors: Tensors, seed: int) -> dict[str, np.ndarray]:
    """The prompt with a hash for each item, of its own."""
    count = len(tensors["grid_thw"])
    return {**tensors, "item_hash": np.random.default_rng(seed).integers(0, 256, (count, 32), np.uint8)}


@dataclass
class OnDemand:
    """A request without pixels, and how often they were asked for."""

    tensors: Tensors
    progress: RowProgress | None = None
    count: int = 0
    error: Exception | None = None

    async def make(self) -> Pixels:
        self.count += 1
        if self.error is not None:
            raise self.error
        return Pixels(self.tensors["pixel_patches"], self.progress)

    @property
    def request(self) -> EngineRequest:
        rest = {name: array for name, array in self.tensors.items() if name != "pixel_patches"}
        return EngineRequest("r", rest, GREEDY, pixels_on_demand=self.make)


def written_bytes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The size of each message that is sent to an engine from now on, in bytes."""
    sizes: list[int] = []
    write = PromptStream._write

    async def note(stream: PromptStream, wire: bytes) -> None:
        sizes.append(len(wire))
        await write(stream, wire)

    monkeypatch.setattr(PromptStream, "_write", note)
    return sizes


def metric(server: TritonServer, name: str, **labels: str) -> float:
    """A sample of the server's metrics."""
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    lines = [line for line in server.metrics().splitlines() if line.startswith(f"{name}{{")]
    return float(next(line for line in lines if all(each in line for each in wanted)).split()[-1])
