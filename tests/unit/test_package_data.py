"""What is no Python file gets into a wheel only where pyproject.toml lists it: an editable install does not notice."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_FOR_READERS = {"README.md"}
_COMPILED = {".c", ".h", ".so"}  # what an extension module is made of, and what a build leaves in its place


def data_files(package: str) -> Iterator[Path]:
    for path in sorted((ROOT / package).rglob("*")):
        if path.is_file() and path.suffix not in {".py", ".pyc", *_COMPILED} and path.name not in _FOR_READERS:
            yield path


@pytest.mark.parametrize("package", ["preprocessor", "engine_client"])
def test_every_file_that_the_package_reads_is_installed_with_it(package: str) -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    installed = {path for pattern in listed[package] for path in (ROOT / package).glob(pattern)}
    installed |= {
        path for pattern in listed["*"] for path in (ROOT / package).rglob(pattern) if "." not in path.parent.name
    }
    files = set(data_files(package))
    assert len(files) > 2
    assert files <= installed, [str(path.relative_to(ROOT)) for path in sorted(files - installed)]
