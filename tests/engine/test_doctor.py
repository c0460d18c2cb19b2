"""What doctor says of engines: real ones that fit, differ, are not there, or cannot see our memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.triton.local_server import TritonServer
from engine_client import OwnedRegion, Transport, TritonEngine
from preprocessor.__main__ import main
from preprocessor.cli.doctor.engine import check_engines
from preprocessor.cli.doctor.finding import Finding, Verdict
from preprocessor.config import EngineSettings
from preprocessor.models.family import Model
from preprocessor.models.fingerprint import fingerprint_parts
from tests.engine.servers import SCRIPTED_REPOSITORY, serving
from tests.waiting import PATIENCE_SECONDS

REGION_BYTES = 1 << 20


@pytest.fixture(scope="module")
def parts(model: Model) -> dict[str, str]:
    return fingerprint_parts(model)


@pytest.fixture(scope="module")
def secluded_triton() -> Iterator[TritonServer]:
    """With a /dev/shm of its own, as in a container that does not share ours."""
    with serving("legacy_encoders", SCRIPTED_REPOSITORY, shared_memory_bytes=64 << 20) as server:
        yield server


async def verdicts(settings: EngineSettings, parts: dict[str, str] | None) -> dict[str, Finding]:
    """The findings by name; those of one engine."""
    findings = await check_engines(settings, parts, REGION_BYTES)
    assert not regions_held(), "a region is left behind"
    return {finding.name: finding for finding in findings}


def regions_held() -> list[str]:
    """Those of this process that still have a name; other processes on this machine may have theirs."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    return [line for line in maps if "/dev/shm/vlm-preprocessor-" in line and not line.endswith("(deleted)")]


def doctor(capsys: pytest.CaptureFixture[str], *arguments: str, status: int) -> dict[str, dict[str, str]]:
    """The findings that the command prints, by name; it runs in this process, which has loaded what it looks at."""
    assert main(["doctor", "--json", *arguments]) == status
    return by_name(capsys.readouterr().out)


def by_name(printed: str) -> dict[str, dict[str, str]]:
    return {check["name"]: check for check in json.loads(printed)["checks"]}


def test_a_deployment_that_fits_has_nothing_to_fix(triton: TritonServer) -> None:
    settings = ("--engine", triton.grpc_address, "--memory-budget", "256MiB", "--workers", "1")
    command = [sys.executable, "-m", "preprocessor", "doctor", "--json", *settings]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    checks = by_name(done.stdout)
    assert {name: check["verdict"] for name, check in checks.items() if check["verdict"] != "ok"} == {}
    assert checks["engine"]["found"].startswith(f"{triton.grpc_address}: ready; triton ")
    assert checks["engine contract"]["found"].endswith("tensors are those of the engine contract")
    assert checks["engine fingerprint"]["found"].endswith("equal in contract_version, video_markers")
    assert checks["engine transport"]["found"].endswith("tensors go by shared-memory")


def test_an_engine_that_is_not_there_fails_the_deployment(capsys: pytest.CaptureFixture[str]) -> None:
    checks = doctor(capsys, "--engine", "127.0.0.1:1", "--memory-budget", "256MiB", status=1)
    assert checks["engine"]["verdict"] == "failed"
    assert "127.0.0.1:1" in checks["engine"]["found"]
    assert "start it" in checks["engine"]["fix"]
    assert checks["model"]["verdict"] == "ok"


def test_a_contradiction_of_settings_fails_and_what_needs_none_is_still_looked_at(
    capsys: pytest.CaptureFixture[str],
) -> None:
    checks = doctor(capsys, "--engine-tls-key", "mine.key", "--engine", "a:1", status=1)
    assert checks["settings"]["found"].startswith(
        "--engine-tls-key: 'mine.key' is not accepted; give --engine-tls-cert"
    )
    assert checks["decoders"]["verdict"] == "ok"


async def test_a_model_that_is_not_loaded_fails(triton: TritonServer, parts: dict[str, str]) -> None:
    findings = await verdicts(EngineSettings(address=triton.grpc_address, model="another"), parts)
    assert set(findings) == {"engine"}
    assert findings["engine"].verdict is Verdict.FAILED
    assert "another" in findings["engine"].found


async def test_each_of_several_engines_is_asked(triton: TritonServer, parts: dict[str, str]) -> None:
    findings = await check_engines(EngineSettings(address=f"127.0.0.1:1,{triton.grpc_address}"), parts, REGION_BYTES)
    assert [(one.name, one.verdict) for one in findings][:2] == [("engine", Verdict.FAILED), ("engine", Verdict.OK)]


async def test_an_engine_of_another_layout_and_another_model_is_told_in_full(
    secluded_triton: TritonServer, parts: dict[str, str]
) -> None:
    findings = await verdicts(EngineSettings(address=secluded_triton.grpc_address, model="legacy_encoders"), parts)
    assert findings["engine"].verdict is Verdict.OK
    assert findings["engine contract"].verdict is Verdict.FAILED
    assert "--engine-profile" in findings["engine contract"].fix
    assert findings["engine fingerprint"].verdict is Verdict.FAILED
    assert "patch_size of the engine is 14, of this side 16" in findings["engine fingerprint"].found


async def test_with_its_profile_and_the_override_the_same_engine_will_do(
    secluded_triton: TritonServer, parts: dict[str, str]
) -> None:
    settings = EngineSettings(
        address=secluded_triton.grpc_address,
        model="legacy_encoders",
        profile="multimodal_encoders",
        on_mismatch="warn",
    )
    findings = await verdicts(settings, parts)
    assert findings["engine contract"].verdict is Verdict.OK
    assert findings["engine fingerprint"].verdict is Verdict.WARNING


@pytest.mark.parametrize(
    ("transport", "verdict"),
    [("auto", Verdict.WARNING), ("shared-memory", Verdict.FAILED), ("grpc", Verdict.OK)],
)
async def test_an_engine_that_cannot_see_our_memory_is_told_with_the_reason(
    secluded_triton: TritonServer, parts: dict[str, str], transport: str, verdict: Verdict
) -> None:
    settings = EngineSettings(address=secluded_triton.grpc_address, model="legacy_encoders", transport=transport)
    finding = (await verdicts(settings, parts))["engine transport"]
    assert finding.verdict is verdict
    if verdict is not Verdict.OK:
        assert "cannot read OwnedRegion" in finding.found
        assert "one /dev/shm in both containers" in finding.fix


async def test_without_a_model_nothing_is_compared(triton: TritonServer) -> None:
    findings = await verdicts(EngineSettings(address=triton.grpc_address), None)
    assert findings["engine fingerprint"].verdict is Verdict.WARNING


async def test_an_engine_that_publishes_nothing_is_a_warning(
    scripted_triton: TritonServer, parts: dict[str, str]
) -> None:
    findings = await verdicts(EngineSettings(address=scripted_triton.grpc_address, model="scripted"), parts)
    assert findings["engine fingerprint"].verdict is Verdict.WARNING
    assert "preprocessor fingerprint MODEL" in findings["engine fingerprint"].fix


async def test_an_engine_that_publishes_nothing_fails_where_that_is_required(
    scripted_triton: TritonServer, parts: dict[str, str]
) -> None:
    settings = EngineSettings(address=scripted_triton.grpc_address, model="scripted", on_mismatch="require")
    finding = (await verdicts(settings, parts))["engine fingerprint"]
    assert finding.verdict is Verdict.FAILED
    assert "patch_size is not published by the engine" in finding.found


async def test_a_token_that_travels_in_the_open_is_a_warning(
    triton: TritonServer, parts: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    settings = EngineSettings(address=triton.grpc_address, token_file=str(tmp_path / "token"))
    finding = (await verdicts(settings, parts))["engine token"]
    assert finding.verdict is Verdict.WARNING
    assert "s3cret" not in finding.found


async def test_a_profile_that_cannot_be_read_fails(parts: dict[str, str]) -> None:
    findings = await verdicts(EngineSettings(address="a:1", profile="/nowhere/profile.toml"), parts)
    assert findings["engine"].verdict is Verdict.FAILED
    assert "--engine-profile" in findings["engine"].found


async def test_a_client_says_how_tensors_would_travel(triton: TritonServer, secluded_triton: TritonServer) -> None:
    with OwnedRegion.create(REGION_BYTES) as region:
        for server, model, expected in (
            (triton, "vlm_transformers", Transport.SHARED_MEMORY),
            (secluded_triton, "legacy_encoders", Transport.GRPC),
        ):
            async with TritonEngine(server.grpc_address, model, shared_region=region) as engine:
                assert await engine.choose_transport() is expected
    async with TritonEngine(triton.grpc_address) as engine:
        assert await engine.choose_transport() is Transport.GRPC
