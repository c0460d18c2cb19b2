"""Families of the fast path beside transformers' own processor on the generic path: the same request, the same values.

    python -m tests.bench.families                          # the small models of tests/parity and tests/golden/models, minutes
    python -m tests.bench.families kimi-k2.5 gemma3 --rounds 9

Both paths get the seed clip with the same frames, 20 small images, or 20 photos as phones and web pages have them. The generic
path makes normalized float32, `fast` uint8 rows as an engine gets them, `fast FP32` the generic path's float32. Before anything
is timed, prompts are compared, and pixels where both paths arrange them alike. MiniMax-M3's own processor resizes no video, so it
has no row for the clip; nor has a model that takes none. The fast path writes into memory that has been written before, as a
worker does; transformers' processor always allocates its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocessor.config import Limits
from preprocessor.config.machine import use_one_thread
from preprocessor.errors import PreprocessorError
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
    Sampling,
    TextPart,
)
from tests.bench.apart import timed_apart
from tests.bench.contest import Result, ratio, run_in_turn
from tests.bench.workloads import PICTURES, SEED, data_of
from tests.golden import huggingface  # noqa: F401  # makes torchvision importable
from tests.golden.tile_cases import MODELS
from tests.media import photo
from tests.parity.small_models import SMALL_MODELS

_PATHS = ("fast", "fast FP32", "generic")
_GENEROUS = Limits(max_pixel_bytes=1 << 33)
_PHOTO_SIZES = ((1280, 960), (960, 1280), (800, 600), (1920, 1080))
_TILE_MODELS = {path.name: path for path in sorted(MODELS.iterdir())}
_NAMES = (*SMALL_MODELS, *_TILE_MODELS)


def requests(modalities: frozenset[Modality]) -> dict[str, PreparationRequest]:
    small = data_of(PICTURES[1])
    photos = [photo(*_PHOTO_SIZES[n % len(_PHOTO_SIZES)], seed=n) for n in range(len(small))]
    images = {PICTURES[1].name: small, f"{len(photos)} photos": photos}
    asked = {
        name: _ask(*(Media(f"p{index}", Modality.IMAGE, data) for index, data in enumerate(files)))
        for name, files in images.items()
    }
    if Modality.VIDEO not in modalities:
        return asked
    (clip,) = data_of(SEED)
    video = Media("v", Modality.VIDEO, clip, Sampling(indices=tuple(range(0, 900, 15))))
    return {f"{SEED.name}, 60 frames": _ask(video), **asked}


def _ask(*media: Media) -> PreparationRequest:
    parts: tuple[MediaPart | TextPart, ...] = (*(MediaPart(one.key) for one in media), TextPart("What happens here?"))
    return PreparationRequest(ChatPrompt((Message("user", parts),)), media, PixelForm.FP32)


@cache
def _load(path: str, directory: str) -> LoadedModel:
    return load_generic(directory, Path(directory)) if path == "generic" else load_model(directory)


def _prepared(path: str, directory: str, request: PreparationRequest) -> tuple[npt.NDArray[Any], Result]:
    """Token ids, and the rest."""
    if path == "fast":
        request = dataclasses.replace(request, pixel_form=PixelForm.UINT8)
    done = prepare(_load(path, directory), request, _GENEROUS)
    pixels = next(values for name, values in done.tensors.items() if name.startswith(("pixel_values", "pixel_patches")))
    result = Result(pixels.reshape(len(pixels), -1), None, len(request.media), done.plan.timings)
    return done.tensors["input_ids"].ravel(), result


_arena: dict[tuple[int, ...], npt.NDArray[Any]] = {}
"""Of this process, whose requests have one tensor each."""


def _timed(path: str, directory: str, request: PreparationRequest) -> Result:
    if path == "generic":
        return _prepared(path, directory, request)[1]
    if path == "fast":
        request = dataclasses.replace(request, pixel_form=PixelForm.UINT8)
    planned = plan(_load(path, directory), request, _GENEROUS)
    assert planned.pixels is not None
    shape = (planned.pixels.row_count, planned.pixels.feature_count, planned.pixels.size_bytes)
    pixels = _arena[shape] if shape in _arena else _arena.setdefault(shape, allocate_pixels(planned.pixels))
    write_pixels(_load(path, directory), request.media, planned.pixels, pixels)
    return Result(pixels, None, len(request.media), planned.timings)


def compare(directory: str, request: PreparationRequest) -> str:
    """Why nothing is to be timed; empty where both make the same."""
    try:
        (generic_ids, generic), (fast_ids, fast) = (
            _prepared(path, directory, request) for path in ("generic", "fast FP32")
        )
    except PreprocessorError as error:
        return str(error)
    are_alike = generic.pixels.shape == fast.pixels.shape
    if not np.array_equal(generic_ids, fast_ids) or (are_alike and not np.array_equal(generic.pixels, fast.pixels)):
        raise SystemExit(f"{directory}: the two paths differ")
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.families", description="Fast path ÷ generic path.")
    parser.add_argument("models", nargs="*", default=list(_NAMES), metavar="MODEL", help=", ".join(_NAMES))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    use_one_thread()
    columns = ("model", "workload", *(f"{path}, CPU ms" for path in _PATHS), "generic ÷ fast", "generic ÷ fast FP32")
    print(f"| {' | '.join(columns)} |\n|---|---|{'--:|' * (len(columns) - 2)}")
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models:
            directory = str(_TILE_MODELS.get(name) or Path(folder) / name)
            if name in SMALL_MODELS:
                SMALL_MODELS[name].save(Path(directory))
            for workload, request in requests(_load("fast", directory).modalities).items():
                if why_not := compare(directory, request):
                    print(f"{name}, {workload}: {why_not}", file=sys.stderr)
                    continue
                paths = {path: partial(_timed, path, directory, request) for path in _PATHS}
                with timed_apart(paths) as runners:
                    timed = run_in_turn(runners, options.rounds)
                ratios = [ratio(timed, "generic", path) for path in _PATHS[:2]]
                told = [f"{found[1]:.1f}" for found in ratios if found is not None]
                cells = (name, workload, *(f"{timed[path].cpu_ms:.0f}" for path in _PATHS), *told)
                print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
