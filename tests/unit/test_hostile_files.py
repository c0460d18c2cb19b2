"""No file makes a decoder open another one, a socket or a program: `tests.hostile` reads each where that is death."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.hostile import REACHED_OUT, hostile_files
from tests.waiting import PATIENCE_SECONDS

pytest.importorskip("pyseccomp", reason="the kernel's word on what was opened needs libseccomp", exc_type=RuntimeError)  # type: ignore[arg-type]

Outcomes = dict[str, dict[str, str]]
FOLLOWED = sorted(hostile_files("/bait.mp4", 9))


@pytest.fixture(scope="module")
def outcomes() -> Outcomes:
    run = subprocess.run(
        [sys.executable, "-m", "tests.hostile"], stdout=subprocess.PIPE, timeout=PATIENCE_SECONDS, check=True
    )
    return json.loads(run.stdout)


def test_nothing_is_opened_on_behalf_of_a_file(outcomes: Outcomes) -> None:
    read = [
        (name, reader, outcome)
        for name, by_reader in outcomes.items()
        for reader, outcome in by_reader.items()
        if reader != "plain"
    ]
    assert len(read) > 150
    assert [each for each in read if each[2] != "read" and not each[2].startswith("refused ")] == []


@pytest.mark.parametrize("name", FOLLOWED)
def test_the_watch_sees_what_ffmpeg_as_it_comes_would_open(outcomes: Outcomes, name: str) -> None:
    assert outcomes[name]["plain"] == REACHED_OUT


def test_good_files_are_read_where_nothing_can_be_opened(outcomes: Outcomes) -> None:
    assert (outcomes["a good clip"]["video"], outcomes["a good photo"]["image"]) == ("read", "read")
    assert outcomes["mkv with attachments"]["video"] == "read"


def test_lists_of_other_files_are_no_media(outcomes: Outcomes) -> None:
    for name in FOLLOWED:
        for reader in ("video", "sound", "image"):
            reasons = ("NOT_MEDIA", "UNSUPPORTED_FORMAT", "TRUNCATED_MEDIA", "NO_AUDIO_STREAM")
            assert outcomes[name][reader] in {f"refused {reason}" for reason in reasons}
