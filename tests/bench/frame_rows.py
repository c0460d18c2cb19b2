"""Resize and patches with the native kernel and without: of a frame, and in a whole request. From the repository's root:

    python -m tests.bench.frame_rows [--rounds N] [--fps N]

Rows are compared before anything is timed. All ways run in turn in one process that keeps freed memory, as a worker does. Printed
are medians of CPU time, and the share of what it takes without the kernel ("torch").
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: one core, as a worker has

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from preprocessor.models.loaded import LoadedModel
from preprocessor.models.registry import load_model
from preprocessor.pipeline import prepare
from preprocessor.traffic.seed import TEXT, moving_shapes
from preprocessor.types.request import (
    ChatPrompt,
    Media,
    MediaPart,
    Message,
    Modality,
    PreparationRequest,
    Sampling,
    TextPart,
)
from preprocessor.types.timing import Timings
from preprocessor.vision import native
from preprocessor.vision.frame_rows import row_writer
from preprocessor.vision.spec import PixelSpec
from preprocessor.workers.heap import keep_freed_memory
from tests.bench.machine import machine
from tests.bench.workloads import SEED, data_of

SPEC = PixelSpec(16, 2, 2, 1, 1 << 30, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SIZES = [((374, 374), (320, 320)), ((374, 374), (384, 384)), ((720, 1280), (224, 416)), ((1080, 1920), (288, 512))]
FRAME_COUNT = 30  # of one size, by one writer: a frame that is in cache, as just converted, into rows that are not
LIBRARY = Path(native.__file__).with_name("_resize.abi3.so")


def medians(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """CPU milliseconds of each way; they run in turn."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            began = time.process_time()
            way()
            taken[name].append((time.process_time() - began) * 1e3)
    return {name: statistics.median(one) for name, one in taken.items()}


def one_frame(source: tuple[int, int], target: tuple[int, int], rounds: int) -> dict[str, float]:
    (frame,) = moving_shapes(1, source[1], source[0], grain=8)
    shape = (FRAME_COUNT // 2, target[0] * target[1] // SPEC.patch_size**2, SPEC.feature_count)
    rows: dict[str, npt.NDArray[np.uint8]] = {}
    ways = {}
    for name, variant in {"torch": None, **{name: index for index, name in enumerate(native.VARIANTS)}}.items():
        rows[name] = np.empty(shape, np.uint8)

        def write(variant: int | None = variant, out: npt.NDArray[np.uint8] = rows[name]) -> None:
            writer, stopwatch = row_writer(source, target, FRAME_COUNT, SPEC, variant=variant), Timings().stopwatch()
            for number in range(FRAME_COUNT):
                writer(frame, out[number // 2], slice(number % 2, number % 2 + 1), stopwatch)

        write()
        assert np.array_equal(rows[name], rows["torch"]), f"{name} differs"
        ways[name] = write
    return {name: taken / FRAME_COUNT for name, taken in medians(ways, rounds).items()}


def request(fps: float) -> PreparationRequest:
    (clip,) = data_of(SEED)
    medium = Media("clip", Modality.VIDEO, clip, Sampling(fps=fps))
    return PreparationRequest(ChatPrompt((Message("user", (MediaPart("clip"), TextPart(TEXT))),)), (medium,))


def whole_request(model: LoadedModel, fps: float, rounds: int) -> dict[str, float]:
    asked = request(fps)

    def prepared(library: Path) -> npt.NDArray[np.uint8]:
        native.use(library)
        rows: npt.NDArray[np.uint8] = prepare(model, asked).tensors["pixel_patches"]
        return rows

    assert np.array_equal(prepared(LIBRARY), prepared(Path("absent"))), "the rows differ"
    return medians({"torch": lambda: prepared(Path("absent")), "kernel": lambda: prepared(LIBRARY)}, rounds)


def listed(name: str, taken: dict[str, float]) -> str:
    cells = (f"{way} {spent:.3f} ({spent / taken['torch']:.2f})" for way, spent in taken.items())
    return f"{name}: {', '.join(cells)}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.frame_rows")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--fps", type=float, nargs="*", default=[1, 2, 4, 8])
    options = parser.parse_args()
    keep_freed_memory()
    about = machine()
    print(about["cpu"], "· CPU ms, median (÷ torch)", flush=True)
    for source, target in SIZES:
        taken = one_frame(source, target, options.rounds)
        print(listed(f"a frame {source[1]}x{source[0]} → {target[1]}x{target[0]}", taken), flush=True)
    model = load_model("qwen3-vl")
    for fps in options.fps:
        print(listed(f"the seed clip at {fps:g} fps", whole_request(model, fps, options.rounds)), flush=True)


if __name__ == "__main__":
    main()
