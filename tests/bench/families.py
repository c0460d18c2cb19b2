"""The fast path of each family in `tests/golden/models` beside the generic path, on 20 photos. From the repository's root:

    python -m tests.bench.families [NAME ...]

Prompts are compared before anything is timed. Prints CPU seconds of the fastest round, in turn, and their ratio. The fast path
writes into memory that has been written before, as a worker does; transformers' processor always allocates its own.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: one core, as a worker has

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from preprocessor.config import Limits
from preprocessor.models.generic import load_generic
from preprocessor.models.loaded import LoadedModel
from preprocessor.models.registry import load_model
from preprocessor.pipeline import allocate_pixels, plan, prepare, write_pixels
from preprocessor.types.request import (
    ChatPrompt,
    Media,
    MediaPart,
    Message,
    Modality,
    PixelForm,
    PreparationRequest,
    TextPart,
)
from tests.golden.tile_cases import MODELS
from tests.media import photo

IMAGE_COUNT = 20
ROUNDS = 3


def request(form: PixelForm) -> PreparationRequest:
    """Photos as phones and web pages have them, in landscape and in portrait."""
    sizes = [(1280, 960), (960, 1280), (800, 600), (1920, 1080)]
    media = [Media(f"photo {n}", Modality.IMAGE, photo(*sizes[n % len(sizes)], seed=n)) for n in range(IMAGE_COUNT)]
    shown = tuple(MediaPart(medium.key) for medium in media)
    message = Message("user", (*shown, TextPart("What has changed?")))
    return PreparationRequest(ChatPrompt((message,)), tuple(media), form)


def cpu_seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def worker_like(model: LoadedModel, request: PreparationRequest) -> Callable[[], object]:
    """What a worker does for a request: plan it, and write its pixels into the arena."""
    if not model.plans_from_headers(request):
        return lambda: prepare(model, request)
    pixels = plan(model, request, Limits()).pixels
    assert pixels is not None
    arena = allocate_pixels(pixels)

    def work() -> None:
        planned = plan(model, request, Limits()).pixels
        assert planned is not None
        write_pixels(model, request.media, planned, arena)

    return work


def compare(directory: Path) -> str:
    fast, generic = load_model(str(directory)), load_generic(directory.name, directory)
    ways: dict[str, tuple[LoadedModel, PreparationRequest]] = {
        "generic, FP32": (generic, request(PixelForm.FP32)),
        "fast, FP32": (fast, request(PixelForm.FP32)),
        "fast, uint8": (fast, request(PixelForm.UINT8)),
    }
    prompts = [prepare(*way).tensors["input_ids"].ravel() for way in ways.values()]
    assert all(np.array_equal(prompts[0], prompt) for prompt in prompts[1:]), "the prompts differ"
    work = {name: worker_like(*way) for name, way in ways.items()}
    taken = dict.fromkeys(ways, np.inf)
    for _ in range(ROUNDS):
        for name, run in work.items():
            taken[name] = min(taken[name], cpu_seconds(run))
    slowest = taken["generic, FP32"]
    cells = [f"{seconds:.2f} s" for seconds in taken.values()]
    ratios = [f"{slowest / taken[name]:.1f}" for name in list(ways)[1:]]
    return f"| {directory.name} | {' | '.join(cells)} | {' | '.join(ratios)} |"


def main() -> None:
    names = sys.argv[1:] or [directory.name for directory in sorted(MODELS.iterdir())]
    print("| family | generic, FP32 | fast, FP32 | fast, uint8 | generic ÷ fast, FP32 | generic ÷ fast, uint8 |")
    print("|---|--:|--:|--:|--:|--:|")
    for name in names:
        print(compare(MODELS / name), flush=True)


if __name__ == "__main__":
    main()
