"""Settings: what is refused, and how many cores a container has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from preprocessor.config import Limits, ServeSettings, SettingError, available_cpu_count, split_address


@pytest.mark.parametrize("count", [0, -1, True, "2", 1.5, None])
def test_a_worker_count_that_is_no_positive_number_is_refused_by_its_options_name(count: object) -> None:
    with pytest.raises(SettingError, match="--workers"):
        ServeSettings(worker_count=count)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", Limits.__slots__)
def test_a_limit_of_zero_is_refused_by_its_options_name(name: str) -> None:
    with pytest.raises(SettingError) as refused:
        Limits(**{name: 0})
    assert refused.value.option == "--" + name.replace("_", "-")


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_time_that_is_no_positive_number_is_refused(seconds: float) -> None:
    with pytest.raises(SettingError, match="--drain-seconds"):
        ServeSettings(drain_seconds=seconds)


@pytest.mark.parametrize("address", ["", "host", ":80", "host:", "host:http", "host:65536", "host:-1"])
def test_an_address_without_host_and_port_is_refused(address: str) -> None:
    with pytest.raises(SettingError, match="--address"):
        split_address("--address", address)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("0.0.0.0:50051", ("0.0.0.0", 50051)),
        ("[::]:0", ("::", 0)),
        ("preprocessor.svc:65535", ("preprocessor.svc", 65535)),
    ],
)
def test_an_address_splits_into_host_and_port(address: str, expected: tuple[str, int]) -> None:
    assert split_address("--address", address) == expected


def test_the_default_settings_are_accepted() -> None:
    assert ServeSettings().worker_count >= 1


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("max 100000", 8),
        ("400000 100000", 4),
        ("250000 100000", 2),
        ("50000 100000", 1),
        ("1600000 100000", 8),
        ("?", 8),
    ],
)
def test_a_cgroup_v2_quota_bounds_the_cores(tmp_path: Path, content: str, expected: int) -> None:
    (tmp_path / "cpu.max").write_text(content + "\n")
    assert available_cpu_count(tmp_path) == expected


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(("quota", "expected"), [("-1", 8), ("300000", 3), ("10000", 1)])
def test_a_cgroup_v1_quota_bounds_the_cores(tmp_path: Path, quota: str, expected: int) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota + "\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert available_cpu_count(tmp_path) == expected


@pytest.mark.usefixtures("eight_cores")
def test_without_a_cgroup_the_affinity_counts(tmp_path: Path) -> None:
    assert available_cpu_count(tmp_path) == 8
