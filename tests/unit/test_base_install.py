"""What a caller installs, without the extra `serve`, is enough for the client and for every command that asks a service."""

from __future__ import annotations

import pkgutil

import pytest

import preprocessor.client
import preprocessor.traffic
import preprocessor.wire
from tests.base_install import absent_modules, run_with_base_install

_COMMAND = "import sys; from preprocessor.__main__ import main; sys.exit(main(sys.argv[1:]))"
NEEDS_SERVE = [
    ("serve", "--address", "127.0.0.1:0", "--http-address", "127.0.0.1:0"),
    ("doctor",),
    ("fingerprint", "qwen3-vl"),
    ("plan", "--rps", "1", "--text", "Hi"),
    ("prepare", "--local", "--text", "Hi"),
    ("inspect", "--text", "Hi"),
    ("bench", "--address", "127.0.0.1:1"),
]


def test_what_prepares_requests_is_no_part_of_the_base() -> None:
    heavy = {
        "torch",
        "transformers",
        "tokenizers",
        "av",
        "cv2",
        "PIL",
        "aiohttp",
        "uvloop",
        "prometheus_client",
        "jinja2",
    }
    assert heavy <= absent_modules()


@pytest.mark.parametrize(
    "package", [preprocessor.client, preprocessor.wire, preprocessor.traffic], ids=lambda one: one.__name__
)
def test_a_caller_s_modules_are_imported_without_the_rest(package: object) -> None:
    names = [found.name for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")]  # type: ignore[attr-defined]
    assert names
    names = [name for name in names if name != "preprocessor.traffic.seed"]  # makes a clip
    run_with_base_install("".join(f"import {name}\n" for name in names))


@pytest.mark.parametrize(
    "command", ["prepare", "generate", "bench", "plan", "inspect", "serve", "doctor", "fingerprint"]
)
def test_help_is_printed_without_the_rest(command: str) -> None:
    assert "usage: preprocessor" in run_with_base_install(_COMMAND, command, "--help").stdout


@pytest.mark.parametrize("command", NEEDS_SERVE, ids=lambda command: command[0])
def test_a_command_that_needs_the_rest_says_how_to_install_it(command: tuple[str, ...]) -> None:
    lines = run_with_base_install(_COMMAND, *command, status=1).stderr.splitlines()
    assert lines[-1].startswith(f"preprocessor: `{command[0]}` needs ")
    assert lines[-1].endswith(", which is not installed: pip install 'vlm-preprocessor[serve]'")
    assert not any("Traceback" in line for line in lines)
