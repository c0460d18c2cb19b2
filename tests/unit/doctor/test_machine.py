"""What doctor says of resources, isolation and software, on machines that are told of and on this one."""

from __future__ import annotations

from pathlib import Path

import pytest
from packaging.requirements import Requirement

from preprocessor.cli.doctor import isolation, resources, software
from preprocessor.cli.doctor.finding import Finding, Verdict, failed, ok, warning, worst

OK, WARNING, FAILED = Verdict.OK, Verdict.WARNING, Verdict.FAILED
GIB = 1 << 30


@pytest.mark.parametrize(
    ("finding", "verdict", "fix"),
    [
        (resources.check_cores(4, 4), OK, ""),
        (resources.check_cores(2, 4), OK, ""),
        (resources.check_cores(5, 4), WARNING, "--workers 4"),
        (resources.check_memory(4 * GIB, 5 * GIB), OK, ""),
        (
            resources.check_memory(4 * GIB, 5 * GIB - 1),
            FAILED,
            "--memory-budget 4095MiB at most, or a memory limit of at",
        ),
        (resources.check_memory(4 * GIB, 4 * GIB), FAILED, "--memory-budget 3GiB at most"),
        (resources.check_memory(GIB, GIB // 2), FAILED, "a memory limit of at least 2.0 GiB"),
        (resources.check_open_files(20_000, 8), OK, ""),
        (resources.check_open_files(1024, 8), WARNING, "to 1,136"),
        (resources.check_open_files(64, 8), FAILED, "to 1,136"),
        (resources.check_shared_memory("auto", True, 5 * GIB, 4 * GIB), OK, ""),
        (resources.check_shared_memory("auto", True, 64 << 20, 4 * GIB), WARNING, "at least 4.0 GiB"),
        (
            resources.check_shared_memory("shared-memory", True, 64 << 20, 4 * GIB),
            FAILED,
            "an emptyDir of medium Memory",
        ),
        (resources.check_shared_memory("grpc", True, 0, 4 * GIB), OK, ""),
        (resources.check_shared_memory("auto", False, 0, 4 * GIB), OK, ""),
    ],
)
def test_what_is_too_small_comes_with_what_would_be_enough(finding: Finding, verdict: Verdict, fix: str) -> None:
    assert finding.verdict is verdict
    assert fix in finding.fix
    assert bool(finding.fix) is (verdict is not OK)


def test_the_gravest_verdict_is_that_of_all() -> None:
    assert worst([]) is OK
    assert worst([ok("a", ""), warning("b", "", "c")]) is WARNING
    assert worst([failed("a", "", "b"), ok("a", ""), warning("b", "", "c")]) is FAILED


# -- isolation ---------------------------------------------------------------------------------------------------------


def test_workers_are_isolated_here() -> None:
    finding = isolation.check_isolation(False, *isolation.try_sandbox())
    assert (finding.verdict, finding.fix) == (OK, "")
    assert "open no files" in finding.found


def test_without_landlock_the_filter_suffices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = (
        "import errno\ndef version(): return 0\ndef refuse_everything(): raise OSError(errno.ENOSYS, 'no Landlock')\n"
    )
    (tmp_path / "sitecustomize.py").write_text(
        f"import sys, types\nfake = types.ModuleType('landlock')\nexec({module!r}, fake.__dict__)\n"
        "sys.modules['preprocessor.workers.landlock'] = fake\nimport preprocessor.workers\n"
        "preprocessor.workers.landlock = fake\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    finding = isolation.check_isolation(False, *isolation.try_sandbox())
    assert finding.verdict is OK
    assert "no Landlock" in finding.found


def test_a_worker_that_keeps_the_network_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyseccomp.py").write_text("raise RuntimeError('libseccomp is not installed')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    finding = isolation.check_isolation(False, *isolation.try_sandbox())
    assert finding.verdict is WARNING
    assert "it keeps the network" in finding.found
    assert "address space" not in finding.found
    assert "libseccomp 2" in finding.fix


def test_a_sandbox_that_cannot_be_entered_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ctypes.py").write_text("raise ImportError('no ctypes in this build')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    finding = isolation.check_isolation(False, *isolation.try_sandbox())
    assert finding.verdict is FAILED
    assert "no ctypes in this build" in finding.found


def test_work_on_threads_is_a_warning() -> None:
    assert isolation.check_isolation(True, {}).verdict is WARNING


# -- software ----------------------------------------------------------------------------------------------------------


def test_the_libraries_here_are_those_that_were_tested() -> None:
    required = software.required_libraries()
    assert {"torch", "av", "grpcio"} <= {requirement.name for requirement in required}
    assert "ruff" not in {requirement.name for requirement in required}
    finding = software.check_libraries(required, software.tested_versions())
    assert finding.verdict is OK, finding.found


def test_the_versions_compared_with_are_those_of_the_constraints() -> None:
    tested = software.tested_versions(Path("deploy/constraints.txt").read_text())
    assert software.tested_versions() == tested, "run make reference"


@pytest.mark.parametrize(
    ("installed", "verdict", "found"),
    [
        ("2.13.0+cpu", OK, "1 as declared"),
        ("2.13.0", OK, "1 as declared"),
        ("2.14.1", WARNING, "torch is 2.14.1, tested is 2.13.0"),
        ("3.0", FAILED, "torch is 3.0, must be <3,>=2.9"),
        (None, FAILED, "torch is missing"),
    ],
)
def test_a_library_is_compared_with_what_is_declared_and_what_was_tested(
    installed: str | None, verdict: Verdict, found: str
) -> None:
    tested = software.tested_versions("# why\ntorch==2.13.0\n")
    finding = software.check_libraries([Requirement("torch>=2.9,<3")], tested, lambda _: installed)
    assert finding.verdict is verdict
    assert finding.found.startswith(found)


def test_every_promised_codec_and_format_is_read_here() -> None:
    assert software.check_decoders(*software.decoders_here()).verdict is OK
    assert software.check_images(*software.images_here()).verdict is OK


def test_a_codec_that_ffmpeg_lacks_is_named() -> None:
    here, version = software.decoders_here()
    finding = software.check_decoders(here - {"libdav1d", "libaom-av1", "hevc"}, version)
    assert finding.verdict is FAILED
    assert finding.found == f"PyAV's FFmpeg {version} has no decoder for HEVC, AV1"


def test_the_instructions_that_frames_are_resized_with_are_named() -> None:
    assert "avx2; this CPU could also run portable" in software.check_resize(("avx2", "portable")).found
    assert software.check_resize(("portable",)) == Finding("resize", OK, "native kernel, portable")
    assert software.check_resize(()).verdict is Verdict.WARNING


def test_a_format_that_pillow_lacks_is_named() -> None:
    here, _ = software.images_here()
    finding = software.check_images(here - {"avif"}, has_heif=False)
    assert (finding.verdict, finding.found) == (FAILED, "Pillow was built without AVIF")
    assert "no HEIC" in software.check_images(here, has_heif=False).found
