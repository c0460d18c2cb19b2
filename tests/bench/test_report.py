"""The benchmark's own arithmetic: medians, goals, tables, plots. Nothing is timed here."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from preprocessor.types.timing import Timings
from tests.bench import goals
from tests.bench.contest import Sample, Timed, ratio, run_in_turn, stage
from tests.bench.plots import draw, stacked
from tests.bench.report import BEGIN, END, as_json, markdown, missed, put_into
from tests.bench.section import Check, Section, Table
from tests.bench.service.callers import left_by_trend
from tests.bench.service.watched import process_cpu_seconds

ABOUT = {
    "date": "2026-11-23",
    "cpu": "a processor",
    "cores": 2,
    "cores_usable": 2,
    "system": "Linux",
    "tcp": "cubic",
    "load_average": [0.1, 0, 0],
    "load_average_end": [1.0, 0, 0],
    "versions": {"python": "3.11"},
    "command": "python -m tests.bench",
}


def sample(cpu_ms: float, **stages_ms: float) -> Sample:
    return Sample(2 * cpu_ms, cpu_ms, stages_ms)


def path_figures(cpu_ms: float) -> dict[str, object]:
    return {"stages_cpu_ms": {"decode": cpu_ms / 2, "process": cpu_ms / 4, "other": cpu_ms / 4}}


def test_figures_are_medians_and_what_no_stage_took_is_other() -> None:
    timed = Timed([sample(10, decode=6, resize=2), sample(30, decode=8), sample(20, decode=7, resize=1)])
    assert (timed.cpu_ms, timed.wall_ms) == (20, 40)
    assert timed.stages_ms == {"decode": 7, "resize": 1, "other": 12}


def test_paths_run_in_turn() -> None:
    order: list[str] = []

    def runner(name: str) -> Sample:
        order.append(name)
        return sample(1)

    timed = run_in_turn({name: lambda name=name: runner(name) for name in "ab"}, 3)  # type: ignore[misc]
    assert "".join(order) == "ababab"
    assert len(timed["a"].samples) == 3


def test_a_ratio_is_of_medians_and_none_without_both() -> None:
    timed = {"a": Timed([sample(10), sample(12), sample(50)]), "b": Timed([sample(4)])}
    assert ratio(timed, "a", "b") == (3, 3)
    assert ratio(timed, "a", "c") is None


def test_a_stage_counts_every_thread() -> None:
    spent_ms = []

    def spin() -> None:
        sum(range(2_000_000))
        spent_ms.append(time.thread_time() * 1e3)

    timings = Timings()
    with stage(timings, "decode"):
        thread = threading.Thread(target=spin)
        thread.start()
        thread.join()
    assert timings.stages["decode"].cpu_ms > spent_ms[0]


_SPINS_IN_A_THREAD_THAT_ENDS = """
import threading, time
def spin():
    while time.thread_time() < 0.2:
        pass
thread = threading.Thread(target=spin)
thread.start()
thread.join()
print(time.process_time(), flush=True)
input()
"""


def test_another_process_is_counted_with_its_threads_that_have_ended() -> None:
    command = [sys.executable, "-c", _SPINS_IN_A_THREAD_THAT_ENDS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = float(process.stdout.readline())
        assert process_cpu_seconds(psutil.Process(process.pid)) >= told > 0.2
        process.communicate("\n")
    with pytest.raises(psutil.NoSuchProcess):
        process_cpu_seconds(psutil.Process(process.pid))


@pytest.mark.parametrize(
    ("measured", "sign", "goal", "is_reached"),
    [(4.0, "≥", 4, True), (3.999, "≥", 4, False), (1.25, "≤", 1.25, True), (1.2501, "≤", 1.25, False),
     (float("nan"), "≥", 0, False), (float("nan"), "≤", 9, False)],
)  # fmt: skip
def test_a_goal_is_judged_unrounded(measured: float, sign: str, goal: float, is_reached: bool) -> None:
    check = Check("speed", measured, sign, goal)
    assert check.is_reached is is_reached
    assert check.cells()[-1] == ("yes" if is_reached else "**no**")


@pytest.mark.parametrize(
    ("shares", "left"),
    [
        ({8: [0.9], 256: [0.9]}, 1.0),
        ({8: [1.0], 16: [0.95], 32: [0.9], 64: [0.85], 128: [0.8], 256: [0.75]}, 0.75),  # falls
        ({8: [1.0, 0.9], 32: [0.9, 1.0], 256: [0.9, 1.0]}, 1.0),  # noise
        ({8: [0.8], 256: [1.0]}, 1.25),
    ],
)
def test_a_fall_as_callers_are_added_is_told_from_noise(shares: dict[int, list[float]], left: float) -> None:
    assert left_by_trend(shares) == pytest.approx(left, abs=0.02)


def test_a_goal_has_one_of_two_signs() -> None:
    with pytest.raises(ValueError, match=">"):
        Check("speed", 1, ">", 1)


def test_the_report_begins_with_every_goal_and_says_which_are_missed() -> None:
    section = Section("Speed", "notes", [Table(("", "ms"))])
    section.add(["ours", "1.25"], ms=1.25)
    section.check("slow", 5, "≤", 3, "s")
    section.check("fast", 1, "≤", 3, "s")
    text = markdown([section], ABOUT, 5)
    assert "1 of 2 reached." in text
    assert "| slow | 5 s | ≤ 3 s | **no** |" in text
    assert text.index("### Goals") < text.index("### Speed")
    assert "| ours | 1.25 |" in text
    assert missed([section]) == ["slow: 5 s, goal ≤ 3 s"]
    report = as_json({"speed": section}, ABOUT, {"rounds": 5})
    assert report["sections"]["speed"]["figures"] == [{"ms": 1.25}]
    assert [check["is_reached"] for check in report["sections"]["speed"]["checks"]] == [False, True]
    assert json.loads(json.dumps(report)) == report


@pytest.mark.parametrize(("rounds", "is_warned"), [(4, True), (5, False)])
def test_too_few_rounds_are_said_to_prove_nothing(rounds: int, is_warned: bool) -> None:
    assert ("prove" in markdown([], ABOUT, rounds)) is is_warned


def test_a_report_takes_the_place_of_the_last_one() -> None:
    page = f"# Results\n\n{BEGIN}\nold\n{END}\n\nby hand\n"
    once = put_into(page, "new")
    assert once == f"# Results\n\n{BEGIN}\n\nnew\n\n{END}\n\nby hand\n"
    assert put_into(once, "new") == once
    with pytest.raises(ValueError, match="no <!--"):
        put_into("# Results", "new")


def test_the_results_page_has_room_for_a_report_and_shows_its_plots() -> None:
    folder = Path(__file__).parent
    page = (folder / "RESULTS.md").read_text()
    assert put_into(page, "new").count("new")
    for plot in re.findall(r"\((plots/[^)]+)\)", page):
        assert (folder / plot).is_file(), plot


def test_stages_are_gathered_without_loss() -> None:
    gathered = stacked({"decode": 5, "resize": 2, "patch": 1, "send": 3, "other": 4})
    assert gathered["decode"] == 5
    assert gathered["resize, cut, normalize"] == 3
    assert gathered["everything else"] == 7
    assert sum(gathered.values()) == 15


def test_every_plot_is_drawn_and_the_same_figures_give_the_same_file(tmp_path: Path) -> None:
    races = [
        {
            "clip": "a clip",
            "fps": fps,
            "frame_count": 30,
            "paths": {name: path_figures(ms) for name, ms in (("before", 40), ("seed", 20), ("ours", 8), ("bound", 5))},
            "ratios": {"before ÷ ours": {"cpu": 5.0}, "seed ÷ ours": {"cpu": 2.5}, "ours ÷ bound": {"cpu": 1.6}},
        }
        for fps in goals.SEED_TO_OURS
    ]
    points = [
        {"fps": fps, "callers": callers, "requests_a_second": 9.0, "p50_ms": 10.0, "p99_ms": 30.0, "cores_rate": 10.0,
         "peak_pss_bytes": 5e8}
        for fps in (1.0, 8.0) for callers in (1, 8)
    ]  # fmt: skip
    report = {"sections": {"workload": {"figures": races}, "clips": {"figures": races}, "load": {"figures": points}}}
    first, again = (draw(report, tmp_path / name) for name in ("first", "again"))
    assert [path.name for path in first] == ["stages.svg", "ratios.svg", "clips.svg", "throughput.svg", "memory.svg"]
    for one, other in zip(first, again, strict=True):
        assert one.read_bytes() == other.read_bytes()
        assert one.stat().st_size < 100_000
    assert "before ÷ ours" in (tmp_path / "first" / "ratios.svg").read_text()
