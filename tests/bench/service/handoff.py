"""What handing a prompt to an engine on the same host adds to a `Generate`: a real service, a real Triton, no model.

Triton's model `pieces` answers as soon as it has every row, and works nothing out of them; so from the moment that the workers
have finished the last row to the first reply there is the hand-off alone. Its CPU is measured apart, on rows that are finished
already, as that of all processes: this service, its workers and Triton.
"""

from __future__ import annotations

import asyncio
import dataclasses
import statistics
import tempfile
import time
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import grpc.aio
import numpy as np
import psutil
import uvloop

from deploy.triton.local_server import TritonServer
from engine_client import Endpoints, EngineRequest, EngineStep, RowProgress
from engine_client.client import Metadata
from engine_client.contract.tensors import PIXELS
from preprocessor import pipeline
from preprocessor.client.channel import CHANNEL_OPTIONS
from preprocessor.config import EngineSettings, ServeSettings
from preprocessor.service import server as service
from preprocessor.traffic.load import Ask
from preprocessor.v1 import preprocessor_pb2 as pb
from preprocessor.v1 import preprocessor_pb2_grpc as pb_grpc
from tests.bench import goals
from tests.bench.options import Bench, WrongAnswer
from tests.bench.section import Section, Table
from tests.bench.service.asks import request_of
from tests.bench.service.sizes import GIB
from tests.bench.service.watched import tree_cpu_seconds

MODELS = Path(__file__).parents[2] / "engine" / "models"
TRANSPORTS = ("shared-memory", "grpc")
CPU_REPEAT_COUNT = 20  # the kernel counts by ticks of 10 ms

# `input_ids` tells the model whether to work out a checksum of the rows.
_PROFILE = """
other_inputs = "drop"
[inputs.pixel_patches]
[inputs.max_tokens]
[constants.input_ids]
datatype = "INT32"
value = [{wants_checksum}]
"""


class Timed(Endpoints):
    """The service's own engine, which notes when the rows were finished and when the engine had them."""

    finished_at_seconds = answered_at_seconds = 0.0

    async def generate(
        self, request: EngineRequest, *, timeout_seconds: float | None = None, metadata: Metadata = ()
    ) -> AsyncGenerator[EngineStep, None]:
        assert request.pending is not None
        watching = asyncio.create_task(self._note_finish(request.pending, len(request.tensors[PIXELS])))
        self.answered_at_seconds = 0.0
        async for step in super().generate(request, timeout_seconds=timeout_seconds, metadata=metadata):
            self.answered_at_seconds = self.answered_at_seconds or time.perf_counter()
            yield step
        await watching

    async def _note_finish(self, pending: RowProgress, row_count: int) -> None:
        await pending.wait_past(row_count - 1)
        self.finished_at_seconds = time.perf_counter()


@dataclass(slots=True)
class Rounds:
    """Of one request by one transport, in seconds."""

    whole: list[float] = field(default_factory=list)
    after_last_row: list[float] = field(default_factory=list)
    whole_cpu: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    alone_cpu: list[float] = field(default_factory=list)

    def seconds(self, name: str) -> list[float]:
        found: list[float] = getattr(self, name)
        return found

    def median_ms(self, name: str) -> float:
        return 1e3 * statistics.median(self.seconds(name))

    def share(self, name: str, of: str) -> float:
        return statistics.median(a / b for a, b in zip(self.seconds(name), self.seconds(of), strict=True))


@dataclass(frozen=True, slots=True)
class Running:
    """A service in this process, and a channel to it."""

    server: service.Server
    stub: Any

    @property
    def engine(self) -> Timed:
        assert isinstance(self.server.engine, Timed)
        return self.server.engine

    async def generate(self, ask: Ask) -> list[int]:
        """All token ids of the answer to what the ask would have prepared."""
        first, *chunks = (pb.PrepareRequest.FromString(message) for message in ask.messages)
        spec = pb.GenerateSpec(prompt=first.spec, parameters=pb.GenerationParameters(max_tokens=1))
        messages = [pb.GenerateRequest(spec=spec), *(pb.GenerateRequest(chunk=each.chunk) for each in chunks)]
        return [token async for response in self.stub.Generate(iter(messages)) for token in response.delta.token_ids]


def handoff(bench: Bench) -> Section:
    """What the hand-off to an engine on this host takes of a whole Generate."""
    section = Section(
        "Hand-off to Triton on the same host",
        f"{bench.options.worker_count} worker, one request at a time, {bench.options.rounds} rounds in turn; medians, and "
        "medians of each round's ratio. After last row: from the workers' last row to the engine's first reply. Alone: the "
        "same rows, finished before. CPU: of all processes, Triton's too.",
        [
            Table(
                (
                    "",
                    "request, ms",
                    "after last row, ms",
                    "share",
                    "alone, ms",
                    "request, CPU ms",
                    "alone, CPU ms",
                    "CPU share",
                )
            )
        ],
    )
    with tempfile.TemporaryDirectory() as folder, TritonServer(["pieces"], repository=MODELS) as triton:
        results = uvloop.run(_measure(bench, triton, Path(folder)))
    for (name, transport), rounds in results.items():
        share, cpu_share = rounds.share("after_last_row", "whole"), rounds.share("alone_cpu", "whole_cpu")
        cells = [f"{rounds.median_ms(each):.1f}" for each in ("whole", "after_last_row")]
        more = [f"{rounds.median_ms(each):.1f}" for each in ("alone", "whole_cpu", "alone_cpu")]
        section.add(
            [f"{name}, {transport}", *cells, f"{share:.1%}", *more, f"{cpu_share:.1%}"],
            ask=name,
            transport=transport,
            share=share,
            cpu_share=cpu_share,
            seconds=dataclasses.asdict(rounds),
        )
        if transport == "shared-memory":
            section.check(f"hand-off ÷ request, time, {name}", share, "≤", goals.HANDOFF_SHARE)
            section.check(f"hand-off ÷ request, CPU, {name}", cpu_share, "≤", goals.HANDOFF_SHARE)
    return section


async def _measure(bench: Bench, triton: TritonServer, folder: Path) -> dict[tuple[str, str], Rounds]:
    asks = [bench.ask(fps) for fps in bench.options.load_fps]
    for transport in TRANSPORTS:
        async with _service(bench, triton, folder, transport, wants_checksum=True) as checked:
            for ask in asks:
                await _check(bench, checked, ask)
    results = {(ask.name, transport): Rounds() for ask in asks for transport in TRANSPORTS}
    async with (
        _service(bench, triton, folder, TRANSPORTS[0]) as shared,
        _service(bench, triton, folder, TRANSPORTS[1]) as sent,
    ):
        for ask in asks:
            for round_number in range(-1, bench.options.rounds):
                for transport, running in zip(TRANSPORTS, (shared, sent), strict=True):
                    rounds = Rounds() if round_number < 0 else results[ask.name, transport]  # the first warms up
                    await _time(bench, running, ask, rounds)
    return results


async def _check(bench: Bench, running: Running, ask: Ask) -> None:
    rows = pipeline.prepare(bench.model, request_of(ask)).tensors[PIXELS]
    _, *got = await running.generate(ask)
    if got != [len(rows), zlib.crc32(np.ascontiguousarray(rows).data) & 0x7FFFFFFF]:
        raise WrongAnswer(f"{ask.name}: the engine got {got}, which is not what the pipeline makes")


async def _time(bench: Bench, running: Running, ask: Ask, rounds: Rounds) -> None:
    """A round: so many requests, then as many hand-offs of the same rows."""
    after_last_row: list[float] = []

    async def whole() -> None:
        await running.generate(ask)
        after_last_row.append(running.engine.answered_at_seconds - running.engine.finished_at_seconds)

    cpu_seconds, wall_seconds = await _repeat(whole, CPU_REPEAT_COUNT // 4)
    rounds.whole_cpu.append(cpu_seconds)
    rounds.whole.append(wall_seconds)
    rounds.after_last_row.append(statistics.mean(after_last_row))

    pool = running.server.pool
    tensors = pipeline.prepare(bench.model, request_of(ask)).tensors
    lease = pool.rows.lease(tensors[PIXELS].nbytes)
    assert lease is not None, "nothing else is under way"
    rows = pool.arena.array(lease.offset, tensors[PIXELS].shape, tensors[PIXELS].dtype)
    np.copyto(rows, tensors[PIXELS])

    async def alone() -> None:
        pending = RowProgress(PIXELS)
        pending.finish(len(rows))
        async for _ in running.engine.generate(EngineRequest("alone", {**tensors, PIXELS: rows}, pending=pending)):
            pass

    cpu_seconds, wall_seconds = await _repeat(alone, CPU_REPEAT_COUNT)
    rounds.alone_cpu.append(cpu_seconds)
    rounds.alone.append(wall_seconds)
    lease.release()


async def _repeat(what: Callable[[], Awaitable[None]], count: int) -> tuple[float, float]:
    """CPU seconds and wall seconds of each."""
    cpu, wall = tree_cpu_seconds(psutil.Process()), time.perf_counter()
    for _ in range(count):
        await what()
    wall = time.perf_counter() - wall
    return (tree_cpu_seconds(psutil.Process()) - cpu) / count, wall / count


@asynccontextmanager
async def _service(
    bench: Bench, triton: TritonServer, folder: Path, transport: str, *, wants_checksum: bool = False
) -> AsyncIterator[Running]:
    profile = folder / f"{transport}.toml"
    profile.write_text(_PROFILE.format(wants_checksum=int(wants_checksum)))
    settings = ServeSettings(
        address="127.0.0.1:0",
        http_address="127.0.0.1:0",
        worker_count=bench.options.worker_count,
        memory_budget_bytes=GIB,
        cache_share=0.0,
        engine=EngineSettings(address=triton.grpc_address, model="pieces", transport=transport, profile=str(profile)),
    )
    with mock.patch("engine_client.schemes.Endpoints", Timed):
        server = service.Server(settings, bench.model)
        await server.__aenter__()
    try:
        async with grpc.aio.insecure_channel(server.address, options=CHANNEL_OPTIONS) as channel:
            yield Running(server, pb_grpc.PreprocessorStub(channel))
    finally:
        await server.__aexit__(None, None, None)
