"""What the command prints, and its exit status."""

from __future__ import annotations

import json

import pytest

from preprocessor.__main__ import main
from preprocessor.vision import native


def test_what_is_wrong_is_listed_with_what_to_do_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--workers", "0"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "failed   settings   --workers: 0 is not accepted; give a whole number of at least 1"
    assert lines[1] == "                    → correct it: `serve` does not start like this"
    assert any(line.startswith("ok       decoders   FFmpeg") for line in lines)
    assert lines[-1] == ("4 ok, 0 warning, 1 failed" if native.VARIANTS else "3 ok, 1 warning, 1 failed")


def test_the_same_is_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--workers", "0", "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["verdict"] == "failed"
    assert [check["name"] for check in answer["checks"]] == ["settings", "libraries", "decoders", "images", "resize"]
    assert all(check.keys() == {"name", "verdict", "found", "fix"} for check in answer["checks"])
