"""`python -m tests.bench.device.vllm --checkpoint FOLDER`: vLLM fed by this service through its own gRPC, and by itself.

The checkpoint: `python -m tests.bench.device.vllm.checkpoint FOLDER [--tiny]`. After each cell a line goes into
OUT/vllm.jsonl, what failed included; the logs of the servers lie beside it, and `python -m tests.bench.device.vllm.report` makes
tables of the lines. `--tiny` is for a CPU: one server at a time, figures that prove nothing.

checkpoint   the model's folder, in full size or tiny
servers      real vLLM servers as processes, in Triton too
systems      the ways to get an answer, each behind the same interface
bound        the same tensors again and again, made once: what the engine could do
plan         which cells are measured, the most important first
cell         one cell: some callers who ask again and again
turns        chats about one clip: each turn's first token
stacks       where vLLM's processes spend their time, by py-spy
report       tables from the figures
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from typing import Any

from tests.bench import cpus
from tests.bench.cpus import leave_to_servers
from tests.bench.device.engines import worker_count
from tests.bench.device.gpu import BusyShares, watched
from tests.bench.device.vllm import plan, stacks
from tests.bench.device.vllm.bound import BoundSystem
from tests.bench.device.vllm.cell import Times, measure, settle
from tests.bench.device.vllm.plan import Cell
from tests.bench.device.vllm.servers import GRPC, Engine, VllmServer, VllmSettings, started
from tests.bench.device.vllm.systems import HttpSystem, ServiceSystem, System, Workload, unique_clip
from tests.bench.device.vllm.turns import chats
from tests.bench.machine import machine
from tests.bench.service.watched import WatchedServer
from tests.engine.vllm_triton_server import MODEL

VLLM_PYTHON = Path(__file__).parents[4] / ".vllm/venv/bin/python"
_TRANSPORTS = {
    plan.OURS_BYTES: "grpc",
    plan.OURS_SHARED: "shared-memory",
    plan.TRITON_PIECES: "grpc",
    plan.TRITON_SHARED: "shared-memory",
}
_GPU_OPTIONS = ("--max-model-len", "32768", "--kv-cache-memory-bytes", "45G", "--gpu-memory-utilization", "0.4")
"""Two servers share the GPU: the share that each asks to be free at its start, and what it takes for its cache."""
_TINY_OPTIONS = ("--max-model-len", "32768", "--enforce-eager", "--dtype", "float32")
_TINY_ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1"}
_GPU_ENVIRONMENT = {"VLLM_USE_FLASHINFER_SAMPLER": "0", "PYTORCH_SKIP_CUDNN_COMPATIBILITY_CHECK": "1"}
_STACKS_SECONDS = 8
_FIRST_CELL_WARM_SECONDS = 6.0  # kernels are chosen, memory is filled, API servers read their processors


class Run:
    """A run under way: where its lines go, how much time is left, and what each system is."""

    def __init__(self, arguments: argparse.Namespace, gpus: Sequence[BusyShares]) -> None:
        self._arguments = arguments
        self._gpus = gpus
        self._ends_at = time.monotonic() + arguments.total_seconds
        self._began = time.monotonic()
        self._warmed: set[tuple[str, float]] = set()

    def is_over(self, needed_seconds: float = 0.0) -> bool:
        return bool(time.monotonic() + needed_seconds > self._ends_at)

    def write(self, **figures: Any) -> None:
        """Add a line, and print its short form."""
        figures["at_seconds"] = round(time.monotonic() - self._began, 1)
        with (self._arguments.out / "vllm.jsonl").open("a") as lines:
            lines.write(json.dumps(figures, ensure_ascii=False, default=str) + "\n")
        print({name: value for name, value in figures.items() if name != "first_token_seconds"}, flush=True)

    def measure(self, system: System, cell: Cell) -> None:
        """Measure one cell and write its line, whatever becomes of it."""
        arguments, key = self._arguments, (system.name, cell.workload.fps)
        warm = 0.3 if key in self._warmed else _FIRST_CELL_WARM_SECONDS
        times = Times(warm, max(warm, arguments.warm_seconds), arguments.seconds_each)
        try:
            self.write(**asyncio.run(_measured(system, cell, times, self._gpu_of(system))))
            self._warmed.add(key)
        except Exception:  # the other cells are worth having
            self.write(system=cell.system, fps=cell.workload.fps, callers=cell.callers, failed=traceback.format_exc())

    def chats(self, system: System, fps: float, chat_count: int) -> None:
        """Measure chats about one clip and write their line, whatever becomes of it."""
        try:
            self.write(**asyncio.run(chats(system, fps, chat_count)))
        except Exception:  # the other chats are worth having
            self.write(turns_of=system.name, fps=fps, failed=traceback.format_exc())

    def _gpu_of(self, system: System) -> BusyShares | None:
        if len(self._gpus) > 1:
            return self._gpus[plan.GPU_OF[plan.SERVER_OF[system.name]]]
        return self._gpus[0] if self._gpus else None

    def stacks(self, system: System, server: VllmServer, fps: float, callers: int) -> None:
        """Sample the stacks of vLLM's two processes while that system is asked."""
        arguments, core = self._arguments, server.core()
        processes = {f"servicer-{fps:g}-fps": server.process.pid}
        if core is not None:
            processes[f"core-{fps:g}-fps"] = core.pid
        try:
            self.write(stacks=asyncio.run(_sampled(system, Workload(fps, 1), callers, arguments, processes)))
        except Exception:
            self.write(failed=traceback.format_exc())


async def _measured(system: System, cell: Cell, times: Times, busy: BusyShares | None) -> dict[str, Any]:
    figures = await measure(system, cell, times, busy)
    await settle(system)
    return figures


async def _sampled(
    system: System, workload: Workload, callers: int, arguments: argparse.Namespace, processes: Mapping[str, int]
) -> dict[str, str]:
    async with system.connected(workload) as ask:

        async def call() -> None:
            while True:
                await ask(unique_clip(), 1)

        calls = [asyncio.create_task(call()) for _ in range(callers)]
        try:
            await asyncio.sleep(arguments.warm_seconds / 2)
            return await stacks.sample(arguments.py_spy, processes, _STACKS_SECONDS, arguments.out)
        finally:
            for one in calls:
                one.cancel()
            await asyncio.gather(*calls, return_exceptions=True)


def main() -> None:
    arguments = _parser().parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    leave_to_servers()
    with watched() as gpus:
        run = Run(arguments, gpus)
        about = {"gpus": len(gpus), "server_cpus": os.environ.get(cpus.VARIABLE, "all")}
        run.write(machine=machine(), workers=worker_count(), options=vars(arguments) | about)
        for group in plan.groups(len(gpus), arguments.tiny):
            systems = [name for name in group if not arguments.systems or name in arguments.systems]
            if systems and not run.is_over(needed_seconds=60):
                _measure_group(run, arguments, systems, plan.GPU_OF if len(gpus) > 1 else {})


def _measure_group(run: Run, arguments: argparse.Namespace, names: Sequence[str], gpu_of: Mapping[str, int]) -> None:
    """Start the servers of these systems, measure their cells and chats, and end them."""
    settings = VllmSettings(
        python=arguments.vllm_python,
        checkpoint=arguments.checkpoint,
        logs=arguments.out,
        options=(_TINY_OPTIONS if arguments.tiny else _GPU_OPTIONS) + tuple(arguments.vllm_option),
        environment=_TINY_ENVIRONMENT if arguments.tiny else _GPU_ENVIRONMENT,
        many_api_servers=2 if arguments.tiny else 8,
        start_seconds=arguments.start_seconds,
        gpu_of=gpu_of,
        triton_python=arguments.triton_python,
    )
    cells = plan.cells(names, tuple(arguments.fps), tuple(arguments.callers), arguments.long_tokens)
    kinds = {plan.SERVER_OF[name] for name in names}
    with started(kinds, settings) as (servers, failures), ExitStack() as stack:
        run.write(started={kind: server.start_seconds for kind, server in servers.items()}, failed=failures)
        systems = _systems(run, arguments, servers, names, stack)
        for callers, some in groupby(cells, key=lambda cell: cell.callers):
            for cell in some:
                if cell.system in systems and not run.is_over(needed_seconds=arguments.seconds_each):
                    run.measure(systems[cell.system], cell)
            if callers == 1:
                _measure_chats(run, arguments, systems)
        if arguments.py_spy:
            _sample_stacks(run, arguments, systems, servers)


def _measure_chats(run: Run, arguments: argparse.Namespace, systems: Mapping[str, System]) -> None:
    for fps in arguments.fps:
        for name, system in systems.items():
            if name not in (plan.BOUND_BYTES, plan.BOUND_SHARED) and not run.is_over(needed_seconds=20):
                run.chats(system, fps, arguments.chats)


def _sample_stacks(
    run: Run, arguments: argparse.Namespace, systems: Mapping[str, System], servers: Mapping[str, Engine]
) -> None:
    server = servers.get(GRPC)
    if isinstance(server, VllmServer):
        for name in (plan.BOUND_SHARED, plan.BOUND_BYTES):
            for fps in arguments.fps:
                if name in systems and not run.is_over(needed_seconds=_STACKS_SECONDS):
                    run.stacks(systems[name], server, fps, arguments.callers[0])


def _systems(
    run: Run, arguments: argparse.Namespace, servers: Mapping[str, Engine], wanted: Iterable[str], stack: ExitStack
) -> dict[str, System]:
    """Those of the wanted systems that can be had with the servers there are, by name."""
    found: dict[str, System] = {}
    for name in wanted:
        server = servers.get(plan.SERVER_OF[name])
        if server is None:
            continue
        if name in (plan.SERVE_8, plan.SERVE_1):
            assert isinstance(server, VllmServer)
            found[name] = HttpSystem(name, server)
        elif name in (plan.BOUND_BYTES, plan.BOUND_SHARED):
            assert isinstance(server, VllmServer)
            found[name] = BoundSystem(name, server, by_shared_memory=name == plan.BOUND_SHARED)
        else:
            size = (
                "--workers",
                str(worker_count()),
                "--memory-budget",
                arguments.memory_budget,
                "--max-queued",
                "1024",
            )
            to = (
                (f"vllm://{server.address}",)
                if isinstance(server, VllmServer)
                else (server.address, "--engine-model", MODEL)
            )
            engine = ("--engine", *to, "--engine-transport", _TRANSPORTS[name])
            try:
                service = WatchedServer(*size, *engine)
                found[name] = ServiceSystem(name, stack.enter_context(service), server)
            except RuntimeError as error:
                run.write(system=name, failed=str(error)[-5000:])
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.device.vllm",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="the model's folder")
    parser.add_argument("--vllm-python", type=Path, default=VLLM_PYTHON, help="of vLLM's environment")
    parser.add_argument(
        "--triton-python",
        type=Path,
        help="of vLLM's environment with numpy below 2 (default: one is made of .vllm and .triton)",
    )
    parser.add_argument("--vllm-option", action="append", default=[], metavar="=OPTION", help="of every `vllm serve`")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[2] / "out" / "vllm")
    parser.add_argument("--tiny", action="store_true", help="on a CPU, with the tests' model, one server at a time")
    parser.add_argument("--systems", nargs="+", choices=tuple(plan.SERVER_OF), help="these alone")
    parser.add_argument("--fps", type=float, nargs="+", default=[1.0, 8.0], help="frames a second (default: 1 8)")
    parser.add_argument("--callers", type=int, nargs="+", default=[32, 1, 8, 64], help="first ones first")
    parser.add_argument("--chats", type=int, default=2, help="of ten turns, of each system (default: %(default)s)")
    parser.add_argument("--long-tokens", type=int, default=100, help="of a long answer (default: %(default)s)")
    parser.add_argument("--warm-seconds", type=float, default=9.0, help="at most, of a cell (default: %(default)s)")
    parser.add_argument("--seconds-each", type=float, default=8.0, help="measured, of a cell (default: %(default)s)")
    parser.add_argument(
        "--total-seconds", type=float, default=1200.0, help="then no cell begins (default: %(default)s)"
    )
    parser.add_argument("--start-seconds", type=float, default=200.0, help="of a vLLM (default: %(default)s)")
    parser.add_argument("--memory-budget", default="8GiB", help="of the service (default: %(default)s)")
    parser.add_argument("--py-spy", default=shutil.which("py-spy"), help="sample vLLM's stacks with it")
    return parser


if __name__ == "__main__":
    main()
