"""`python -m tests.bench`: `pipeline.prepare` beside the ways it replaces, on the workload of TensorRT-LLM PR 15598.

A 30 s 374x374 x264 clip and 50 tokens of text for Qwen3-VL, at each asked rate: every path's result is compared first, then
the paths run in turn, A B C D A B C D, in this one process on one thread. On a shared machine only their ratios count.
Exit status: 0, 1 where a required ratio is missed, 2 where the paths disagree (nothing is timed then).
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before any import that starts a thread pool
os.environ["OPENCV_FFMPEG_THREADS"] = "1"

from preprocessor.machine import use_one_thread
from preprocessor.models.family import Model
from preprocessor.models.registry import load_model
from preprocessor.text.tokenizer import encode
from tests.bench.compare import compare_paths
from tests.bench.machine import machine
from tests.bench.paths import PATHS, Disagreement, Job, make_job
from tests.bench.report import Rate, Timed, as_json, markdown, missed_floors
from tests.media import moving_shapes_clip

TEXT_TOKEN_COUNT = 50
FPS = [1.0, 2.0, 4.0, 8.0]


def main() -> int:
    """Run the benchmark; returns the exit status."""
    arguments = _parser().parse_args()
    use_one_thread()
    model = load_model("qwen3-vl")
    data, text = _make_clip(), _text_of(model, TEXT_TOKEN_COUNT)
    workload = f"30 s 374x374 x264 at 30 frames a second ({len(data)} bytes) + {TEXT_TOKEN_COUNT} text tokens, Qwen3-VL"
    rates = []
    for fps in arguments.fps:
        print(f"{fps:g} fps: comparing, then {arguments.rounds} rounds", file=sys.stderr)
        try:
            job = make_job(model, data, fps, text)
            before_off = compare_paths(job)
        except Disagreement as error:
            print(f"not timed, for the paths disagree at {fps:g} fps: {error}", file=sys.stderr)
            return 2
        rates.append(Rate(fps, len(job.indices), job.output_bytes, before_off, time_paths(job, arguments.rounds)))
    about = machine()
    print(markdown(workload, arguments.rounds, about, rates))
    if arguments.json:
        report = as_json(workload, arguments.rounds, about, rates)
        arguments.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    missed = missed_floors(rates)
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    return 1 if missed and arguments.check else 0


def time_paths(job: Job, rounds: int) -> dict[str, Timed]:
    """Time each path once a round, in turn. Results are freed, and garbage collected, outside the timed part."""
    timed = {name: Timed([], []) for name in PATHS}
    for _ in range(rounds):
        for name, path in PATHS.items():
            gc.collect()
            wall, cpu = time.perf_counter(), time.process_time()
            result = path(job)
            timed[name].wall_ms.append((time.perf_counter() - wall) * 1e3)
            timed[name].cpu_ms.append((time.process_time() - cpu) * 1e3)
            del result
    return timed


def _make_clip() -> bytes:
    """The workload's clip, made in a process of its own.

    Encoding would leave hundreds of free megabytes in this process's heap, and every path that asks for large tensors would
    get them without a page fault, as no server does that takes its memory from the kernel.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(moving_shapes_clip).result()


def _text_of(model: Model, token_count: int) -> str:
    """A text of exactly so many tokens: " frame" is one of them."""
    text = "frame" + " frame" * (token_count - 1)
    assert len(encode(model.tokenizer, text)) == token_count
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description="Time the pipeline beside what it replaces."
    )
    parser.add_argument(
        "--fps", type=float, nargs="+", default=FPS, help="frames a second to sample (default: 1 2 4 8)"
    )
    parser.add_argument("--rounds", type=_positive, default=7, help="times each path runs at each rate (default: 7)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample and ratio to FILE")
    parser.add_argument(
        "--no-check", dest="check", action="store_false", help="exit 0 although a required ratio is missed"
    )
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
