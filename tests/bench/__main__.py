"""`python -m tests.bench`: how fast this project is, beside what it replaces, on files it makes itself.

Paths that are compared run in turn in one run; what they make is compared before anything is timed. Writes bench.json,
bench.md and plots into tests/bench/out, after every part. Exit status: 0, 1 where a goal is missed, 2 where an answer is
wrong (then nothing counts).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before any import that starts a thread pool; what runs in processes inherits it
os.environ["OPENCV_FFMPEG_THREADS"] = "1"

from preprocessor.config.machine import available_cpu_count, use_one_thread
from preprocessor.models.family import Model
from preprocessor.models.registry import load_model
from tests.bench.clips import clips, workload
from tests.bench.contest import Disagreement
from tests.bench.cpus import leave_to_servers
from tests.bench.images import images
from tests.bench.machine import load_average, machine
from tests.bench.options import Bench, Options, WrongAnswer
from tests.bench.plots import draw
from tests.bench.report import as_json, markdown, missed, put_into
from tests.bench.section import Section
from tests.bench.service.callers import fairness, load
from tests.bench.service.cost import cost
from tests.bench.service.handoff import handoff
from tests.bench.service.latency import latency
from tests.bench.service.load import clients
from tests.bench.service.scaling import scaling
from tests.bench.single import estimates, prompt, start
from tests.bench.workloads import SEED, data_of

HERE = Path(__file__).parent
OUT = HERE / "out"
SCALING_WORKER_COUNTS = (1, 2, 4, 8, 16)
SECTIONS: dict[str, Callable[[Bench], Section]] = {
    "workload": workload,
    "clips": clips,
    "images": images,
    "prompt": prompt,
    "estimates": estimates,
    "start": start,
    "cost": cost,
    "load": load,
    "latency": latency,
    "fairness": fairness,
    "handoff": handoff,
    "scaling": scaling,
}
ONLY_IN_FULL = ("latency", "fairness", "handoff", "scaling")


def main() -> int:
    """Run the benchmark; returns the exit status."""
    arguments = _parser().parse_args()
    leave_to_servers()
    use_one_thread()
    options = options_of(arguments)
    names = arguments.only or [name for name in SECTIONS if arguments.full or name not in ONLY_IN_FULL]
    about = machine()
    model = load_model("qwen3-vl")
    assert isinstance(model, Model)
    (clip,) = data_of(SEED)
    sections: dict[str, Section] = {}
    with clients(options.client_process_count, options.connection_count) as callers:
        bench = Bench(model, clip, callers, options)
        for name in names:
            print(name, file=sys.stderr)
            began = time.monotonic()
            try:
                sections[name] = SECTIONS[name](bench)
            except (Disagreement, WrongAnswer) as error:
                print(f"nothing counts: {error}", file=sys.stderr)
                return 2
            print(f"  {time.monotonic() - began:.0f} s", file=sys.stderr)
            report = write(sections, about | {"load_average_end": load_average()}, options)
    print(report)
    if arguments.results:
        page = HERE / "RESULTS.md"
        page.write_text(put_into(page.read_text(), report))
        draw(json.loads((OUT / "bench.json").read_text()), HERE / "plots")
    misses = missed(list(sections.values()))
    for line in misses:
        print(f"missed: {line}", file=sys.stderr)
    return 1 if misses and arguments.check else 0


def write(sections: dict[str, Section], about: dict[str, object], options: Options) -> str:
    """Write the report of what has been measured so far into OUT; returns it."""
    OUT.mkdir(exist_ok=True)
    report = as_json(sections, about, asdict(options))
    text = markdown(list(sections.values()), about, options.rounds)
    (OUT / "bench.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    (OUT / "bench.md").write_text(text + "\n")
    draw(report, OUT / "plots")
    return text


def options_of(arguments: argparse.Namespace) -> Options:
    """The mode's own numbers, but for what is asked otherwise."""
    quick, full = arguments.quick, arguments.full
    cores = available_cpu_count()
    return Options(
        rounds=arguments.rounds or (2 if quick else 9 if full else 5),
        is_full=full,
        has_memory=not quick,
        fps=tuple(arguments.fps or ((1.0, 8.0) if quick else SEED.fps)),
        load_fps=tuple(arguments.load_fps or ((1.0, 8.0) if full else (1.0,))),
        load_rounds=arguments.load_rounds or (3 if full else 1),
        concurrencies=tuple(arguments.concurrency or ((1, 8, 16, 32, 64, 128, 256) if full else (1, 8, 32))),
        worker_count=arguments.workers,
        seconds_each=arguments.seconds_each or (2.0 if quick else 15.0 if full else 5.0),
        scaling_worker_counts=tuple(
            count for count in SCALING_WORKER_COUNTS if count <= cores or arguments.all_workers
        ),
        client_process_count=arguments.clients,
        connection_count=arguments.connections,
        is_by_shared_memory=arguments.by_shared_memory,
        image_count=100 if full else 40,
        start_count=1 if quick else 5 if full else 3,
    )


def _parser() -> argparse.ArgumentParser:
    sections = "\n".join(f"  {name:10} {(part.__doc__ or '').splitlines()[0]}" for name, part in SECTIONS.items())
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="Time this project beside what it replaces.",
        epilog=f"parts:\n{sections}\n{', '.join(ONLY_IN_FULL)} are run by --full, or where asked for.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--quick", action="store_true", help="show that everything runs; the figures prove nothing")
    mode.add_argument("--full", action="store_true", help="everything, an hour; otherwise the main parts, in minutes")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), metavar="PART", help="run these parts")
    parser.add_argument("--results", action="store_true", help="put the report and the plots into tests/bench")
    parser.add_argument("--rounds", type=_positive, help="times that paths run in turn (default: 5; with --full 9)")
    parser.add_argument("--fps", type=float, nargs="+", help="frames a second of the workload (default: 1 2 4 8)")
    parser.add_argument(
        "--load-fps", type=float, nargs="+", help="frames a second under load (default: 1; with --full 1 8)"
    )
    parser.add_argument(
        "--load-rounds", type=_positive, help="times that the series of loads runs (default: 1; with --full 3)"
    )
    parser.add_argument("--workers", type=_positive, default=1, help="of the server under load; leave callers a core")
    parser.add_argument(
        "--concurrency", type=_positive, nargs="+", help="callers of the load (default: 1 8 32; up to 256)"
    )
    parser.add_argument("--seconds-each", type=float, help="length of one load (default: 5; with --full 15)")
    parser.add_argument(
        "--clients", type=_positive, default=max(1, available_cpu_count() // 4), help="processes of callers"
    )
    parser.add_argument(
        "--connections", type=_positive, default=1, help="of each process of callers; fronts need several"
    )
    parser.add_argument(
        "--by-shared-memory", action="store_true", help="rows of `load` go to shared memory of the callers"
    )
    parser.add_argument("--all-workers", action="store_true", help="scale to 16 workers, however many cores there are")
    parser.add_argument("--no-check", dest="check", action="store_false", help="exit 0 although a goal is missed")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
