"""The files that are measured: seeded, made here, and kept from one run to the next outside of the repository.

Making them is done in a process of its own. An encoder would leave hundreds of free megabytes in this process's heap, and
every path that asks for large tensors would get them without a page fault, as no server does that takes its memory from the
kernel.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

from preprocessor.traffic import seed
from preprocessor.traffic.seed import seed_clip
from tests import media
from tests.media import moving_shapes_clip, photo, repeated_clip

CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "vlm-preprocessor" / "bench"

_SHORT_GROUPS = (("g", "15"),)
_QUIET_X265 = (("x265-params", "log-level=error"),)
_FAST_VP9 = (("deadline", "realtime"), ("cpu-used", "8"))
_FAST_AV1 = (("preset", "10"),)


@dataclass(frozen=True, slots=True)
class Clip:
    """A video, and at which rates it is measured.

    Attributes:
        fps: Frames a second to sample; `make bench` takes the first, `make bench-full` all.
        least_seed_ratio: `seed` ÷ `ours` must reach it: 1.5 where frames that nobody refers to, or whole groups of pictures,
            can be skipped, else 1.
    """

    name: str
    make: Callable[[], bytes]
    fps: tuple[float, ...] = (1.0, 8.0)
    least_seed_ratio: float = 1.5


@dataclass(frozen=True, slots=True)
class Pictures:
    """Images of one prompt."""

    name: str
    make: Callable[[], tuple[bytes, ...]]


def _ten_minutes() -> bytes:
    return repeated_clip(seed_clip(), 20)


def _large_clip() -> bytes:
    return moving_shapes_clip(width=1280, height=720)


def _grainy_clip() -> bytes:
    """A new scene each second, noise in every frame, a keyframe each half second."""
    return moving_shapes_clip(grain=8, scene_count=30, options=_SHORT_GROUPS)


def _hevc_clip() -> bytes:
    return moving_shapes_clip(codec="libx265", options=_QUIET_X265)


def _vp9_clip() -> bytes:
    return moving_shapes_clip(codec="libvpx-vp9", options=_FAST_VP9)


def _av1_clip() -> bytes:
    return moving_shapes_clip(codec="libsvtav1", options=_FAST_AV1)


def _large_photo() -> tuple[bytes, ...]:
    return (photo(4000, 3000),)


def _small_photos() -> tuple[bytes, ...]:
    return tuple(photo(320, 240, seed=number) for number in range(20))


SEED = Clip("30 s, 374x374, H.264", seed_clip, (1.0, 2.0, 4.0, 8.0))

CLIPS = (
    Clip("30 s, 1280x720, H.264", _large_clip),
    Clip("grain and cuts, keyframe each 0.5 s, H.264", _grainy_clip),
    Clip("30 s, 374x374, HEVC", _hevc_clip),
    Clip("30 s, 374x374, VP9", _vp9_clip, least_seed_ratio=1.0),
    Clip("30 s, 374x374, AV1", _av1_clip, least_seed_ratio=1.0),
    Clip("10 minutes, 374x374, H.264", _ten_minutes, (0.1, 1.0)),
)

PICTURES = (Pictures("a 12-megapixel JPEG", _large_photo), Pictures("20 JPEGs of 320x240", _small_photos))


def data_of(workload: Clip | Pictures) -> tuple[bytes, ...]:
    """Its files; made where they are not yet there."""
    folder = CACHE / _recipe() / workload.name.replace(" ", "-").replace(",", "")
    if not folder.is_dir():
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            process.submit(_make, workload, folder).result()
    return tuple(path.read_bytes() for path in sorted(folder.iterdir()))


@cache
def _recipe() -> str:
    """Changes with whatever the files are made by."""
    sources = (Path(module.__file__ or "").read_bytes() for module in (seed, media))
    return hashlib.sha256(b"".join([Path(__file__).read_bytes(), *sources, version("av").encode()])).hexdigest()[:12]


def _make(workload: Clip | Pictures, folder: Path) -> None:
    made = workload.make()
    unfinished = folder.with_name(f"{folder.name}.{os.getpid()}")
    unfinished.mkdir(parents=True)
    for index, data in enumerate([made] if isinstance(made, bytes) else made):
        (unfinished / f"{index:03}").write_bytes(data)
    unfinished.rename(folder)
