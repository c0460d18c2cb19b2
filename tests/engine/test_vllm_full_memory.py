"""A real vLLM beside the service in a /dev/shm that is too small, or filled by others: tokens by bytes, or a clear status.

The file leaves a server whose /dev/shm is its own.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from deploy.vllm.local_server import VllmServer
from preprocessor.client import CallFailed
from preprocessor.models.family import Model
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.bench.service.watched import WatchedServer
from tests.engine.servers import require_own_shared_memory
from tests.engine.small_memory import answer, beside, filled, served, shared_memory_of
from tests.engine.vllm_prompts import SMALL_AND_LARGE, TOKEN_COUNT, ask_transformers, spec_of
from tests.engine.vllm_server import INSTALLED, SharedVllm
from tests.loading import load_family_model
from tests.waiting import PATIENCE_SECONDS

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not INSTALLED.exists(), reason="no vLLM; `make vllm` sets one up"),
]
SHARED_BYTES = 256 << 20
SPECS = {name: spec_of(media) for name, media in SMALL_AND_LARGE.items()}


@pytest.fixture(scope="module")
def tiny(tiny_qwen3_vl: Path) -> Model:
    return load_family_model(str(tiny_qwen3_vl))


@pytest.fixture(scope="module")
def expected(tiny_qwen3_vl: Path, tiny: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    return ask_transformers(tiny_qwen3_vl, tiny, tmp_path_factory.mktemp("prompts"), SMALL_AND_LARGE)


@pytest.fixture
def server(vllm: SharedVllm, tiny_qwen3_vl: Path) -> VllmServer:
    require_own_shared_memory()
    return vllm.serving(tiny_qwen3_vl, shared_memory_bytes=SHARED_BYTES)


def options(server: VllmServer, checkpoint: Path, budget: str) -> tuple[object, ...]:
    engine = ("--engine", f"vllm://{server.address}", "--cache-share", 0)
    return "--model", checkpoint, *engine, "--workers", 1, "--memory-budget", budget


async def assert_refused(service: WatchedServer, spec: pb.PrepareSpec) -> None:
    with pytest.raises(CallFailed) as caught:
        await answer(service, spec, TOKEN_COUNT, retry_seconds=0)
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "SHARED_MEMORY_FULL")


@contextmanager
def without_free_names(server: VllmServer) -> Iterator[None]:
    """No file or link can be made in its `/dev/shm`."""
    space = os.statvfs(shared_memory_of(server.pid))

    def allow(count: int) -> None:
        remount = ("mount", "--options", f"remount,nr_inodes={count}", "/dev/shm")
        subprocess.run([*beside(server.pid), *remount], check=True)

    allow(space.f_files - space.f_ffree)
    try:
        yield
    finally:
        allow(space.f_files)


async def test_a_dev_shm_that_others_fill_costs_prompts_a_refusal_and_neither_the_service_nor_vllm(
    server: VllmServer, tiny_qwen3_vl: Path, expected: Mapping[str, list[int]]
) -> None:
    cores = server.core_pids()
    async with served(*options(server, tiny_qwen3_vl, "128MiB"), under=beside(server.pid)) as service:
        shared_memory = shared_memory_of(service.process.pid)
        names = {path.name for path in shared_memory.iterdir()}
        with filled(shared_memory, free_bytes=0):
            for name in ("image", "large"):
                await assert_refused(service, SPECS[name])
        for name, spec in SPECS.items():
            assert await answer(service, spec, TOKEN_COUNT) == expected[name]
        assert "by shared memory: it can read" in "".join(service.log)
        assert {path.name for path in shared_memory.iterdir()} == names
    assert server.core_pids() == cores


async def test_where_no_link_fits_into_dev_shm_pixels_are_sent_and_the_log_says_so(
    server: VllmServer, tiny_qwen3_vl: Path, expected: Mapping[str, list[int]]
) -> None:
    async with served(*options(server, tiny_qwen3_vl, "128MiB"), under=beside(server.pid)) as service:
        with without_free_names(server):
            for name, spec in SPECS.items():
                assert await answer(service, spec, TOKEN_COUNT) == expected[name]
        assert "its file cannot be linked: No space left on device" in "".join(service.log)


async def test_where_the_budget_does_not_fit_pixels_are_sent_and_the_log_says_so(
    server: VllmServer, tiny_qwen3_vl: Path, expected: Mapping[str, list[int]]
) -> None:
    async with served(*options(server, tiny_qwen3_vl, "512MiB"), under=beside(server.pid)) as service:
        for name, spec in SPECS.items():
            assert await answer(service, spec, TOKEN_COUNT) == expected[name]
        assert "tensors are sent to the engine, not shared with it" in "".join(service.log)
    assert not list(shared_memory_of(server.pid).glob("vlm-preprocessor-*"))


async def test_a_vllm_that_cannot_use_its_own_memory_costs_a_clear_status_and_is_asked_again_when_it_is_back(
    vllm: SharedVllm, server: VllmServer, tiny_qwen3_vl: Path, expected: Mapping[str, list[int]]
) -> None:
    """vLLM 0.32 keeps queues of its own in `/dev/shm`, and reserves nothing: a page that cannot be had ends its core (SIGBUS)."""
    async with served(*options(server, tiny_qwen3_vl, "128MiB"), under=beside(server.pid)) as service:
        with filled(shared_memory_of(service.process.pid), free_bytes=0):
            try:
                assert await answer(service, SPECS["text"], TOKEN_COUNT, retry_seconds=0) == expected["text"]
            except CallFailed as failure:
                assert failure.code is grpc.StatusCode.UNAVAILABLE
                assert failure.reason == "ENGINE_UNAVAILABLE"
            await assert_refused(service, SPECS["large"])
        again = await asyncio.to_thread(vllm.serving, tiny_qwen3_vl, shared_memory_bytes=SHARED_BYTES)
        assert again.address == server.address
        for name, spec in SPECS.items():
            assert await answer(service, spec, TOKEN_COUNT, retry_seconds=PATIENCE_SECONDS) == expected[name]
