"""A later turn through `Generate`, with a real Triton on this host that reads rows in shared memory.

`vlm_transformers` holds the items of earlier turns, with a tiny model of random weights: no pixels are made or sent. `pieces`
holds none: it gets the rows again, and works nothing out of them. The CPU is that of the service alone, without what it takes
when nobody calls: a model's answer takes seconds, in which the service does nothing for it.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.triton.local_server import RANDOM_WEIGHTS, REPOSITORY, TritonServer
from preprocessor.client import AsyncClient, Prompt
from tests.bench.options import WrongAnswer
from tests.bench.service.sizes import GIB
from tests.bench.service.turn_calls import TIMEOUT_SECONDS, Turns, chats
from tests.bench.service.watched import WatchedServer
from tests.waiting import eventually

_IDLE_SECONDS = 5.0
_HELD = "preprocessor_engine_held_items_total"

# What `pieces` takes of a prompt; with `input_ids` of 0 it works nothing out.
_PIECES_PROFILE = """
other_inputs = "drop"
[inputs.pixel_patches]
[inputs.max_tokens]
[constants.input_ids]
datatype = "INT32"
value = [0]
"""


@dataclass(frozen=True, slots=True)
class _Engine:
    """A model of Triton's.

    Attributes:
        profile: How its tensors differ from the contract's.
        holds: Whether it holds items.
    """

    model: str
    repository: Path
    profile: str
    holds: bool


_ENGINES = (
    _Engine("vlm_transformers", REPOSITORY, "", holds=True),
    _Engine("pieces", Path(__file__).parents[2] / "engine" / "models", _PIECES_PROFILE, holds=False),
)


async def measure_with_triton(clip: bytes, all_fps: list[float], chat_count: int, turn_count: int) -> None:
    """Print what first and later turns take, with each engine.

    Raises:
        WrongAnswer: An engine held items that it should not have held, or not those that it should.
        TritonSetupError: Triton is not installed.
    """
    for engine in _ENGINES:
        with _service_before(engine) as server:
            await eventually(lambda: server.metrics()["preprocessor_engine_ready"] == 1)
            await chats(server, clip, all_fps[0], 2, 2, _turn)  # fills the arena's pages
            idle_cores = await _idle_cores(server)
            for fps in all_fps:
                before = server.metric_by("result", _HELD)
                first, later = await chats(server, clip, fps, chat_count, turn_count, _turn, idle_cores)
                _check(engine, before, server.metric_by("result", _HELD), len(first.wall_ms), len(later.wall_ms))
                held = "holds" if engine.holds else "does not hold"
                print(
                    f"{fps:g} fps, Generate with Triton by shared memory, an engine that {held} the item: first turn "
                    f"{first.cpu_ms:.1f} ms of the service's CPU, later ones {later.cpu_ms:.2f} ms: "
                    f"{later.cpu_ms / first.cpu_ms:.1%}; {statistics.median(first.wall_ms):.1f} and "
                    f"{statistics.median(later.wall_ms):.1f} ms in all, the model's answer included",
                    flush=True,
                )


@contextmanager
def _service_before(engine: _Engine) -> Iterator[WatchedServer]:
    with (
        TritonServer([engine.model], repository=engine.repository, environment=RANDOM_WEIGHTS) as triton,
        tempfile.TemporaryDirectory() as folder,
    ):
        options = ["--engine", triton.grpc_address, "--engine-model", engine.model]
        if engine.profile:
            path = Path(folder) / "profile.toml"
            path.write_text(engine.profile)
            options += ["--engine-profile", str(path)]
        options += ["--engine-transport", "shared-memory", "--workers", "2", "--memory-budget", str(2 * GIB)]
        with WatchedServer(*options) as server:
            yield server


async def _turn(client: AsyncClient, prompt: Prompt, turns: Turns) -> None:
    started = time.perf_counter()
    async with client.generate(prompt, timeout_seconds=TIMEOUT_SECONDS, max_tokens=1) as answer:
        await answer.read()
    turns.wall_ms.append((time.perf_counter() - started) * 1e3)


async def _idle_cores(server: WatchedServer) -> float:
    """What the service takes of a core when nobody calls."""
    before = server.cpu_seconds()
    await asyncio.sleep(_IDLE_SECONDS)
    return (server.cpu_seconds() - before) / _IDLE_SECONDS


def _check(
    engine: _Engine, before: dict[str, float], after: dict[str, float], first_count: int, later_count: int
) -> None:
    found = {result: after[result] - before[result] for result in after}
    hit_count = later_count if engine.holds else 0
    if found != {"hit": hit_count, "lost": 0, "miss": first_count + later_count - hit_count}:
        raise WrongAnswer(f"{engine.model} held other items than it should: {found}")
