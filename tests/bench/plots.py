"""The plots of a run, drawn from its JSON: `python -m tests.bench.plots tests/bench/out/bench.json` draws them again.

SVG with text as text: small, and the same figures give the same file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from tests.bench import goals

STYLE: Any = {  # of the type that matplotlib says, which names each key
    "svg.fonttype": "none",
    "svg.hashsalt": "vlm-preprocessor",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
    "figure.facecolor": "white",
    "lines.marker": "o",
    "lines.markersize": 4,
}

_STAGES = {
    "read headers, choose frames": ("plan",),
    "template, tokens, positions": ("tokenize",),
    "decode": ("decode",),
    "convert": ("convert",),
    "resize, cut, normalize": ("process", "resize", "patch", "normalize", "write"),
    "everything else": ("other",),
}
_STAGE_COLORS = ("#7f7f7f", "#c9a227", "#33658a", "#86bbd8", "#d1603d", "#cccccc")
_PATH_COLORS = {"before": "#d1603d", "seed": "#33658a", "hf": "#7a9e7e", "ours": "#2f4858", "service": "#c9a227"}
_SHOWN_PATHS = ("before", "seed", "hf", "ours FP32", "ours", "ours, service", "bound")


def draw(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw what the report has figures for; returns the files."""
    sections = report["sections"]
    drawn = []
    with plt.rc_context(STYLE):
        if "workload" in sections:
            drawn += [_draw_stages(sections["workload"], folder), _draw_ratios(sections["workload"], folder)]
        if "clips" in sections:
            drawn.append(_draw_clips(sections["clips"], folder))
        if "load" in sections:
            drawn += [_draw_throughput(sections["load"], folder), _draw_memory(sections["load"], folder)]
    return drawn


def stacked(stages_ms: Mapping[str, float]) -> dict[str, float]:
    """A path's stages, gathered into those that the plot shows; a stage that it does not know counts as everything else."""
    known = {stage: shown for shown, stages in _STAGES.items() for stage in stages}
    gathered = dict.fromkeys(_STAGES, 0.0)
    for stage, ms in stages_ms.items():
        gathered[known.get(stage, "everything else")] += ms
    return gathered


def _draw_stages(section: Mapping[str, Any], folder: Path) -> Path:
    """CPU of a request, stage by stage, a panel for each rate."""
    races = section["figures"]
    with _figure(folder / "stages.svg", 1, len(races), width=3.0 * len(races) + 1.4, height=3.1) as (
        figure,
        panels,
        path,
    ):
        for panel, race in zip(panels, races, strict=True):
            names = [name for name in reversed(_SHOWN_PATHS) if name in race["paths"]]
            left = [0.0] * len(names)
            rows = [stacked(race["paths"][name]["stages_cpu_ms"]) for name in names]
            for stage, color in zip(_STAGES, _STAGE_COLORS, strict=True):
                widths = [row[stage] for row in rows]
                panel.barh(names, widths, left=left, color=color, label=stage, height=0.68)
                left = [a + b for a, b in zip(left, widths, strict=True)]
            for row, total in enumerate(left):
                panel.text(total, row, f" {total:.0f}", va="center", fontsize=8)
            panel.set_title(f"{race['fps']:g} fps, {race['frame_count']} frames")
            panel.set_xlim(0, 1.16 * max(left))
            panel.set_xlabel("CPU, ms a request")
            panel.grid(axis="y", visible=False)
            panel.tick_params(axis="y", length=0, labelleft=panel is panels[0])
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(_STAGES))
    return path


def _draw_ratios(section: Mapping[str, Any], folder: Path) -> Path:
    """How often ours fits into the others, and how far it is from the bound, by rate; goals dashed."""
    races = section["figures"]
    fps = [race["fps"] for race in races]
    with _figure(folder / "ratios.svg", 1, 2, width=8.4, height=3.0) as (_, (others, bound), path):
        for over, goal in (("before", goals.BEFORE_TO_OURS), ("seed", goals.SEED_TO_OURS), ("hf", None)):
            _draw_ratio(others, races, fps, f"{over} ÷ ours", goal, _PATH_COLORS[over])
        _draw_ratio(bound, races, fps, "ours ÷ bound", goals.OURS_TO_BOUND, _PATH_COLORS["ours"])
        _draw_ratio(bound, races, fps, "ours, service ÷ ours", None, _PATH_COLORS["service"])
        others.set_title("others ÷ ours, CPU (higher is better)")
        bound.set_title("ours beside the bound, CPU (lower is better)")
        bound.axhline(1, color="black", linewidth=0.8, marker="")
        for panel in (others, bound):
            panel.set_xscale("log", base=2)
            panel.set_xticks(fps, [f"{one:g}" for one in fps])
            panel.set_xlabel("frames a second")
            panel.set_ylim(bottom=0)
            panel.legend()
    return path


def _draw_ratio(
    panel: Axes, races: list[Any], fps: list[float], name: str, goal: Mapping[float, float] | None, color: str
) -> None:
    points = [(race["fps"], race["ratios"][name]["cpu"]) for race in races if name in race["ratios"]]
    panel.plot([x for x, _ in points], [y for _, y in points], color=color, label=name)
    if goal is not None:
        wanted = [(one, goal[one]) for one in fps if one in goal]
        panel.plot(
            [x for x, _ in wanted], [y for _, y in wanted], color=color, linestyle="--", marker="", label="· goal"
        )


def _draw_clips(section: Mapping[str, Any], folder: Path) -> Path:
    """Other clips: `seed` (or `hf`) over ours."""
    races = list(reversed(section["figures"]))
    labels = [f"{race['clip']}, {race['fps']:g} fps" for race in races]
    names = ["seed ÷ ours" if "seed ÷ ours" in race["ratios"] else "hf ÷ ours" for race in races]
    values = [race["ratios"][name]["cpu"] for race, name in zip(races, names, strict=True)]
    with _figure(folder / "clips.svg", 1, 1, width=8.4, height=0.6 + 0.3 * len(races)) as (_, (panel,), path):
        colors = [_PATH_COLORS[name.split(" ÷ ")[0]] for name in names]
        panel.barh(labels, values, color=colors, height=0.68)
        for row, (value, name) in enumerate(zip(values, names, strict=True)):
            panel.text(
                value, row, f" {value:.2f}" + ("" if name.startswith("seed") else " (hf)"), va="center", fontsize=8
            )
        panel.axvline(1, color="black", linewidth=0.8)
        panel.set_title("seed ÷ ours, CPU (above 1: ours is faster)")
        panel.grid(axis="y", visible=False)
        panel.set_xlim(0, 1.15 * max(values))
    return path


def _draw_throughput(section: Mapping[str, Any], folder: Path) -> Path:
    """Requests a second, and p50 and p99, by callers."""
    with _figure(folder / "throughput.svg", 1, 2, width=8.4, height=3.0) as (_, (rate, latency), path):
        for (fps, points), color in zip(_by_fps(section), _PATH_COLORS.values(), strict=False):
            callers = [point["callers"] for point in points]
            rate.plot(callers, [point["requests_a_second"] for point in points], color=color, label=f"{fps:g} fps")
            goal = goals.SHARE_OF_CORES * points[0]["cores_rate"]
            rate.axhline(goal, color=color, linestyle="--", linewidth=0.8, marker="")
            latency.plot(callers, [point["p50_ms"] for point in points], color=color, label=f"{fps:g} fps, p50")
            latency.plot(
                callers, [point["p99_ms"] for point in points], color=color, linestyle=":", label=f"{fps:g} fps, p99"
            )
        rate.set_title(f"requests a second (dashed: {goals.SHARE_OF_CORES:g} of the cores' rate)")
        rate.set_ylim(bottom=0)
        latency.set_title("latency, ms")
        latency.set_yscale("log")
        for panel in (rate, latency):
            _scale_callers(panel, section)
    return path


def _draw_memory(section: Mapping[str, Any], folder: Path) -> Path:
    """Peak memory of the whole tree of processes, by callers."""
    with _figure(folder / "memory.svg", 1, 1, width=4.6, height=3.0) as (_, (panel,), path):
        for (fps, points), color in zip(_by_fps(section), _PATH_COLORS.values(), strict=False):
            peaks = [point["peak_pss_bytes"] / 1e6 for point in points]
            panel.plot([point["callers"] for point in points], peaks, color=color, label=f"{fps:g} fps")
        panel.set_title("peak memory (PSS), MB")
        panel.set_ylim(bottom=0)
        _scale_callers(panel, section)
    return path


def _by_fps(section: Mapping[str, Any]) -> list[tuple[float, list[Any]]]:
    points = section["figures"]
    return [(fps, [p for p in points if p["fps"] == fps]) for fps in dict.fromkeys(p["fps"] for p in points)]


def _scale_callers(panel: Axes, section: Mapping[str, Any]) -> None:
    callers = sorted({point["callers"] for point in section["figures"]})
    panel.set_xscale("log", base=2)
    panel.set_xticks(callers, [str(one) for one in callers])
    panel.set_xlabel("callers")
    panel.legend()


@contextmanager
def _figure(
    path: Path, rows: int, columns: int, *, width: float, height: float
) -> Iterator[tuple[Any, list[Axes], Path]]:
    """A figure and its panels; saved at the end."""
    figure, panels = plt.subplots(rows, columns, figsize=(width, height), squeeze=False, layout="constrained")
    yield figure, list(panels.flat), path
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.plots", description="Draw the plots of a run again.")
    parser.add_argument("report", type=Path, help="the JSON of a run")
    parser.add_argument("--folder", type=Path, help="where to (default: plots/ beside the report)")
    arguments = parser.parse_args()
    for path in draw(json.loads(arguments.report.read_text()), arguments.folder or arguments.report.parent / "plots"):
        print(path)


if __name__ == "__main__":
    main()
