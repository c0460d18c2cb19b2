"""Peak memory of a path, in a process of its own: what it takes beyond what lay there before it began."""

from __future__ import annotations

import ctypes
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import torch

from tests.bench.contest import CannotDo
from tests.bench.image_paths import IMAGE_PATHS, make_image_job
from tests.bench.paths import PATHS, make_job, seed_processor
from tests.bench.scripts import auto_processor
from tests.golden.huggingface import processor_of
from tests.loading import load_family_model

_RESET_PEAK = "5"  # proc(5), /proc/[pid]/clear_refs


def peak_bytes(path: str, files: Sequence[bytes], fps: float | None, text: str) -> int | None:
    """Of one request; None where the path cannot do it.

    Args:
        path: Its name in `PATHS`, or in `IMAGE_PATHS` where fps is None.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(_peak_bytes, path, tuple(files), fps, text).result()


def _peak_bytes(path: str, files: tuple[bytes, ...], fps: float | None, text: str) -> int | None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    model = load_family_model("qwen3-vl")
    auto_processor(model)  # built once by whoever serves, so not a request's
    seed_processor()
    if fps is None:
        image_job = make_image_job(model, files, text)
        processor_of(model)
        before = _start()
        image_result = IMAGE_PATHS[path](image_job)
        assert image_result.frame_count
    else:
        job = make_job(model, files[0], fps, text)
        before = _start()
        try:
            result = PATHS[path](job)
        except CannotDo:
            return None
        assert result.frame_count
    return _status_bytes("VmHWM") - before


def _start() -> int:
    """Forget the peak so far, and give back what loading has freed: requests would be served from it unseen. Resident bytes."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
    return _status_bytes("VmRSS")


def _status_bytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status knows no {name}")
