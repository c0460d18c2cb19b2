"""`python -m tests.bench.transport`: how fast pixel rows reach a real Triton on this host, by every way there is.

Every way hands the same rows (64 MB by default) to a Python model that answers at once; its answer's checksum is compared
first. Then the ways run in turn, A B C A B C. A round's time is from the call to the end of the short answer, the array
being there already: so it has what the model needed to get at the rows, and the replies. `stall` is the longest time in
a round for which the event loop did not get to a task that sleeps a millisecond at a time.

The second table writes the rows evenly over a while, as a decoder would, and gives the time from the last row to the
reply. The third compares prompts keyed in the model with Triton's own sequence batcher. Exit status: 0, 1 where a
required figure is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tritonclient.grpc.aio
from tritonclient.grpc import InferInput

from deploy.triton.local_server import TritonServer
from engine_client import EngineRequest, OwnedRegion, RowProgress, SamplingParameters, Transport, TritonEngine
from tests.bench.machine import machine

MODELS = Path(__file__).parents[1] / "engine" / "models"
FEATURE_COUNT = 1536
ANSWER_AT_ONCE, ANSWER_WITH_CRC = np.array([0], np.int32), np.array([1], np.int32)  # tests/engine/models/pieces
RUNS_OF_CLIP = 60  # as a decoder announces them: the temporal steps of 30 s at 4 frames a second

# What it must reach; the first two against figures of the same run.
MIN_RATIO_TO_TRITONCLIENT = 1.4
MAX_LAST_ROW_SHARE = 0.2
MIN_REFERENCE_MB_PER_SECOND = 3000.0
MAX_STALL_MS = 20.0

Way = Callable[[np.ndarray, np.ndarray], Awaitable[list[int]]]
"""Hands over rows and `input_ids`, and returns when the first reply is there, with its token ids."""


@dataclass
class Rounds:
    """One way's rounds."""

    seconds: list[float] = field(default_factory=list)
    stall_ms: list[float] = field(default_factory=list)

    @property
    def median_seconds(self) -> float:
        return statistics.median(self.seconds)

    def mb_per_second(self, byte_size: int) -> float:
        return byte_size / self.median_seconds / 1e6

    @property
    def worst_stall_ms(self) -> float:
        return max(self.stall_ms)


def engine_way(engine: TritonEngine) -> Way:
    async def hand_over(rows: np.ndarray, input_ids: np.ndarray) -> list[int]:
        request = EngineRequest(
            "bench", {"input_ids": input_ids, "pixel_patches": rows}, SamplingParameters(max_tokens=1)
        )
        return await steps_of(engine, request)

    return hand_over


def tritonclient_way(client: tritonclient.grpc.aio.InferenceServerClient) -> Way:
    async def hand_over(rows: np.ndarray, input_ids: np.ndarray) -> list[int]:
        async def requests() -> AsyncIterator[dict[str, object]]:
            inputs = []
            for name, array, datatype in (("input_ids", input_ids, "INT32"), ("pixel_patches", rows, "UINT8")):
                declared = InferInput(name, list(array.shape), datatype)
                declared.set_data_from_numpy(array)
                inputs.append(declared)
            yield {"model_name": "pieces", "inputs": inputs}

        token_ids: list[int] = []
        async for reply, error in client.stream_infer(requests()):
            if error is not None:
                raise error
            token_ids += reply.as_numpy("token_ids").tolist()
        return token_ids

    return hand_over


async def timed(hand_over: Callable[[], Awaitable[object]], rounds: Rounds) -> None:
    """Run it once beside a task that notices when the loop is late."""
    worst = 0.0
    is_over = False

    async def tick() -> None:
        nonlocal worst
        while not is_over:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            worst = max(worst, time.perf_counter() - before - 0.001)

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0.002)
    started = time.perf_counter()
    await hand_over()
    rounds.seconds.append(time.perf_counter() - started)
    is_over = True
    await ticking
    rounds.stall_ms.append(1000 * worst)


async def compare_ways(ways: Mapping[str, tuple[Way, np.ndarray]], round_count: int) -> dict[str, Rounds]:
    """Check every way's rows, then time all in turn."""
    for name, (way, rows) in ways.items():
        if "one message" in name:
            continue  # that model gives no checksum, which tests/engine/test_shared_memory.py covers
        got = await way(rows, ANSWER_WITH_CRC)
        wanted = [len(rows), zlib.crc32(rows.data) & 0x7FFFFFFF]
        if got[1:] != wanted:
            raise SystemExit(f"{name}: the model got {got[1:]}; it should be {wanted}")
    results = {name: Rounds() for name in ways}
    for _ in range(round_count + 2):
        for name, (way, rows) in ways.items():
            await timed(lambda way=way, rows=rows: way(rows, ANSWER_AT_ONCE), results[name])  # type: ignore[misc]
    return {name: Rounds(each.seconds[2:], each.stall_ms[2:]) for name, each in results.items()}


async def last_row_to_reply(engine: TritonEngine, rows: np.ndarray, seconds: float) -> float:
    """Announce the rows evenly over that time; the seconds from the last to the end of the answer."""
    pending = RowProgress("pixel_patches")
    tensors = {"input_ids": ANSWER_AT_ONCE, "pixel_patches": rows}
    asking = asyncio.ensure_future(steps_of(engine, EngineRequest("bench", tensors, pending=pending)))
    loop = asyncio.get_running_loop()
    started = loop.time()
    for piece in range(1, RUNS_OF_CLIP + 1):
        await asyncio.sleep(max(0.0, started + seconds * piece / RUNS_OF_CLIP - loop.time()))
        pending.finish(len(rows) * piece // RUNS_OF_CLIP)
    last = time.perf_counter()
    await asking
    return time.perf_counter() - last


async def steps_of(engine: TritonEngine, request: EngineRequest) -> list[int]:
    """All token ids of the answer."""
    return [token_id async for step in engine.generate(request) for token_id in step.token_ids]


async def reply_beside_an_open_prompt(engine: TritonEngine, limit_seconds: float) -> float | None:
    """How long a small prompt takes while another waits for its rows; None: longer than the limit."""
    pending = RowProgress("pixel_patches")
    slow = EngineRequest(
        "slow", {"input_ids": ANSWER_AT_ONCE, "pixel_patches": np.zeros((10, FEATURE_COUNT), np.uint8)}, pending=pending
    )
    waiting = asyncio.ensure_future(steps_of(engine, slow))
    await asyncio.sleep(0.2)  # until its opening is there
    quick = asyncio.ensure_future(engine_way(engine)(np.zeros((10, FEATURE_COUNT), np.uint8), ANSWER_AT_ONCE))
    started = time.perf_counter()
    done, _ = await asyncio.wait({quick}, timeout=limit_seconds)
    seconds = time.perf_counter() - started
    pending.finish(10)
    await asyncio.gather(waiting, quick)
    return seconds if done else None


def with_sequence_batcher(directory: Path) -> None:
    """The same model behind Triton's sequence batcher, as `direct`."""
    shutil.copytree(MODELS / "pieces", directory / "direct")
    config = (MODELS / "pieces" / "config.pbtxt").read_text().replace('"pieces"', '"direct"')
    batcher = "sequence_batching { direct { } max_sequence_idle_microseconds: 5000000 }\n"
    (directory / "direct" / "config.pbtxt").write_text(config + batcher)


@asynccontextmanager
async def engines(address: str, region: OwnedRegion) -> AsyncIterator[dict[str, TritonEngine]]:
    async with AsyncExitStack() as stack:
        yield {
            name: await stack.enter_async_context(
                TritonEngine(address, model, shared_region=region, transport=transport)
            )
            for name, model, transport in (
                ("gRPC", "pieces", Transport.GRPC),
                ("gRPC, one message", "scripted", Transport.GRPC),
                ("gRPC, sequence batcher", "direct", Transport.GRPC),
                ("shared memory", "pieces", Transport.SHARED_MEMORY),
                ("shared memory, one message", "scripted", Transport.SHARED_MEMORY),
                ("shared memory, sequence batcher", "direct", Transport.SHARED_MEMORY),
            )
        }


async def run(address: str, region: OwnedRegion, arguments: argparse.Namespace) -> tuple[dict[str, object], list[str]]:
    row_count = arguments.megabytes * 10**6 // FEATURE_COUNT
    shared = np.frombuffer(region.buffer, np.uint8, row_count * FEATURE_COUNT).reshape(row_count, FEATURE_COUNT)
    shared[:] = np.random.default_rng(0).integers(0, 256, shared.shape, np.uint8)
    own = shared.copy()
    async with engines(address, region) as clients:
        client = tritonclient.grpc.aio.InferenceServerClient(address)
        ways = {"tritonclient.grpc.aio": (tritonclient_way(client), own)}
        ways |= {name: (engine_way(each), own if "gRPC" in name else shared) for name, each in clients.items()}
        results = await compare_ways(ways, arguments.rounds)
        overlapped = {
            name: statistics.median(
                [
                    await last_row_to_reply(clients[name], rows, arguments.decode_seconds)
                    for _ in range(arguments.rounds)
                ]
            )
            for name, rows in (("gRPC", own), ("shared memory", shared))
        }
        beside = {
            "keyed in the model": await reply_beside_an_open_prompt(clients["gRPC"], 2.0),
            "sequence batcher": await reply_beside_an_open_prompt(clients["gRPC, sequence batcher"], 2.0),
        }
        await client.close()
    return report(results, overlapped, beside, shared.nbytes), missed(results, overlapped, shared.nbytes)


def report(
    results: Mapping[str, Rounds], overlapped: Mapping[str, float], beside: Mapping[str, float | None], byte_size: int
) -> dict[str, object]:
    baseline = results["tritonclient.grpc.aio"].median_seconds
    print(f"\n| {byte_size / 1e6:.0f} MB | ms | MB/s | ÷ tritonclient | stall, median ms | stall, longest ms |")
    print("|---|---|---|---|---|---|")
    for name, each in results.items():
        print(
            f"| {name} | {1000 * each.median_seconds:.1f} | {each.mb_per_second(byte_size):.0f} "
            f"| {baseline / each.median_seconds:.2f} | {statistics.median(each.stall_ms):.1f} | {each.worst_stall_ms:.1f} |"
        )
    print("\n| written over a while | last row to reply, ms | share of the time in one message |\n|---|---|---|")
    for name, seconds in overlapped.items():
        print(f"| {name} | {1000 * seconds:.1f} | {seconds / whole(results, name):.0%} |")
    print("\n| a small prompt while another waits for rows | ms |\n|---|---|")
    for name, waited in beside.items():
        print(f"| {name} | {'not before it had them' if waited is None else f'{1000 * waited:.1f}'} |")
    return {
        "machine": machine(),
        "byte_size": byte_size,
        "ways": {name: {"seconds": each.seconds, "stall_ms": each.stall_ms} for name, each in results.items()},
        "last_row_to_reply_seconds": dict(overlapped),
        "beside_an_open_prompt_seconds": dict(beside),
    }


def whole(results: Mapping[str, Rounds], name: str) -> float:
    """Seconds that the same rows take when they go at once, in one message."""
    return results[f"{name}, one message"].median_seconds


def missed(results: Mapping[str, Rounds], overlapped: Mapping[str, float], byte_size: int) -> list[str]:
    """What falls short of what it must reach."""
    ratio = results["tritonclient.grpc.aio"].median_seconds / results["gRPC"].median_seconds
    shares = {name: seconds / whole(results, name) for name, seconds in overlapped.items()}
    fast = results["shared memory"].mb_per_second(byte_size)
    checks = [
        (
            ratio >= MIN_RATIO_TO_TRITONCLIENT,
            f"gRPC is {ratio:.2f} x tritonclient; at least {MIN_RATIO_TO_TRITONCLIENT}",
        ),
        (
            fast >= MIN_REFERENCE_MB_PER_SECOND,
            f"shared memory: {fast:.0f} MB/s; at least {MIN_REFERENCE_MB_PER_SECOND}",
        ),
        *(
            (share <= MAX_LAST_ROW_SHARE, f"{name}: the last row takes {share:.0%}; at most {MAX_LAST_ROW_SHARE:.0%}")
            for name, share in shares.items()
        ),
        *(
            (stall <= MAX_STALL_MS, f"{name}: the loop stalls {stall:.0f} ms; at most {MAX_STALL_MS}")
            for name in ("gRPC", "shared memory")
            for stall in [statistics.median(results[name].stall_ms)]
        ),
    ]
    return [complaint for holds, complaint in checks if not holds]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.transport", description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=64, help="rows to hand over (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds of each way (default: %(default)s)")
    parser.add_argument(
        "--decode-seconds", type=float, default=0.5, help="time to write the rows in (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, help="write every round here")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        repository = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for model in ("pieces", "scripted"):
            shutil.copytree(MODELS / model, repository / model)
        with_sequence_batcher(repository)
        region = stack.enter_context(OwnedRegion.create(2 * arguments.megabytes * 10**6))
        server = stack.enter_context(TritonServer(["pieces", "scripted", "direct"], repository=repository))
        about = machine()
        settings = {name: value for name, value in os.environ.items() if name.startswith("MALLOC_")}
        print(
            f"{about['cpu']}, {about['cores_usable']} cores; {about['command']}; malloc settings: {settings or 'none'}"
        )
        figures, shortfalls = asyncio.run(run(server.grpc_address, region, arguments))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))
    for complaint in shortfalls:
        print(f"missed: {complaint}", file=sys.stderr)
    return 1 if shortfalls else 0


if __name__ == "__main__":
    sys.exit(main())
