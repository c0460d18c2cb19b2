"""A Triton with `vlm_vllm` whose /dev/shm is small and full: tokens, or a clear status.

Its name puts it behind `test_server_end`, for it has a server of its own, and two would not fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import grpc
import pytest

from deploy.triton.local_server import TritonServer
from preprocessor.client import CallFailed
from preprocessor.models.family import Model
from tests.engine.servers import require_own_shared_memory
from tests.engine.small_memory import answer, beside, filled, served, shared_memory_of
from tests.engine.vllm_prompts import SMALL_AND_LARGE, TOKEN_COUNT, ask_transformers, spec_of
from tests.engine.vllm_triton_server import MARKS, MODEL, serving_vllm_in_triton
from tests.service.conftest import salted

pytestmark = MARKS
SHARED_BYTES = 256 << 20
SPECS = {name: spec_of(media) for name, media in SMALL_AND_LARGE.items()}


@pytest.fixture(scope="module")
def small(tiny_qwen3_vl: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    require_own_shared_memory()
    folder = tmp_path_factory.mktemp("vllm-in-triton")
    with serving_vllm_in_triton(tiny_qwen3_vl, folder, shared_memory_bytes=SHARED_BYTES) as running:
        yield running


@pytest.fixture(scope="module")
def answers(tiny_qwen3_vl: Path, tiny: Model, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, list[int]]:
    return ask_transformers(tiny_qwen3_vl, tiny, tmp_path_factory.mktemp("prompts"), SMALL_AND_LARGE)


def options(server: TritonServer, checkpoint: Path) -> tuple[object, ...]:
    engine = ("--engine", server.grpc_address, "--engine-model", MODEL, "--cache-share", 0)
    return "--model", checkpoint, *engine, "--workers", 1, "--memory-budget", "128MiB"


async def test_a_triton_whose_dev_shm_is_full_fails_that_prompt_at_most_and_takes_the_next(
    small: TritonServer, tiny_qwen3_vl: Path, answers: Mapping[str, list[int]]
) -> None:
    async with served(*options(small, tiny_qwen3_vl), "--engine-transport", "grpc", under=()) as service:
        with filled(shared_memory_of(small.pid), free_bytes=1 << 20):
            try:  # Triton's pool may have become large enough before; it never shrinks
                assert await answer(service, salted(SPECS["large"], 1), TOKEN_COUNT) == answers["large"]
            except CallFailed as failure:
                assert (failure.code, failure.reason) == (grpc.StatusCode.INTERNAL, "ENGINE_FAILED")
                assert "shared memory pool" in failure.message
            assert await answer(service, SPECS["text"], TOKEN_COUNT) == answers["text"]
        for number, (name, spec) in enumerate(SPECS.items(), 2):
            assert await answer(service, salted(spec, number), TOKEN_COUNT) == answers[name]


async def test_a_dev_shm_that_others_fill_costs_prompts_a_refusal_and_neither_the_service_nor_triton(
    small: TritonServer, tiny_qwen3_vl: Path, answers: Mapping[str, list[int]]
) -> None:
    async with served(*options(small, tiny_qwen3_vl), under=beside(small.pid)) as service:
        shared_memory = shared_memory_of(service.process.pid)
        assert await answer(service, SPECS["text"], TOKEN_COUNT) == answers["text"]
        names = {path.name for path in shared_memory.iterdir()}
        with filled(shared_memory, free_bytes=0):
            for name in ("image", "large"):
                with pytest.raises(CallFailed) as caught:
                    await answer(service, SPECS[name], TOKEN_COUNT, retry_seconds=0)
                assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
                assert caught.value.reason == "SHARED_MEMORY_FULL"
        for name, spec in SPECS.items():
            assert await answer(service, spec, TOKEN_COUNT) == answers[name]
        assert {path.name for path in shared_memory.iterdir()} == names
