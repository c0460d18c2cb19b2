"""What the command line does for a person at a terminal: progress while a request is under way, and completion."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from engine_client.testing import FakeEngine
from preprocessor.__main__ import main
from preprocessor.models.family import Model
from tests.media import photo
from tests.service.conftest import serving
from tests.waiting import PATIENCE_SECONDS

COMMAND = (sys.executable, "-m", "preprocessor")
CLEAR = "\r\x1b[K"


def run(*arguments: str | Path) -> tuple[str, str]:
    """Standard output of a command, and what a terminal gets that is its standard error."""
    terminal, end = os.openpty()
    process = subprocess.Popen([*COMMAND, *map(str, arguments)], stdout=subprocess.PIPE, stderr=end)
    os.close(end)
    shown = b""
    with os.fdopen(terminal, "rb", buffering=0) as reading:
        try:
            while piece := reading.read(4096):
                shown += piece
        except OSError:  # EIO: the other end has been closed
            pass
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, shown
    return output.decode(), shown.decode()


async def test_a_terminal_is_told_how_much_was_sent_and_received(model: Model, tmp_path: Path) -> None:
    picture = tmp_path / "photo.png"
    picture.write_bytes(photo(2400, 1800, "PNG"))
    megabytes = round(picture.stat().st_size / 1e6)
    assert megabytes > 2, "it must take several chunks"
    async with serving(model, FakeEngine(model.tokenizer.encode("All is well"))) as caller:
        asked = ("--address", caller.server.address, "--image", picture, "--text", "What is this?")
        _, shown = await asyncio.to_thread(run, "prepare", *asked)
        sent = [tuple(map(int, found)) for found in re.findall(r"sent (\d+) of (\d+) MB", shown)]
        assert {total for _, total in sent} == {megabytes}
        assert [part for part, _ in sent] == sorted({part for part, _ in sent})
        assert len(sent) > 2
        assert re.search(r"received (\d+) of \1 MB", shown)
        assert shown.endswith(CLEAR), "the line is taken away"
        output, shown = await asyncio.to_thread(run, "generate", *asked)
        assert output.startswith("All is well")
        assert f"sent {megabytes} of {megabytes} MB" in shown
        assert shown.endswith(CLEAR)
        piped = await asyncio.to_thread(
            subprocess.run, [*COMMAND, "prepare", *map(str, asked)], capture_output=True, timeout=PATIENCE_SECONDS
        )
        assert (piped.returncode, piped.stderr) == (0, b"")


@pytest.fixture
def script(request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """The completion of a shell, beside a file and two folders."""
    assert main(["completion", request.param]) == 0
    path = tmp_path / "completion"
    path.write_text(capsys.readouterr().out)
    (tmp_path / "clip.mp4").touch()
    (tmp_path / "clips").mkdir()
    return path


def in_shell(shell: str, code: str, folder: Path) -> list[str]:
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"there is no {shell} here")
    done = subprocess.run([found, "-c", code], capture_output=True, text=True, cwd=folder, timeout=PATIENCE_SECONDS)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split("\n")[:-1]


LINES = {
    "preprocessor pre": {"prepare"},
    "preprocessor completion ": {"bash", "zsh", "fish"},
    "preprocessor serve --drain": {"--drain-seconds"},
    "preprocessor prepare --dtype f": {"fp16", "fp32"},
    "preprocessor generate --image cli": {"clip.mp4", "clips"},
    "preprocessor bench --frames cli": {"clips"},
}


@pytest.mark.parametrize("script", ["bash"], indirect=True)
@pytest.mark.parametrize("line", LINES)
def test_bash_completes(script: Path, line: str) -> None:
    words = line.split(" ")
    code = f"""
        source completion
        COMP_WORDS=({" ".join(word or "''" for word in words)}) COMP_CWORD={len(words) - 1}
        $(complete -p preprocessor | sed 's/.* -F \\([^ ]*\\) .*/\\1/')
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    assert set(in_shell("bash", code, script.parent)) == LINES[line]


@pytest.mark.parametrize("script", ["fish"], indirect=True)
@pytest.mark.parametrize("line", LINES)
def test_fish_completes(script: Path, line: str) -> None:
    lines = in_shell("fish", f"source completion; complete -C '{line}'", script.parent)
    assert {one.split("\t")[0].rstrip("/") for one in lines} == LINES[line]


@pytest.mark.parametrize("script", ["zsh"], indirect=True)
def test_zsh_takes_the_completion(script: Path) -> None:
    script.rename(script.with_name("_preprocessor"))
    code = (
        "fpath=($PWD $fpath); autoload -U compinit; compinit -u -D; print $_comps[preprocessor]; zsh -n _preprocessor"
    )
    assert in_shell("zsh", code, script.parent) == ["_preprocessor"]
