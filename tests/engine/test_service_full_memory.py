"""A /dev/shm as small as a container's default, or filled by others: the service falls back, refuses, or goes on."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import grpc
import grpc.aio
import pytest

from deploy.child_process import own_shared_memory
from deploy.triton.local_server import TritonServer
from preprocessor.client import CallFailed, Client, Prompt
from preprocessor.models.family import Model
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.bench.service.watched import WatchedServer
from tests.engine.served import CHECKSUM, PIECES_PROFILE, SCRIPTED_PROFILE, SPEC, checksum, service_before
from tests.engine.servers import SCRIPTED_REPOSITORY, require_own_shared_memory, serving
from tests.engine.small_memory import DEFAULT_BYTES, answer, filled, served, shared_memory_of
from tests.media import moving_shapes_clip, repeated_clip
from tests.service.conftest import chat, video
from tests.waiting import PATIENCE_SECONDS, eventually

CLIP = repeated_clip(moving_shapes_clip(seconds=5), 6)
LARGE = chat(video("clip", CLIP, sampling=pb.Sampling(fps=4)), "What moves?")
"""53 MB of pixels."""


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    path = tmp_path / "pieces.toml"
    path.write_text(PIECES_PROFILE)
    return path


def own(byte_size: int) -> list[str]:
    """`own_shared_memory`, where the kernel gives it."""
    require_own_shared_memory()
    return own_shared_memory(byte_size)


def engine_options(triton: TritonServer, profile: Path) -> tuple[object, ...]:
    return "--engine", triton.grpc_address, "--engine-model", "pieces", "--engine-profile", profile, "--workers", 1


async def refusal(server: WatchedServer, spec: pb.PrepareSpec, files: dict[str, bytes] | None = None) -> CallFailed:
    def call() -> None:
        with Client(server.address, retry_seconds=0) as client:
            client.prepare(Prompt(spec, files or {}), timeout_seconds=PATIENCE_SECONDS)

    with pytest.raises(CallFailed) as caught:
        await asyncio.to_thread(call)
    return caught.value


async def test_where_the_budget_does_not_fit_into_dev_shm_tensors_are_sent_and_the_log_says_so(
    model: Model, pieces_triton: TritonServer, profile: Path
) -> None:
    options = engine_options(pieces_triton, profile)
    async with served(*options, "--memory-budget", "512MiB", under=own(DEFAULT_BYTES)) as server:
        assert tuple((await answer(server, SPEC))[1:]) == checksum(model)
        assert "tensors are sent to the engine, not shared with it" in "".join(server.log)
        assert not list(shared_memory_of(server.process.pid).iterdir())


def test_where_it_does_not_fit_and_sharing_is_asked_for_the_start_is_refused(profile: Path) -> None:
    options = "--engine 127.0.0.1:1 --engine-transport shared-memory --memory-budget 512MiB --http-address 127.0.0.1:0"
    command = [*own(DEFAULT_BYTES), sys.executable, "-m", "preprocessor", "serve", *options.split()]
    ended = subprocess.run(
        [*command, "--address", "127.0.0.1:0"], capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )
    assert ended.returncode == 2
    [line] = [line for line in ended.stderr.splitlines() if "--engine-transport" in line]
    assert f"/dev/shm has {DEFAULT_BYTES} bytes left; the region needs" in line


async def test_a_dev_shm_that_others_fill_costs_requests_a_refusal_and_the_service_nothing(
    model: Model, pieces_triton: TritonServer, profile: Path
) -> None:
    options = engine_options(pieces_triton, profile)
    async with served(*options, "--memory-budget", "128MiB", under=own(256 << 20)) as server:
        expected = checksum(model, LARGE)
        assert tuple((await answer(server, LARGE))[1:]) == expected
        await eventually(server.is_at_rest)
        with filled(shared_memory_of(server.process.pid), free_bytes=1 << 20):
            error = await refusal(server, chat(video("clip"), "What?"), {"clip": bytes(30 << 20)})
            assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "NOT_MEDIA"), "files lie elsewhere"
            error = await refusal(server, LARGE)
            assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "SHARED_MEMORY_FULL")
            assert error.retry_after_seconds
        assert tuple((await answer(server, LARGE))[1:]) == expected


async def test_a_triton_whose_dev_shm_is_full_fails_that_request_and_takes_the_next(
    model: Model, tmp_path: Path
) -> None:
    profile = SCRIPTED_PROFILE.format(ending=CHECKSUM)
    large = chat(video("clip", CLIP, sampling=pb.Sampling(fps=8)), "What moves?")  # 74 MB, at once
    with serving("scripted", SCRIPTED_REPOSITORY, shared_memory_bytes=DEFAULT_BYTES) as triton:
        async with service_before(model, tmp_path, triton, asks="scripted", profile=profile) as caller:
            with pytest.raises(CallFailed, match="shared memory pool") as caught:
                await caller.generate(large, max_tokens=3)
            assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.INTERNAL, "ENGINE_FAILED")
            responses = await caller.generate(SPEC, max_tokens=3)
            token_ids = [token_id for response in responses for token_id in response.delta.token_ids]
            assert token_ids == [0, 1, 2, checksum(model)[1]]
