"""What must hold before anything is timed: the paths make the same pixels.

Exactly the same, but for `before`: it resizes floats, where the others resize uint8 values that round and saturate on the
way. Its overshoot beside sharp edges is clipped here to the range that pixels have, and what remains has a tolerance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from preprocessor.types.request import PixelForm
from preprocessor.vision.patches import normalization_table, normalize_rows
from tests.bench.contest import CannotDo, Disagreement, Result
from tests.bench.paths import PATHS, Job, PixelPath

LEVEL = 2 / 255
"""One step of a uint8, in normalized pixels (mean and std are 0.5)."""

# What `before` may be off: so much on average, and by more than one level in so many of its values.
# Measured on the workload: 0.18 to 0.20 levels, and 4e-5 to 6e-5 of the values, those beside sharp edges.
BEFORE_MEAN_LEVELS = 0.5
BEFORE_SHARE_OVER_ONE_LEVEL = 1e-3


@dataclass(frozen=True, slots=True)
class Comparison:
    """What taking every path once showed.

    Attributes:
        before_off: How far `before` is off, in uint8 levels: mean, largest, and the share of values off by more than one;
            empty where it cannot take part.
        cannot: Why a path cannot do this workload, by its name.
    """

    before_off: Mapping[str, float]
    cannot: Mapping[str, str]


def compare_paths(job: Job, paths: Mapping[str, PixelPath] = PATHS) -> Comparison:
    """Run every path once and compare what they make.

    Raises:
        Disagreement: Frames or grids differ, ours is not exactly `seed` or `hf`, or `before` is outside its tolerance.
    """
    results: dict[str, Result] = {}
    cannot: dict[str, str] = {}
    for name, path in paths.items():
        try:
            results[name] = path(job)
        except CannotDo as error:
            cannot[name] = str(error)
    counts = {name: result.frame_count for name, result in results.items()}
    grids = {name: result.grid_thw for name, result in results.items() if result.grid_thw is not None}
    if set(counts.values()) != {len(job.indices)}:
        raise Disagreement(f"{len(job.indices)} frames were asked for, decoded were {counts}")
    if any(grid != grids["ours"] for grid in grids.values()):
        raise Disagreement(f"the grids differ: {grids}")
    patches = results["ours"].pixels
    normalized = np.empty(patches.shape, np.float32)
    normalize_rows(patches, normalization_table(job.model.video.pixels, PixelForm.FP32), normalized)
    for name in ("seed", "hf"):
        if name in cannot:
            continue
        if not np.array_equal(results["ours FP32"].pixels, results[name].pixels):
            raise Disagreement(f"ours in FP32 is not exactly what {name} makes")
        if not np.array_equal(normalized, results[name].pixels):
            raise Disagreement(f"our uint8 patches, looked up in the table, are not exactly what {name} makes")
    if results["bound"].pixels.nbytes != patches.nbytes:
        raise Disagreement(f"bound wrote {results['bound'].pixels.nbytes} bytes, ours {patches.nbytes}")
    before_off = {} if "before" in cannot else _levels_off(results["before"].pixels, normalized)
    return Comparison(before_off, cannot)


def _levels_off(before: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> dict[str, float]:
    off = np.abs(np.clip(before, -1, 1) - expected) / LEVEL
    share = float(np.mean(off > 1))
    if off.mean() > BEFORE_MEAN_LEVELS or share > BEFORE_SHARE_OVER_ONE_LEVEL:
        raise Disagreement(f"before is {off.mean():.2f} levels off on average, {share:.2%} of it by more than one")
    return {"mean_levels": float(off.mean()), "max_levels": float(off.max()), "share_over_one_level": share}
