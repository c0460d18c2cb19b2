"""A Python in which only what `pip install vlm-preprocessor` brings can be imported, without the extra `serve`."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.waiting import PATIENCE_SECONDS

_ROOT = Path(__file__).parents[1]
_BLOCK = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
"""


def run_with_base_install(code: str, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a program there, with these arguments."""
    absent = f"absent = {sorted(absent_modules())!r}"
    done = subprocess.run(
        [sys.executable, "-c", f"{absent}\n{_BLOCK}\n{code}", *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        cwd=_ROOT,
    )
    assert done.returncode == status, done.stderr
    return done


@cache
def absent_modules() -> frozenset[str]:
    """Top-level modules of every distribution here that the base does not need."""
    base = _needed([Requirement(text) for text in _project()["dependencies"]])
    ours = canonicalize_name(_project()["name"])
    return frozenset(
        module
        for module, distributions in metadata.packages_distributions().items()
        if not {canonicalize_name(one) for one in distributions} & {*base, ours}
    )


def _needed(requirements: list[Requirement]) -> set[str]:
    found: set[str] = set()
    waiting = [canonicalize_name(one.name) for one in requirements]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            needs = [Requirement(text) for text in metadata.requires(name) or []]
            waiting += [
                canonicalize_name(one.name) for one in needs if one.marker is None or one.marker.evaluate({"extra": ""})
            ]
    return found


@cache
def _project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    return project
