"""The clips that are asked about, kept in a folder: x264's bytes differ from one run to the next, and every process that
takes part in a comparison must have the same."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

from tests.media import moving_shapes_clip

FOLDER = Path(__file__).parents[1] / "out" / "clips"
SEED, LONG, HD = "30 s, 374x374", "5 min, 374x374", "1 min, 1280x720"
OTHERS = tuple(f"4 s, 320x240, {seed}" for seed in range(1, 7))

_MAKERS: dict[str, Callable[[], bytes]] = {
    SEED: moving_shapes_clip,  # the workload of every benchmark here
    LONG: partial(moving_shapes_clip, seconds=300),
    HD: partial(moving_shapes_clip, seconds=60, width=1280, height=720),
    **{
        name: partial(moving_shapes_clip, seconds=4, width=320, height=240, seed=seed)
        for seed, name in enumerate(OTHERS, 1)
    },
}


@cache
def clip(name: str) -> bytes:
    """The clip of that name, made if no process has made it yet."""
    path = FOLDER / f"{name}.mp4"
    if not path.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")
        unfinished.write_bytes(_MAKERS[name]())
        unfinished.replace(path)
    return path.read_bytes()
