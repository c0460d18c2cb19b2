"""Settings: what is refused, and how many cores a container has."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from preprocessor.config import (
    EngineSettings,
    FetchSettings,
    Limits,
    ServeSettings,
    SettingError,
    WireSettings,
    bytes_beside_budget,
    largest_budget,
    option_of,
    parse_bytes,
    require_memory,
    split_address,
)
from preprocessor.config.machine import available_cpu_count, available_memory_bytes, used_memory_bytes


@pytest.mark.parametrize("count", [0, -1, True, "2", 1.5, None])
def test_a_worker_count_that_is_no_positive_number_is_refused_by_its_options_name(count: object) -> None:
    with pytest.raises(SettingError, match="--workers"):
        ServeSettings(worker_count=count)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", Limits.__slots__)
def test_a_limit_of_zero_is_refused_by_its_options_name(name: str) -> None:
    with pytest.raises(SettingError) as refused:
        Limits(**{name: 0})
    assert refused.value.option == "--" + name.replace("_", "-")


@pytest.mark.parametrize("value", [0, -1, True, float("nan")])
@pytest.mark.parametrize("field", dataclasses.fields(WireSettings), ids=lambda field: field.name)
def test_a_bound_of_the_wire_that_is_none_is_refused_by_its_options_name(
    field: dataclasses.Field[object], value: object
) -> None:
    with pytest.raises(SettingError) as refused:
        WireSettings(**{field.name: value})  # type: ignore[arg-type]
    assert refused.value.option == option_of(field)


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
def test_the_tightest_limit_of_nested_cgroups_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a host under systemd, where a process is not at the top of the tree as in a container."""
    monkeypatch.setattr(os, "sysconf", lambda name: 4096 if name == "SC_PAGE_SIZE" else 1 << 28)
    own, unit = tmp_path / "cgroup", tmp_path / "top" / "system.slice" / "preprocessor.service"
    own.write_text("0::/system.slice/preprocessor.service\n")
    unit.mkdir(parents=True)
    (unit.parent / "cpu.max").write_text("300000 100000\n")
    (unit / "cpu.max").write_text("max 100000\n")
    (unit.parent / "memory.max").write_text("max\n")
    (unit / "memory.max").write_text(f"{5 << 30}\n")
    assert available_cpu_count(tmp_path / "top", own) == 3
    assert available_memory_bytes(tmp_path / "top", own) == 5 << 30


@pytest.mark.usefixtures("eight_cores")
def test_version_1_has_a_tree_for_each_controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", lambda name: 4096 if name == "SC_PAGE_SIZE" else 1 << 28)
    own, top = tmp_path / "cgroup", tmp_path / "top"
    own.write_text("4:memory:/a/b\n2:cpu,cpuacct:/c\n1:name=systemd:/d\n")
    for directory in ("memory/a/b", "cpu/c"):
        (top / directory).mkdir(parents=True)
    (top / "memory/a/memory.limit_in_bytes").write_text(f"{6 << 30}\n")
    (top / "memory/a/b/memory.limit_in_bytes").write_text("9223372036854771712\n")
    (top / "cpu/c/cpu.cfs_quota_us").write_text("200000\n")
    (top / "cpu/c/cpu.cfs_period_us").write_text("100000\n")
    assert available_cpu_count(top, own) == 2
    assert available_memory_bytes(top, own) == 6 << 30


@pytest.mark.usefixtures("eight_cores")
def test_a_path_of_the_host_that_the_container_has_not_mounted_is_the_top(tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text("0::/kubepods.slice/pod1\n")
    (tmp_path / "top").mkdir()
    (tmp_path / "top" / "cpu.max").write_text("400000 100000\n")
    assert available_cpu_count(tmp_path / "top", tmp_path / "cgroup") == 4


@pytest.mark.usefixtures("eight_cores")
def test_without_a_cgroup_the_affinity_counts(tmp_path: Path) -> None:
    assert available_cpu_count(tmp_path) == 8


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("4GiB", 4 << 30),
        ("512 MiB", 512 << 20),
        ("1.5G", 3 << 29),
        ("2kb", 2000),
        ("1GB", 10**9),
        ("123", 123),
        ("7B", 7),
    ],
)
def test_a_size_may_be_written_with_its_unit(text: str, size_bytes: int) -> None:
    assert parse_bytes(text) == size_bytes


@pytest.mark.parametrize("text", ["", "GiB", "4 gallons", "-1", "1e9", "0x10"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_bytes(text)


@pytest.mark.parametrize("size_bytes", [0, (64 << 20) - 1, True, 1e9])
def test_a_memory_budget_that_is_too_small_is_refused_by_its_options_name(size_bytes: object) -> None:
    with pytest.raises(SettingError, match="--memory-budget"):
        ServeSettings(memory_budget_bytes=size_bytes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "option"),
    [
        ({"address": "a:1,b"}, "--engine"),
        ({"transport": "pigeon"}, "--engine-transport"),
        ({"on_mismatch": "shrug"}, "--engine-on-mismatch"),
        ({"tls_key": "key.pem"}, "--engine-tls-key"),
        ({"tls_certificate": "certificate.pem"}, "--engine-tls-certificate"),
        ({"tls_server_name": "engine"}, "--engine-tls-server-name"),
        ({"max_silence_seconds": 0.0}, "--engine-max-silence-seconds"),
    ],
)
def test_engine_settings_that_cannot_be_are_refused_by_their_options_name(fields: dict[str, Any], option: str) -> None:
    with pytest.raises(SettingError) as refused:
        EngineSettings(**fields)
    assert refused.value.option == option


def test_two_ports_of_the_service_cannot_be_one() -> None:
    with pytest.raises(SettingError, match=r"--http-address: '127.0.0.1:80' is not accepted; give another port"):
        ServeSettings(address="127.0.0.1:80", http_address="127.0.0.1:80")
    assert ServeSettings(address="127.0.0.1:0", http_address="127.0.0.1:0")


@pytest.mark.parametrize(
    ("fields", "option"),
    [
        *(
            ({"hosts": hosts}, "--fetch-hosts")
            for hosts in ("Example.com", "a b", "http://a.com", "*.*.com", "a.com:80", "a*", ".a")
        ),
        *(({"ports": ports}, "--fetch-ports") for ports in ("0", "80,http", "65536", "-1", "80-90")),
        *(
            ({"networks": networks}, "--fetch-networks")
            for networks in ("10.0.0.1/8", "ten", "10.0.0.0/33", "fd00::/129")
        ),
        ({"roots": "media"}, "--fetch-roots"),
        *(
            ({"stores": stores}, "--fetch-stores")
            for stores in ("s3:/bucket", "file:///srv", "https://a.com/", "bucket", "s3://")
        ),
        ({"connect_seconds": 0.0}, "--fetch-connect-seconds"),
        ({"read_seconds": float("inf")}, "--fetch-read-seconds"),
        ({"total_seconds": -1.0}, "--fetch-total-seconds"),
        ({"max_redirects": 0}, "--fetch-max-redirects"),
        ({"max_at_once": True}, "--fetch-max-at-once"),
    ],
)
def test_fetch_settings_that_cannot_be_are_refused_by_their_options_name(fields: dict[str, Any], option: str) -> None:
    with pytest.raises(SettingError) as refused:
        FetchSettings(**fields)
    assert refused.value.option == option


def test_fetch_settings_list_with_commas() -> None:
    settings = FetchSettings(
        hosts="a.com, *.b.org,[2606:4700::1],10.0.0.1",
        ports="80, 8080",
        networks="10.0.0.1, fd00::/8",
        stores="s3://b/c,gs://d",
    )
    assert settings.hosts.count(",") == 3


@pytest.mark.parametrize(
    ("stated", "expected_bytes"), [("max", 1 << 40), (str(3 << 30), 3 << 30), (str(1 << 50), 1 << 40)]
)
def test_the_memory_that_may_be_used_is_the_cgroup_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stated: str, expected_bytes: int
) -> None:
    (tmp_path / "memory.max").write_text(stated + "\n")
    monkeypatch.setattr(os, "sysconf", lambda name: 4096 if name == "SC_PAGE_SIZE" else 1 << 28)
    assert available_memory_bytes(tmp_path) == expected_bytes
    assert available_memory_bytes(tmp_path / "nowhere") == 1 << 40


@pytest.mark.parametrize(
    ("limit", "current", "idle"),
    [
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ],
    ids=["version 2", "version 1"],
)
def test_memory_in_use_is_what_counts_against_the_limit(tmp_path: Path, limit: str, current: str, idle: str) -> None:
    (tmp_path / limit).write_text(f"{1 << 30}\n")
    (tmp_path / current).write_text("700\n")
    (tmp_path / "memory.stat").write_text(f"anon 300\nfile 400\n{idle} 150\nactive_file 250\n")
    assert used_memory_bytes(tmp_path) == 550


def test_without_a_limit_memory_in_use_is_the_machine_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  1000 kB\nMemFree:  100 kB\nMemAvailable:  400 kB\n")
    monkeypatch.setattr("preprocessor.config.machine._MEMORY", tmp_path / "meminfo")
    assert used_memory_bytes(tmp_path / "nowhere") == 600 << 10


@pytest.mark.parametrize("container_gib", [0.5, 2, 5, 6, 24])
def test_the_largest_budget_leaves_room_beside_it_and_wastes_none(container_gib: float) -> None:
    container_bytes = int(container_gib * (1 << 30))
    budget_bytes = largest_budget(container_bytes)
    if container_gib < 1:
        assert budget_bytes == 0
    else:
        assert abs(budget_bytes + bytes_beside_budget(budget_bytes) - container_bytes) <= 2


@pytest.mark.parametrize(
    ("budget_gib", "container_gib", "said"),
    [
        (3, 4, ""),
        (1, 2, ""),
        (4, 4, "at most 3GiB"),
        (1, 1.5, "at most 512MiB"),
        (0.5, 1, "more memory: it takes 1536 MiB"),
    ],
)
def test_a_budget_that_its_container_cannot_hold_is_refused(budget_gib: float, container_gib: float, said: str) -> None:
    budget_bytes, container_bytes = int(budget_gib * (1 << 30)), int(container_gib * (1 << 30))
    if not said:
        require_memory(budget_bytes, container_bytes)
        return
    with pytest.raises(SettingError, match=said) as caught:
        require_memory(budget_bytes, container_bytes)
    assert caught.value.option == "--memory-budget"
