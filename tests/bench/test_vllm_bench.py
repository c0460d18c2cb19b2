"""What the bench of vLLM makes of its figures, without a GPU or a vLLM."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import islice
from typing import Any

import pytest

from tests.bench.device.vllm import plan, stacks
from tests.bench.device.vllm.report import goals, report
from tests.bench.device.vllm.servers import as_arguments
from tests.bench.device.vllm.systems import unique_clip
from tests.markdown import ROOT


def point(system: str, fps: float, callers: int, rate: float, **changed: Any) -> dict[str, Any]:
    return {
        "system": system,
        "fps": fps,
        "callers": callers,
        "max_tokens": 1,
        "answered": 10,
        "requests_a_second": rate,
        "gpu_busy": 0.92,
        "first_token_median_seconds": 0.3,
        "first_token_p95_seconds": 0.4,
        "core_seconds_a_request": 0.5,
        "prompt_tokens": 2350,
        **changed,
    }


def test_what_the_goals_need_is_measured_first() -> None:
    first, last = plan.groups(gpu_count=1, is_tiny=False)
    cells = list(plan.cells(first, (1.0, 8.0), (32, 1, 8, 64), 100))
    assert {cell.callers for cell in islice(cells, 10)} == {32}
    assert {cell.system for cell in islice(cells, 5)} == set(first)
    assert len(set(cells)) == len(cells) == 5 * 2 * 5
    assert {*first, *last} == set(plan.SERVER_OF)


@pytest.mark.parametrize("gpu_count, is_tiny", [(0, True), (1, False), (2, False)])
def test_no_more_servers_are_up_at_a_time_than_have_room(gpu_count: int, is_tiny: bool) -> None:
    groups = plan.groups(gpu_count, is_tiny)
    most = 1 if is_tiny else 2 * gpu_count
    assert all(len({plan.SERVER_OF[system] for system in group}) <= most for group in groups)
    assert sorted(system for group in groups for system in group) == sorted(plan.SERVER_OF)


def test_options_of_vllm_serve_become_the_arguments_of_an_engine() -> None:
    options = ("--max-model-len", "32768", "--kv-cache-memory-bytes", "45G", "--enforce-eager", "--dtype", "float32")
    assert as_arguments(options) == {
        "max_model_len": 32768,
        "kv_cache_memory_bytes": 45_000_000_000,
        "enforce_eager": True,
        "dtype": "float32",
    }


def test_goals_are_told_from_the_cells_that_were_measured() -> None:
    points = [
        point(plan.OURS_SHARED, 1, 32, 33.0),
        point(plan.BOUND_SHARED, 1, 32, 29.0),
        point(plan.BOUND_BYTES, 1, 32, 34.0),
        point(plan.SERVE_8, 1, 32, 16.0, core_seconds_a_request=1.0),
    ]
    told = "\n".join(goals(points))
    assert "97% of the better bound" in told
    assert "2.06 × serve" in told
    assert "0.50 of serve's core-seconds" in told
    assert "8 fps" not in told


def test_prompts_of_other_lengths_are_told() -> None:
    points = [point(plan.SERVE_8, 1, 32, 16.0, prompt_tokens=2303), point(plan.OURS_BYTES, 1, 32, 16.0)]
    assert "[2303, 2350]" in next(goals(points))


def test_a_table_has_a_row_for_each_system_that_was_measured() -> None:
    text = report([point(plan.OURS_BYTES, 8, 1, 1.4), point(plan.SERVE_8, 8, 1, 0.5, gpu_busy=None)])
    assert "| service, bytes | 1.4 (92%) |" in text
    assert "| vllm serve, 8 API servers | 0.5 |" in text


def test_a_summary_of_stacks_tells_the_busiest_thread_first() -> None:
    lines = stacks.summary(
        "input thread;run;decode 30\ninput thread;run;recv 10\nmain;step 60\nnonsense\n"
    ).splitlines()
    assert lines[0].split() == ["60.0%", "main"]
    assert lines[3].split() == ["30.0%", "decode"]


def test_no_two_clips_are_equal() -> None:
    assert unique_clip() != unique_clip()


def test_it_starts_outside_pytest() -> None:
    variables = {name: value for name, value in os.environ.items() if name != "PREPROCESSOR_FRONTS"}  # tests have it
    command = [sys.executable, "-m", "tests.bench.device.vllm", "--help"]
    done = subprocess.run(command, env=variables, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
