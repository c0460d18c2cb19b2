"""What the engine could do: the tensors of one prompt, made once, sent again and again straight to vLLM's gRPC."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import ExitStack, aclosing, asynccontextmanager
from functools import cache

import numpy as np

from engine_client.contract.sampling import SamplingParameters
from engine_client.contract.tensors import HASH_BYTES, INPUT_IDS, PIXELS, Array
from engine_client.shm import OwnedRegion
from engine_client.types import EngineRequest
from engine_client.vllm import VllmEngine
from preprocessor import pipeline
from tests.bench.device.asking import TIMEOUT_SECONDS, same_for_the_pipeline
from tests.bench.device.direct import seed_model
from tests.bench.device.vllm.servers import VllmServer
from tests.bench.device.vllm.systems import Ask, Reply, Workload


class BoundSystem:
    """The engine alone. Each prompt has hashes of its own, so that vLLM's caches know none of them.

    Args:
        by_shared_memory: The pixels lie in a region that vLLM reads; otherwise they are in each message.
    """

    def __init__(self, name: str, server: VllmServer, *, by_shared_memory: bool) -> None:
        self.name = name
        self._server = server
        self._by_shared_memory = by_shared_memory

    def cpu_seconds(self) -> float:
        return self._server.cpu_seconds()

    @asynccontextmanager
    async def connected(self, workload: Workload) -> AsyncGenerator[Ask, None]:
        tensors = dict(_prepared(workload.fps))
        with ExitStack() as stack:
            async with VllmEngine(self._server.address) as engine:
                if self._by_shared_memory:
                    pixels = tensors[PIXELS]
                    region = stack.enter_context(OwnedRegion.create(pixels.nbytes))
                    shared = np.frombuffer(region.buffer, np.uint8, pixels.nbytes).reshape(pixels.shape)
                    shared[:] = pixels
                    tensors[PIXELS] = shared
                    engine.share(region, is_required=True)

                async def ask_once(*_: object) -> Reply:
                    hashes = np.frombuffer(os.urandom(tensors["item_hash"].size), np.uint8).reshape(-1, HASH_BYTES)
                    request = EngineRequest(
                        f"bound-{os.urandom(8).hex()}",
                        {**tensors, "item_hash": hashes},
                        SamplingParameters(max_tokens=workload.max_tokens, temperature=0),
                    )
                    began, first_token_seconds, token_count = time.perf_counter(), 0.0, 0
                    async with aclosing(engine.generate(request, timeout_seconds=TIMEOUT_SECONDS)) as steps:
                        async for step in steps:
                            if step.token_ids:
                                first_token_seconds = first_token_seconds or time.perf_counter() - began
                                token_count += len(step.token_ids)
                    whole_seconds = time.perf_counter() - began
                    return Reply(first_token_seconds, whole_seconds, token_count, len(tensors[INPUT_IDS]))

                yield ask_once


@cache
def _prepared(fps: float) -> Mapping[str, Array]:
    return pipeline.prepare(seed_model(), same_for_the_pipeline(fps)).tensors
