"""The benchmark's figures: medians and ratios, judged, as Markdown and as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

ENDS_IN = {
    "before": "float32, float resize",
    "seed": "float32",
    "ours": "uint8 + token ids",
    "ours FP32": "float32 + token ids",
    "bound": "as many bytes as ours",
}


@dataclass(frozen=True, slots=True)
class Ratio:
    """One path's time over another's.

    Attributes:
        floor: What it must reach at every rate, in wall and in CPU time; None where nothing is required.
        goals: By frames a second, what we want: at least, or for a ratio to `bound` at most.
    """

    over: str
    under: str
    floor: float | None = None
    goals: Mapping[float, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.over} ÷ {self.under}"


RATIOS = (
    Ratio("before", "ours", 3.0, {1: 4, 2: 5.5, 4: 8, 8: 10}),
    Ratio("seed", "ours", 1.8, {1: 2.2, 2: 2.6, 4: 3, 8: 3.4}),
    Ratio("ours", "bound", None, {1: 1.25, 2: 1.35, 4: 1.6, 8: 2.0}),
    Ratio("before", "ours FP32"),
    Ratio("seed", "ours FP32"),
)

NOTES = """\
- Every path starts from the mp4 in memory and ends in the pixel rows. `before` and `seed` end in normalized float32; `ours`
  ends in uint8, which the engine normalizes on the GPU (its default form: a quarter of the bytes, the same information).
  `ours FP32` ends in the same float32 as `seed`, bit for bit.
- `ours` is `pipeline.prepare`: plan, chat template, token ids and positions are included. The others only make pixels and
  are given the frame indices (`bound` the timestamps); nobody else tokenizes here, which is to their favour.
- `bound` writes as many bytes as `ours`, so only `ours` is compared with it.
- Loading the model and building Hugging Face's processor are done once and not timed; nor is freeing a result.\
"""


@dataclass(frozen=True, slots=True)
class Timed:
    """One path at one rate: milliseconds of each round."""

    wall_ms: list[float]
    cpu_ms: list[float]

    @property
    def medians(self) -> tuple[float, float]:
        return statistics.median(self.wall_ms), statistics.median(self.cpu_ms)


@dataclass(frozen=True, slots=True)
class Rate:
    """All paths at one sampling rate; `before_off` is how far `before` was off, in uint8 levels."""

    fps: float
    frame_count: int
    output_bytes: int
    before_off: Mapping[str, float]
    paths: Mapping[str, Timed]

    def ratio(self, ratio: Ratio) -> tuple[float, float]:
        """Of the median wall times, and of the median CPU times."""
        over, under = self.paths[ratio.over].medians, self.paths[ratio.under].medians
        return over[0] / under[0], over[1] / under[1]


def missed_floors(rates: Iterable[Rate]) -> list[str]:
    """A line for each required ratio that is not reached in both wall and CPU time."""
    return [
        f"{ratio.name} at {rate.fps:g} fps: {min(rate.ratio(ratio)):.2f}, required {ratio.floor:g}"
        for rate in rates
        for ratio in RATIOS
        if ratio.floor is not None and min(rate.ratio(ratio)) < ratio.floor
    ]


def markdown(workload: str, rounds: int, about: Mapping[str, Any], rates: list[Rate]) -> str:
    """The whole report."""
    sizes = ["frames; MB of uint8", "", *(f"{rate.frame_count}; {rate.output_bytes / 1e6:.0f}" for rate in rates)]
    times = [[name, kind, *_times(rates, name)] for name, kind in ENDS_IN.items()]
    ratios = [row for ratio in RATIOS for row in _ratio_rows(ratio, rates)]
    lines = [
        f"{workload}; one thread; {rounds} rounds, each path once a round in turn; medians.",
        "",
        *machine_lines(about),
        "",
        *_table(["ms, wall / CPU", "ends in"], rates, [sizes, *times]),
        "",
        *_table(["ratio, wall / CPU", "required"], rates, ratios),
        "",
        "Compared before timing: frame counts and grids equal; `ours FP32` and the table's image of `ours` equal `seed` exactly;",
        "`before` is off, in uint8 levels, by " + "; ".join(_off(rate) for rate in rates) + ".",
        "",
        NOTES,
    ]
    if rounds < 5:
        lines += ["", f"**{rounds} rounds prove that this runs, and no figure: at least 5 are needed.**"]
    return "\n".join(lines)


def machine_lines(about: Mapping[str, Any]) -> list[str]:
    """Where a report's figures come from."""
    return [
        f"{about['cpu']}, {about['cores_usable']} of {about['cores']} cores, {about['system']}  ",
        f"load average {about['load_average']} at the end, {about['threads_of_this_process']} thread(s) in this process  ",
        ", ".join(f"{name} {number}" for name, number in about["versions"].items()) + "  ",
        f"`{about['command']}`",
    ]


def table(head: Sequence[str], rows: Iterable[Sequence[str]], label_count: int) -> list[str]:
    """A table whose first `label_count` columns are text, and the others figures."""
    align = ["---"] * label_count + ["---:"] * (len(head) - label_count)
    return ["| " + " | ".join(cells) + " |" for cells in (head, align, *rows)]


def as_json(workload: str, rounds: int, about: Mapping[str, Any], rates: list[Rate]) -> dict[str, Any]:
    """The same with every sample."""
    ratios = [
        {
            "ratio": ratio.name,
            "fps": rate.fps,
            "wall": wall,
            "cpu": cpu,
            "floor": ratio.floor,
            "goal": ratio.goals.get(rate.fps),
        }
        for rate in rates
        for ratio in RATIOS
        for wall, cpu in [rate.ratio(ratio)]
    ]
    return {
        "workload": workload,
        "rounds": rounds,
        "machine": dict(about),
        "rates": [asdict(rate) for rate in rates],
        "ratios": ratios,
        "missed": missed_floors(rates),
    }


def _table(head: list[str], rates: list[Rate], rows: list[list[str]]) -> list[str]:
    return table([*head, *(f"{rate.fps:g} fps" for rate in rates)], rows, 2)


def _times(rates: list[Rate], name: str) -> list[str]:
    return ["{:.0f} / {:.0f}".format(*rate.paths[name].medians) for rate in rates]


def _ratio_rows(ratio: Ratio, rates: list[Rate]) -> list[list[str]]:
    """The measured ratios and, where there are goals, a row with them."""
    required = "" if ratio.floor is None else f"≥ {ratio.floor:g}"
    cells = []
    for rate in rates:
        wall, cpu = rate.ratio(ratio)
        is_missed = ratio.floor is not None and min(wall, cpu) < ratio.floor
        cells.append(f"{wall:.2f} / {cpu:.2f}" + (" **missed**" if is_missed else ""))
    rows = [[ratio.name, required, *cells]]
    if ratio.goals:
        sign = "≤" if ratio.under == "bound" else "≥"
        rows.append(
            ["· goal", "", *(f"{sign} {ratio.goals[rate.fps]:g}" if rate.fps in ratio.goals else "" for rate in rates)]
        )
    return rows


def _off(rate: Rate) -> str:
    off = rate.before_off
    return (
        f"{off['mean_levels']:.2f} on average, {off['max_levels']:.1f} at most, "
        f"over one in {off['share_over_one_level']:.3%} ({rate.fps:g} fps)"
    )
