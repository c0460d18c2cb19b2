"""`python -m tests.bench.service`: what the service and its worker processes cost, bear and guarantee.

A real server as a process, callers in processes of their own that do not read what they get, the 30 s clip of the workload
and 50 tokens of text for Qwen3-VL. Answers are compared with the pipeline's before anything is timed, and sampled while it is.
Writes `service.json` and `service.md` into tests/bench/out. Exit status: 0, 1 where a requirement is missed, 2 where an answer
is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = (
    "1"  # before any import that starts a thread pool; what runs beside the pool inherits it
)

from preprocessor.models.family import Model
from preprocessor.models.registry import load_model
from tests.bench.machine import machine
from tests.bench.report import machine_lines, table
from tests.bench.service.callers import fairness, load
from tests.bench.service.cost import cost, latency
from tests.bench.service.handoff import handoff
from tests.bench.service.load import clients
from tests.bench.service.scaling import scaling
from tests.bench.service.section import Bench, Options, Section, WrongAnswer
from tests.media import moving_shapes_clip

OUT = Path(__file__).parents[1] / "out"
WORKER_COUNTS = (1, 2, 4, 8, 16)
SECTIONS: dict[str, Callable[[Bench], Section]] = {
    "cost": cost,
    "load": load,
    "fairness": fairness,
    "scaling": scaling,
    "latency": latency,
    "handoff": handoff,
}


def main() -> int:
    """Run the benchmark; returns the exit status."""
    arguments = _parser().parse_args()
    options = _options(arguments)
    names = [name for name in SECTIONS if getattr(arguments, name)] or list(SECTIONS)
    model = load_model("qwen3-vl")
    assert isinstance(model, Model)
    clip = moving_shapes_clip()
    sections: list[Section] = []
    with clients(options.client_process_count) as callers:
        bench = Bench(model, clip, callers, options)
        for name in names:
            began = time.monotonic()
            try:
                sections.append(SECTIONS[name](bench))
            except WrongAnswer as error:
                print(f"nothing counts: {error}", file=sys.stderr)
                return 2
            print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr)
            _write(sections, options)
    print(_markdown(sections))
    missed = [line for section in sections for line in section.missed]
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    return 1 if missed and arguments.check else 0


def _options(arguments: argparse.Namespace) -> Options:
    cores = len(os.sched_getaffinity(0))
    quick = arguments.quick
    return Options(
        fps=tuple(arguments.fps),
        concurrencies=tuple(arguments.concurrency or ((1, 8, 32) if quick else (1, 8, 32, 64, 128, 256))),
        worker_count=arguments.workers,
        seconds_each=arguments.seconds_each or (3.0 if quick else 15.0),
        rounds=2 if quick else 7,
        scaling_worker_counts=tuple(count for count in WORKER_COUNTS if count <= cores or arguments.all),
        client_process_count=arguments.clients,
        image_count=40 if quick else 100,
    )


def _write(sections: list[Section], options: Options) -> None:
    OUT.mkdir(exist_ok=True)
    report = {"machine": _machine(), "options": asdict(options), "sections": [asdict(section) for section in sections]}
    (OUT / "service.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    (OUT / "service.md").write_text(_markdown(sections) + "\n")


def _markdown(sections: list[Section]) -> str:
    lines = [
        "30 s 374x374 x264 clip + 50 text tokens, Qwen3-VL, through a real server.",
        "",
        *machine_lines(_machine()),
    ]
    for section in sections:
        lines += ["", f"### {section.title}", "", section.notes, "", *table(section.head, section.rows, 1)]
        lines += ["", *(f"**missed** {line}  " for line in section.missed)] if section.missed else []
    return "\n".join(lines)


def _machine() -> dict[str, object]:
    about = machine()
    about["versions"] |= {name: version(name) for name in ("grpcio", "protobuf", "uvloop")}
    return about


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.service", description="Measure the service under load."
    )
    for name, section in SECTIONS.items():
        summary = (section.__doc__ or "").splitlines()[0].rstrip(".").lower()
        parser.add_argument(f"--{name}", action="store_true", help=f"run this section: {summary} (default: all)")
    parser.add_argument("--quick", action="store_true", help="show that everything runs; the figures prove nothing")
    parser.add_argument("--fps", type=float, nargs="+", default=[1.0, 8.0], help="frames a second (default: 1 8)")
    parser.add_argument(
        "--workers", type=int, default=1, help="of the server under load; leave callers a core (default: 1)"
    )
    parser.add_argument("--concurrency", type=int, nargs="+", help="callers of the load (default: 1 8 32 64 128 256)")
    parser.add_argument("--seconds-each", type=float, help="length of one load (default: 15)")
    parser.add_argument("--clients", type=int, default=max(1, (os.cpu_count() or 1) // 4), help="processes of callers")
    parser.add_argument("--all", action="store_true", help="scale to 16 workers, however many cores there are")
    parser.add_argument(
        "--no-check", dest="check", action="store_false", help="exit 0 although a requirement is missed"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
