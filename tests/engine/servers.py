"""Real Triton servers for tests, and the means to watch them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from deploy.triton.local_server import REPOSITORY, TritonServer, TritonSetupError
from engine_client import EngineRequest, SamplingParameters, TritonEngine

SCRIPTED_REPOSITORY = Path(__file__).parent / "models"
PATIENCE_SECONDS = 20.0
LONG_ANSWER = SamplingParameters(max_tokens=100_000)
"""Minutes of tokens: a test that waits for its end has failed."""


@contextmanager
def serving(model: str, repository: Path = REPOSITORY) -> Iterator[TritonServer]:
    """A server with that model; where none is installed the test fails, rather than be skipped and prove nothing."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(TritonServer([model], repository=repository))
        except TritonSetupError as error:
            pytest.fail(f"no Triton to test with, run make triton: {error}", pytrace=False)
        yield server


async def answer(engine: TritonEngine, request: EngineRequest) -> list[int]:
    """All token ids that come."""
    return [token_id async for step in engine.generate(request) for token_id in step.token_ids]


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
