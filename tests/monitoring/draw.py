"""Draw the Grafana dashboard without Grafana: its queries, answered by a real Prometheus about a service under some load.

    python -m tests.monitoring.draw dashboard.png [SECONDS]

For looking at: whether each panel shows something, and whether units, legends and lines are right.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from preprocessor.models.registry import load_model
from tests.monitoring.documented import dashboard_queries
from tests.monitoring.prometheus import DASHBOARD, Prometheus, scraping
from tests.monitoring.traffic import call_everything, observed_service

_CELL_INCHES = (1.0, 0.42)  # of Grafana's grid of 24 columns
Series = Sequence[Mapping[str, Any]]


async def observe(seconds: float) -> dict[str, Series]:
    """What each query of the dashboard gives for the last `seconds` of a service that is called all the time."""
    with tempfile.TemporaryDirectory() as folder:
        async with (
            observed_service(load_model("qwen3-vl")) as caller,  # type: ignore[arg-type]
            scraping(Path(folder), caller.server.http_address) as prometheus,
        ):
            await prometheus.until("preprocessor_ready == 1")
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                await asyncio.gather(*(call_everything(caller) for _ in range(3)))
            return {title: await _range(prometheus, query, seconds) for title, query in dashboard_queries().items()}


async def _range(prometheus: Prometheus, query: str, seconds: float) -> Series:
    now = time.time_ns() / 1e9
    answer = await prometheus.get("query_range", query=query, start=str(now - seconds), end=str(now), step="1")
    series: Series = answer["result"]
    return series


def draw(answers: Mapping[str, Series], path: Path) -> None:
    """A picture with each panel where Grafana has it."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    figure = plt.figure(figsize=(24 * _CELL_INCHES[0], rows * _CELL_INCHES[1]))
    for panel in panels:
        place = panel["gridPos"]
        left, top = place["x"] / 24, 1 - place["y"] / rows
        if panel["type"] == "row":
            figure.text(left + 0.005, top - 0.6 / rows, panel["title"], weight="bold")
            continue
        inner = (left + 0.03, top - (place["h"] - 1.2) / rows, place["w"] / 24 - 0.04, (place["h"] - 2.4) / rows)
        axes = figure.add_axes(inner)
        axes.set_title(panel["title"], fontsize=9)
        given = [(target, answers[f"{panel['title']} {target['refId']}"]) for target in panel["targets"]]
        if panel["type"] == "stat":
            _draw_figure(axes, panel, given[0][1])
        elif panel["type"] == "timeseries":
            _draw_lines(axes, panel, given)
        else:
            axes.axis("off")
            axes.text(0, 0.5, "\n".join(str(one["metric"]) for one in given[0][1]), fontsize=7)
    figure.savefig(path, dpi=70)


def _draw_figure(axes: Axes, panel: Mapping[str, Any], series: Series) -> None:
    value = float(series[0]["values"][-1][1]) if series else float("nan")
    defaults = panel["fieldConfig"]["defaults"]
    colours = [
        step["color"] for step in defaults["thresholds"]["steps"] if step["value"] is None or value >= step["value"]
    ]
    axes.set_facecolor(
        {"yellow": "gold"}.get(colours[-1], f"light{colours[-1]}" if colours[-1] == "green" else "salmon")
    )
    axes.set(xticks=[], yticks=[])
    axes.text(0.5, 0.5, f"{value:.3g} {defaults['unit']}", ha="center", va="center", fontsize=16)


def _legend(template: str, labels: Mapping[str, str]) -> str:
    """The template with the values of the labels that it names."""
    return re.sub(r"\{\{(\w+)\}\}", lambda name: labels.get(name[1], ""), template)


def _draw_lines(axes: Axes, panel: Mapping[str, Any], given: Sequence[tuple[Mapping[str, Any], Series]]) -> None:
    for target, series in given:
        for one in series:
            legend = _legend(target["legendFormat"], one["metric"])
            times, values = zip(*one["values"], strict=True)
            axes.plot([at - times[-1] for at in times], [float(value) for value in values], label=legend, linewidth=1)
    defaults = panel["fieldConfig"]["defaults"]
    for step in defaults.get("thresholds", {}).get("steps", ())[1:]:
        axes.axhline(step["value"], color=step["color"], linewidth=0.8)
    axes.set_ylabel(defaults.get("unit", ""), fontsize=7)
    axes.tick_params(labelsize=6)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=6, loc="upper left", ncols=3)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        found = asyncio.run(observe(float(sys.argv[2]) if len(sys.argv) > 2 else 60.0))
        draw(found, Path(sys.argv[1]))
