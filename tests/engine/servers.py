"""Real Triton servers for tests, and the means to watch them."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

from deploy.triton.local_server import INSTALLED, REPOSITORY, TritonServer, TritonSetupError
from engine_client import EngineRequest, SamplingParameters, TritonEngine

MODEL_DIRECTORY = REPOSITORY / "vlm_transformers"
SCRIPTED_REPOSITORY = Path(__file__).parent / "models"
PATIENCE_SECONDS = 20.0
LONG_ANSWER = SamplingParameters(max_tokens=100_000)
"""Minutes of tokens: a test that waits for its end has failed."""


@contextmanager
def serving(
    model: str, repository: Path = REPOSITORY, *options: str, shared_memory_bytes: int | None = None
) -> Iterator[TritonServer]:
    """A server with that model; where none is installed the test fails, rather than be skipped and prove nothing."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(
                TritonServer([model], repository=repository, options=options, shared_memory_bytes=shared_memory_bytes)
            )
        except TritonSetupError as error:
            pytest.fail(f"no Triton to test with, run make triton: {error}", pytrace=False)
        yield server


async def answer(engine: TritonEngine, request: EngineRequest) -> list[int]:
    """All token ids that come."""
    return [token_id async for step in engine.generate(request) for token_id in step.token_ids]


def ask_directly(
    prompts: Mapping[str, Mapping[str, np.ndarray]], token_count: int, directory: Path, *save_directory: str
) -> dict[str, list[int]]:
    """What transformers itself answers to each prompt: see `direct_answers.py`, which runs in the models' own Python."""
    for name, tensors in prompts.items():
        np.savez(directory / f"{name}.npz", **tensors)
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


async def eventually(holds: Callable[[], bool]) -> None:
    """Return as soon as it holds; fail when patience is over."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not await asyncio.to_thread(holds):
        assert time.monotonic() < deadline, f"not within {PATIENCE_SECONDS} s"
        await asyncio.sleep(0.02)
