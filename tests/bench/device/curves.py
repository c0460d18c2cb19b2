"""The curves of a run: `python -m tests.bench.device.curves tests/bench/device/figures` draws its JSON files and vllm.jsonl.

SVG with text as text; the same figures give the same files.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from tests.bench.device.vllm.plan import SERVER_OF
from tests.bench.device.vllm.report import read_points
from tests.bench.plots import STYLE

_COLORS = ("#2f4858", "#d1603d", "#c9a227", "#6b8f71")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.device.curves", description="Draw a run's curves.")
    parser.add_argument("figures", type=Path, help="folder with the JSON of each part")
    parser.add_argument("--out", type=Path, help="where to (default: plots/ beside that folder)")
    arguments = parser.parse_args()
    out = arguments.out or arguments.figures.parent / "plots"
    for name, draw in DRAWN.items():
        path = arguments.figures / f"{name}.json"
        if path.exists():
            draw(json.loads(path.read_text())["figures"], out / f"{name}.svg")
    lines = arguments.figures / "vllm.jsonl"
    if lines.exists():
        _draw_vllm(read_points(lines), out / "vllm.svg")


def _draw_splitting(figures: Mapping[str, Any], path: Path) -> None:
    """One clip on an idle service, by workers."""
    with _panels(path, 1) as (panel,):
        for (name, medians), color in zip(figures["median_ms"].items(), _COLORS, strict=False):
            panel.plot([int(count) for count in medians], medians.values(), color=color, label=name)
        _powers_of_two(panel, next(iter(figures["median_ms"].values())), "workers")
        panel.set_title("one clip on an idle service, ms")
        panel.set_ylim(bottom=0)
        panel.legend()


def _draw_first_token(figures: Mapping[str, Any], path: Path) -> None:
    """Medians, and from the least to the most, by way."""
    samples = figures["samples"]
    rates = sorted({sample["fps"] for sample in samples})
    with _panels(path, len(rates), height=3.2) as panels:
        for rate, panel in zip(rates, panels, strict=True):
            shown = [sample for sample in samples if sample["fps"] == rate][::-1]
            times = [sample["first_token_ms"] for sample in shown]
            medians = [statistics.median(each) for each in times]
            spread = [[m - min(each) for m, each in zip(medians, times, strict=True)]]
            spread.append([max(each) - m for m, each in zip(medians, times, strict=True)])
            colors = [_COLORS[("uint8", "bf16", "fp32").index(sample["form"])] for sample in shown]
            panel.barh([sample["way"] for sample in shown], medians, xerr=spread, color=colors, height=0.7)
            panel.set_title(f"first token at {rate:g} fps, ms")
            panel.grid(axis="y", visible=False)
            if panel is not panels[0]:
                panel.tick_params(labelleft=False)


def _draw_idle(figures: Mapping[str, Any], path: Path) -> None:
    """The GPU's idle share, and answers a second, by callers."""
    lines: dict[tuple[str, float], list[Any]] = {}
    for point in figures["points"]:
        lines.setdefault((point["system"], point["fps"]), []).append(point)
    with _panels(path, 2) as (share, rate):
        for (system, fps), points in lines.items():
            callers = [point["callers"] for point in points]
            color = _COLORS[system != "one process"]
            look: dict[str, Any] = {
                "color": color,
                "linestyle": "-" if fps == 1 else "--",
                "label": f"{system}, {fps:g} fps",
            }
            share.plot(callers, [point["gpu_idle"] for point in points], **look)
            rate.plot(callers, [point["answers_a_second"] for point in points], **look)
        share.set_title("share of the time in which the GPU is idle")
        rate.set_title("answers a second")
        for panel in (share, rate):
            panel.set_ylim(bottom=0)
            _powers_of_two(panel, callers, "callers")
        share.legend()


def _draw_load(figures: Mapping[str, Any], path: Path) -> None:
    """Requests a second, p50 and p99, by callers."""
    with _panels(path, 2) as (rate, latency):
        for (fps, points), color in zip(figures["by_fps"].items(), _COLORS, strict=False):
            callers = [point["callers"] for point in points]
            rate.plot(callers, [point["requests_a_second"] for point in points], color=color, label=f"{fps} fps")
            for name, style in (("p50_ms", "-"), ("p99_ms", ":")):
                times = [point[name] for point in points]
                latency.plot(callers, times, color=color, linestyle=style, label=f"{fps} fps, {name[:3]}")
        rate.set_title("requests a second")
        rate.set_ylim(bottom=0)
        latency.set_title("latency, ms")
        latency.set_yscale("log")
        for panel in (rate, latency):
            _powers_of_two(panel, callers, "callers")
            panel.legend()


def _draw_scaling(figures: Mapping[str, Any], path: Path) -> None:
    """Requests a second by workers: processes, their pool alone, threads."""
    rows = figures["rows"]
    counts = sorted({row["workers"] for row in rows})
    with _panels(path, 1) as (panel,):
        for kind, color in zip(dict.fromkeys(row["kind"] for row in rows), _COLORS, strict=False):
            rates = [row["requests_a_second"] for row in rows if row["kind"] == kind]
            panel.plot(counts, rates, color=color, label=kind)
        panel.plot(
            counts,
            [count * rows[0]["one_core_rate"] for count in counts],
            color="#999999",
            ls=":",
            marker="",
            label="linear",
        )
        _powers_of_two(panel, counts, "workers")
        panel.set_title("requests a second at 1 fps")
        panel.set_ylim(bottom=0)
        panel.legend()


def _draw_vllm(points: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Requests a second by callers for each system; a panel for each rate of frames. Answers have one token."""
    rates = sorted({point["fps"] for point in points})
    with _panels(path, len(rates)) as panels:
        for fps, panel in zip(rates, panels, strict=True):
            shown = sorted(
                (point for point in points if point["fps"] == fps and point["max_tokens"] == 1),
                key=lambda point: int(point["callers"]),
            )
            for index, system in enumerate(SERVER_OF):
                of_system = [point for point in shown if point["system"] == system]
                if not of_system:
                    continue
                panel.plot(
                    [point["callers"] for point in of_system],
                    [point["requests_a_second"] for point in of_system],
                    color=_COLORS[index // 2],
                    linestyle="--" if index % 2 else "-",
                    label=system,
                )
            _powers_of_two(panel, sorted({point["callers"] for point in shown}), "callers")
            panel.set_title(f"requests a second at {fps:g} fps")
            panel.set_ylim(bottom=0)
        panels[-1].legend(loc="lower right")


DRAWN = {
    "scaling": _draw_scaling,
    "splitting": _draw_splitting,
    "first-token": _draw_first_token,
    "idle": _draw_idle,
    "load": _draw_load,
}


def _powers_of_two(panel: Axes, values: Any, label: str) -> None:
    panel.set_xscale("log", base=2)
    panel.set_xticks([int(value) for value in values], [str(value) for value in values])
    panel.set_xlabel(label)


@contextmanager
def _panels(path: Path, count: int, height: float = 3.0) -> Iterator[list[Axes]]:
    """Beside each other; saved at the end."""
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, count, figsize=(4.6 * count, height), squeeze=False, layout="constrained")
        yield list(panels.flat)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


if __name__ == "__main__":
    main()
