"""A start that would fail is refused before a model is loaded, which takes seconds."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from preprocessor.__main__ import main
from preprocessor.cli import serve
from tests.engine.certificates import Authority

FREE = "127.0.0.1:0"


class _BeginsToLoad(Exception):
    pass


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start that nothing was wrong with ends as soon as it sets up its log, with which loading begins."""

    def configure(*_: object) -> None:
        raise _BeginsToLoad

    monkeypatch.setattr(serve, "configure", configure)


@pytest.fixture
def taken() -> Iterator[str]:
    """An address that somebody else listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def start(**options: object) -> int:
    given = {"address": FREE, "http_address": FREE, **options}
    return main(["serve", *(f"--{name.replace('_', '-')}={value}" for name, value in given.items())])


def test_with_nothing_wrong_loading_begins() -> None:
    with pytest.raises(_BeginsToLoad):
        start()


@pytest.mark.parametrize("option", ["address", "http_address", "openai_address"])
def test_an_address_in_use_is_refused(option: str, taken: str, capsys: pytest.CaptureFixture[str]) -> None:
    engine = {"engine": "127.0.0.1:1"} if option == "openai_address" else {}
    assert start(**engine, **{option: taken}) == 2
    said = capsys.readouterr().err
    assert f"--{option.replace('_', '-')}: '{taken}' is not accepted; give an unused address" in said


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_a_path_without_a_model_is_refused(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model"
    if kind == "file":
        path.touch()
    assert start(model=path) == 1
    assert f"MODEL_NOT_FOUND: {path}" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["tls_certificate", "tls_key", "tls_client_root", "token_file"])
def test_a_file_that_cannot_be_used_is_refused(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("neither PEM nor tokens\n")
    files: dict[str, object] = {"token_file": wrong}
    if option != "token_file":
        signed = Authority(tmp_path, "authority").sign("service.test")
        files = {"tls_certificate": signed.certificate, "tls_key": signed.key, option: wrong}
    assert start(**files) == 2
    assert f"--{option.replace('_', '-')}" in capsys.readouterr().err
