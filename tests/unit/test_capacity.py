"""What a load needs, from what one request costs. That this is about what it costs is a check of `make bench`."""

from __future__ import annotations

import dataclasses
import json

import pytest

from preprocessor.__main__ import main
from preprocessor.cli.capacity import Demand, needs_of
from tests.media import moving_shapes_clip

ONE = Demand(core_seconds=0.2, received_bytes=1000, sent_bytes=2000, held_bytes=100 << 20, file_bytes=1000)


def test_cores_are_requests_times_seconds_over_utilization() -> None:
    needs = needs_of(ONE, requests_a_second=50, cores_a_pod=4, utilization=0.5)
    assert needs.cores == pytest.approx(20)
    assert needs.pod_count == 5
    assert needs.requests_at_once == pytest.approx(20)  # Little: 50 a second, each held 0.2 s ÷ (1 - 0.5)
    assert needs.received_bytes_a_second == 50_000
    assert needs.sent_bytes_a_second == 100_000


def test_a_pod_hands_on_no_more_bytes_than_its_event_loops_can() -> None:
    large = Demand(core_seconds=0.05, received_bytes=1, sent_bytes=74_000_000, held_bytes=1, file_bytes=1)
    by_bytes = needs_of(large, requests_a_second=50, cores_a_pod=7, utilization=0.5)
    assert by_bytes.pod_count == 6  # 50 x 74 MB ÷ (1.3 GB x 0.5), and not the one that 5 cores would fit in
    assert needs_of(large, requests_a_second=50, cores_a_pod=8, utilization=0.5).pod_count == 3  # of two fronts each
    by_cores = needs_of(
        dataclasses.replace(large, core_seconds=0.2), requests_a_second=50, cores_a_pod=2, utilization=0.5
    )
    assert by_cores.pod_count == 10


def test_a_pod_has_memory_for_as_many_requests_as_it_holds_and_for_each_core_at_least_one() -> None:
    busy = needs_of(ONE, requests_a_second=50, cores_a_pod=4, utilization=0.5)
    assert busy.memory_budget_bytes >= busy.requests_at_once / busy.pod_count * ONE.held_bytes
    idle = needs_of(ONE, requests_a_second=0.1, cores_a_pod=8, utilization=0.5)
    assert idle.pod_count == 1
    assert idle.memory_budget_bytes >= 8 * ONE.held_bytes


def test_large_files_need_a_budget_of_which_a_quarter_holds_them() -> None:
    uploads = Demand(core_seconds=1.0, received_bytes=1 << 30, sent_bytes=1, held_bytes=1 << 30, file_bytes=1 << 30)
    needs = needs_of(uploads, requests_a_second=1, cores_a_pod=2, utilization=0.5)
    assert needs.memory_budget_bytes >= 2 * 4 << 30


def test_the_command_tells_what_a_load_needs(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(moving_shapes_clip(seconds=2, width=160, height=120))
    command = ["plan", "--video", str(clip), "--fps", "2", "--rps", "20", "--json"]
    assert main(command) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["load"]["cores"] == pytest.approx(20 * told["one_request"]["core_seconds"] / 0.7)
    assert main([*command[:-1], "--measure"]) == 0
    assert "core-seconds, measured here" in capsys.readouterr().out


@pytest.mark.parametrize("options", [("--rps", "0"), ("--rps", "5", "--utilization", "1"), ()])
def test_a_load_that_cannot_be_is_refused(options: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(["plan", "--text", "hello", *options])
    assert refused.value.code == 2
