"""The native kernel beside torch: every byte, for every set of instructions that this CPU has."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from preprocessor.types.timing import Timings
from preprocessor.vision import native
from preprocessor.vision.frame_rows import row_writer
from preprocessor.vision.weights import axis_weights
from tests.unit.native_cases import Case, Size, differing, expected, made, spec_of
from tests.waiting import PATIENCE_SECONDS

needs_library = pytest.mark.skipif(not native.VARIANTS, reason="the native kernel is not built here: make setup")
SOURCES = sorted(Path(native.__file__).parent.glob("*.c"))
LIBRARY = Path(native.__file__).with_name("_resize.abi3.so")
QWEN = spec_of(16, 2, 2)
ROOT = Path(__file__).parents[2]


def noise(height: int, width: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def written(frame: npt.NDArray[np.uint8], target: Size, canvas: Size, *, variant: int | None) -> npt.NDArray[np.uint8]:
    size = (frame.shape[0], frame.shape[1])
    rows = np.full((canvas[0] * canvas[1] // 256, QWEN.feature_count), 77, np.uint8)
    write = row_writer(size, target, 2, QWEN, canvas, variant=variant)
    write(frame, rows, slice(0, 2), Timings().stopwatch())
    return rows


@needs_library
def test_random_frames_come_out_as_torch_makes_them() -> None:
    assert differing(0, 100) == []


@needs_library
@pytest.mark.slow
def test_thousands_of_random_frames_come_out_as_torch_makes_them() -> None:
    assert differing(int.from_bytes(os.urandom(4)), 8_000) == []


@needs_library
@pytest.mark.slow
def test_every_length_comes_out_as_torch_makes_it() -> None:
    """Every length up to 420 px beside every length that it may become: edges are where weights are cut off."""
    for source in range(1, 421):
        for target in range(32, 417, 32):
            frame = noise(source, 3)
            case = Case(frame, (target, 32), (target, 32), QWEN, slice(0, 1))
            rows = expected(case)
            turned = Case(frame.transpose(1, 0, 2).copy(), (32, target), (32, target), QWEN, slice(0, 1))
            turned_rows = expected(turned)
            for variant in range(len(native.VARIANTS)):
                assert np.array_equal(made(case, variant), rows), case
                assert np.array_equal(made(turned, variant), turned_rows), turned


@needs_library
@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((374, 374), (320, 320)),
        ((374, 374), (384, 384)),
        ((720, 1280), (224, 416)),
        ((1080, 1920), (128, 224)),
        ((1, 1), (32, 32)),
        ((512, 512), (32, 32)),
        ((1024, 16), (64, 32)),
    ],
    ids=str,
)
def test_sizes_in_use_come_out_as_torch_makes_them(source: Size, target: Size) -> None:
    case = Case(noise(*source), target, target, QWEN, slice(0, 2))
    rows = expected(case)
    for variant, name in enumerate(native.VARIANTS):
        assert np.array_equal(made(case, variant), rows), name


@needs_library
def test_a_frame_may_lie_in_memory_in_any_way() -> None:
    wide = noise(70, 105)
    for frame in (wide[:, :102], wide[::-1], wide[:, ::-1], wide[..., ::-1], np.rot90(wide)):
        assert np.array_equal(
            written(frame, (64, 96), (64, 96), variant=0),
            written(np.ascontiguousarray(frame), (64, 96), (64, 96), variant=None),
        )


@needs_library
def test_arrays_that_the_kernel_would_not_fit_are_refused() -> None:
    weights = axis_weights(70, 64)
    resizer = native.RowResizer(weights, weights, (64, 64), patch=16, merge=2, frames=2)
    frame, rows = noise(70, 70), np.zeros((16, QWEN.feature_count), np.uint8)
    resizer.write(frame, rows, slice(0, 2))
    fixed = rows.view()
    fixed.flags.writeable = False
    others: list[tuple[Any, Any]] = [
        (frame[1:], rows),
        (frame.astype(np.uint16), rows),
        (frame, rows[1:]),
        (frame, rows[:, ::-1]),
        (frame, fixed),
    ]
    for wrong_frame, wrong_rows in others:
        with pytest.raises(ValueError, match="is needed"):
            resizer.write(wrong_frame, wrong_rows, slice(0, 2))


@pytest.mark.parametrize("target", [(64, 96), (40, 96), (64, 70), (64, 3)], ids=str)
def test_both_ways_write_the_same_rows(target: Size) -> None:
    frame = noise(70, 102)
    rows = [written(frame, target, (64, 96), variant=variant) for variant in (0, None)]
    assert np.array_equal(rows[0], rows[1])
    assert not (rows[0] == 77).all()


def test_what_shrinks_too_much_for_the_kernel_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("the kernel was asked")

    monkeypatch.setattr(native, "RowResizer", refuse)
    case = Case(noise(513, 20), (32, 32), (32, 32), QWEN, slice(0, 2))
    assert np.array_equal(written(case.frame, (32, 32), (32, 32), variant=0), expected(case))


def test_without_the_library_torch_does_it(tmp_path: Path) -> None:
    frame, size = noise(70, 102), (64, 96)
    rows = written(frame, size, size, variant=0)
    try:
        native.use(tmp_path / "absent.so")
        assert native.VARIANTS == ()
        assert np.array_equal(written(frame, size, size, variant=0), rows)
    finally:
        native.use(LIBRARY)


@pytest.mark.slow
def test_sanitizers_find_nothing(tmp_path: Path) -> None:
    """Memory and undefined behaviour, over random frames: a library built for this, in a process of its own."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs gcc and its sanitizers")
    library = tmp_path / "sanitized.so"
    checks = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1"]
    subprocess.run(
        [compiler, "-std=c11", *checks, "-fPIC", "-shared", "-fvisibility=hidden", "-o", library, *SOURCES],
        check=True,
        timeout=PATIENCE_SECONDS,
    )
    runtimes = [
        subprocess.run(
            [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.native_cases", library, "600"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=10 * PATIENCE_SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "portable" in done.stdout
