"""What doctor says of files that settings name, and of models."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from preprocessor.cli.doctor.files import check_files, check_model
from preprocessor.cli.doctor.finding import Verdict
from preprocessor.config import EngineSettings, ServeSettings
from tests.engine.certificates import Authority, Signed
from tests.tiny_processors import MAKERS
from tests.waiting import PATIENCE_SECONDS


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"), "authority")


@pytest.fixture(scope="module")
def signed(authority: Authority) -> Signed:
    return authority.sign("client")


def settings(certificate: Path, key: Path, root: Path | str = "") -> ServeSettings:
    return ServeSettings(
        engine=EngineSettings(
            address="a:1", tls_root=str(root), tls_certificate=str(certificate), tls_key=str(key), profile="unread"
        )
    )


def test_no_file_is_no_trouble() -> None:
    assert check_files(ServeSettings()).verdict is Verdict.OK


def test_files_that_can_be_read_and_fit_are_listed_by_their_option(authority: Authority, signed: Signed) -> None:
    finding = check_files(settings(signed.certificate, signed.key, authority.certificate))
    assert finding.verdict is Verdict.OK
    assert finding.found == "readable: --engine-tls-root, --engine-tls-certificate, --engine-tls-key"


def test_files_that_cannot_be_read_are_named_with_their_option(signed: Signed, tmp_path: Path) -> None:
    finding = check_files(settings(signed.certificate, tmp_path, tmp_path / "gone.pem"))
    assert finding.verdict is Verdict.FAILED
    assert f"--engine-tls-root {tmp_path}/gone.pem: No such file or directory" in finding.found
    assert f"--engine-tls-key {tmp_path}: Is a directory" in finding.found
    assert "profile" not in finding.found  # may be a name


def test_a_key_of_another_certificate_is_found(authority: Authority, signed: Signed) -> None:
    finding = check_files(settings(signed.certificate, authority.sign("other").key))
    assert finding.verdict is Verdict.FAILED
    assert "KEY_VALUES_MISMATCH" in finding.found


def test_an_encrypted_key_is_found_and_nobody_is_asked_for_its_password(signed: Signed, tmp_path: Path) -> None:
    encrypted = tmp_path / "encrypted.key"
    command = ["openssl", "pkcs8", "-topk8", "-in", str(signed.key), "-out", str(encrypted), "-passout", "pass:secret"]
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE_SECONDS)
    finding = check_files(settings(signed.certificate, encrypted))
    assert finding.verdict is Verdict.FAILED
    assert f"{encrypted}: needs a private key that is not encrypted" in finding.found


def test_a_built_in_model_loads() -> None:
    finding, model = check_model("qwen3-vl")
    assert model is not None
    assert finding.found.startswith("qwen3-vl: fast path, family qwen3_vl; fingerprint ")


def test_a_directory_that_is_no_model_fails_with_its_missing_file(tmp_path: Path) -> None:
    finding, model = check_model(str(tmp_path))
    assert model is None
    assert finding.verdict is Verdict.FAILED
    assert "config.json is missing" in finding.found
    assert "qwen3-vl" in finding.fix


def test_of_a_model_on_the_generic_path_it_is_said_what_it_takes(tmp_path: Path) -> None:
    MAKERS["llava_onevision"](tmp_path)
    finding, model = check_model(str(tmp_path))
    assert model is not None
    assert "generic path, family LlavaOnevisionProcessor, takes image and video; " in finding.found


def test_a_library_that_a_model_lacks_is_named_with_its_installation(tmp_path: Path) -> None:
    """SmolVLM's processor writes numbers as words, by a library that nothing else here needs."""
    MAKERS["idefics3"](tmp_path)
    settings = json.loads((tmp_path / "processor_config.json").read_text()) | {"processor_class": "SmolVLMProcessor"}
    settings["video_processor"] = {"video_processor_type": "SmolVLMVideoProcessor"}
    (tmp_path / "processor_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text('{"model_type": "smolvlm"}')
    finding, model = check_model(str(tmp_path))
    assert (model, finding.verdict) == (None, Verdict.FAILED)
    assert "num2words" in finding.found
    assert finding.fix.endswith("pip install --constraint tested.txt num2words")
