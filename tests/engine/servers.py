"""Real Triton servers for tests, and the means to watch them."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.child_process import own_shared_memory
from deploy.triton.local_server import (
    INSTALLED,
    RANDOM_WEIGHTS,
    REPOSITORY,
    TritonServer,
    TritonSetupError,
)
from engine_client import EngineClient, EngineRequest, SamplingParameters, TritonEngine

MODEL_DIRECTORY = REPOSITORY / "vlm_transformers"
SCRIPTED_REPOSITORY = Path(__file__).parent / "models"
# EPERM and EACCES; EINVAL, as `/` of a chroot is no mount point; ENOSYS.
_REFUSALS = ("not permitted", "denied", "Invalid argument", "not implemented")
LONG_ANSWER = SamplingParameters(max_tokens=100_000)
"""Minutes of tokens: a test that waits for its end has failed."""


@contextmanager
def serving(
    model: str,
    repository: Path = REPOSITORY,
    *options: str,
    environment: Mapping[str, str] = RANDOM_WEIGHTS,
    shared_memory_bytes: int | None = None,
) -> Iterator[TritonServer]:
    """A server with that model, killed at the end: an orderly one takes three seconds.

    Where none is installed the test fails, rather than be skipped and prove nothing.
    """
    if shared_memory_bytes is not None:
        require_own_shared_memory()
    with ExitStack() as stack:
        try:
            server = stack.enter_context(
                TritonServer(
                    [model],
                    repository=repository,
                    environment=environment,
                    options=options,
                    shared_memory_bytes=shared_memory_bytes,
                )
            )
        except TritonSetupError as error:
            pytest.fail(f"no Triton to test with, run make triton: {error}", pytrace=False)
        try:
            yield server
        finally:
            server.kill()


def require_own_shared_memory() -> None:
    """Skip the test where the kernel gives no process a `/dev/shm` of its own, as in a chroot or an unprivileged container."""
    refusal = _own_shared_memory_refusal()
    if refusal:
        pytest.skip(f"no /dev/shm of its own for a process here: {refusal}")


@cache
def _own_shared_memory_refusal() -> str:
    probed = subprocess.run([*own_shared_memory(1 << 20), "true"], capture_output=True, text=True, check=False)
    is_refused = probed.returncode and any(word in probed.stderr for word in _REFUSALS)
    if probed.returncode and not is_refused:
        pytest.fail(f"unshare broke, which is no refusal: {probed.stderr}", pytrace=False)
    return probed.stderr.strip() if is_refused else ""


class Gate:
    """Until it is opened, `scripted` prompts that are to end as HELD and have its seed stop before token number `top_k`."""

    def __init__(self) -> None:
        self.seed = secrets.randbits(63) | 1
        self._path = Path(f"/dev/shm/scripted-{self.seed}")
        self._path.touch()

    def open(self) -> None:
        self._path.unlink(missing_ok=True)


async def answer(engine: EngineClient, request: EngineRequest, timeout_seconds: float | None = None) -> list[int]:
    """All token ids that come."""
    steps = engine.generate(request, timeout_seconds=timeout_seconds)
    return [token_id async for step in steps for token_id in step.token_ids]


def be_impatient(engine: TritonEngine, max_silence_seconds: float | None = 0.3) -> None:
    """From now on bear no longer silence of an engine, on streams under way too.

    For one that will not answer any more: a patience that short from the beginning would be over before a busy machine has
    answered at all.
    """
    engine._max_silence_seconds = max_silence_seconds
    for stream in engine._streams:
        stream._max_silence_seconds = max_silence_seconds
        stream._changed.set()  # whoever waits begins to wait anew


def ask_directly(
    prompts: Mapping[str, Mapping[str, np.ndarray]], token_count: int, directory: Path, *save_directory: str
) -> dict[str, list[int]]:
    """What transformers itself answers to each prompt: see `direct_answers.py`, which runs in the models' own Python."""
    for name, tensors in prompts.items():
        np.savez(directory / f"{name}.npz", **dict[str, Any](tensors))
    python = os.environ.get("TRITON_PYTHON", INSTALLED / "venv/bin/python")
    script = Path(__file__).with_name("direct_answers.py")
    ran = subprocess.run(
        [python, script, MODEL_DIRECTORY, directory, str(token_count), *save_directory],
        env={"OMP_NUM_THREADS": "1"} | dict(os.environ),  # as the server: threads change the order of float sums
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    answers: dict[str, list[int]] = json.loads(ran.stdout.splitlines()[-1])
    return answers


def outcome_count(server: TritonServer, outcome: str) -> int:
    """How many prompts `vlm_transformers` has ended so."""
    label = f'outcome="{outcome}"'
    samples = (line for line in server.metrics().splitlines() if line.startswith("vlm_generations_total{"))
    return int(float(next(line for line in samples if label in line).split()[-1]))
