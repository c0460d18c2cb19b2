"""What `make sbom` finds inside installed wheels."""

from __future__ import annotations

import hashlib
import json
import sys
from importlib.metadata import distribution
from pathlib import Path

import av
import pytest

from deploy import sbom


@pytest.mark.parametrize(
    ("package", "library"),
    [("av", "libavcodec"), ("av", "libdav1d"), ("pillow", "libjpeg"), ("opencv-python-headless", "libavformat")],
)
def test_shared_libraries_are_listed_with_version_and_digest(package: str, library: str) -> None:
    [found] = [one for one in sbom.carried(distribution(package)) if Path(one["name"]).name.startswith(f"{library}-")]
    path = Path(str(distribution(package).locate_file(found["name"])))
    assert path.name.endswith(f".so.{found['version']}")
    assert found["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(path.read_bytes()).hexdigest()}]


def test_what_was_compiled_in_is_listed_as_the_wheel_tells_it() -> None:
    found = {one["name"]: one for one in sbom.carried(distribution("tokenizers"))}
    assert found["onig_sys"]["purl"].startswith("pkg:cargo/onig_sys@")
    assert all("bom-ref" not in one for one in found.values())


def test_ffmpeg_is_listed_by_its_own_version() -> None:
    assert {"type": "library", "name": "FFmpeg", "version": av.ffmpeg_version_info} in sbom.carried(distribution("av"))


def test_a_package_of_python_alone_carries_nothing() -> None:
    assert sbom.carried(distribution("packaging")) == []


def test_a_list_is_completed_and_keeps_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "sbom.json"
    packages = [{"type": "library", "name": name, "version": "1"} for name in ("Pillow", "packaging", "not-installed")]
    path.write_text(json.dumps({"bomFormat": "CycloneDX", "components": packages}))
    monkeypatch.setattr(sys, "argv", ["sbom", str(path)])
    assert sbom.main() == 0
    completed = json.loads(path.read_text())
    inside = completed["components"][0].pop("components")
    assert completed == {"bomFormat": "CycloneDX", "components": packages}
    assert f"carry {len(inside)} libraries" in capsys.readouterr().out
