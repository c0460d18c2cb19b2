"""The wheel and the source distribution, really built: what is in them, and what runs before anything else is installed."""

from __future__ import annotations

import email
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_BUILD = "import sys, setuptools.build_meta as b; to = sys.argv[1]; b.build_sdist(to); b.build_wheel(to)"
_RUN_WITHOUT_PACKAGES = """
import sys
sys.path.insert(0, sys.argv[1])
from preprocessor.__main__ import main
sys.exit(main(sys.argv[2:]))
"""


@dataclass(frozen=True, slots=True)
class Built:
    """Both distributions, unpacked."""

    tracked: frozenset[str]
    """What the repository holds, by its path there; a link to a folder as what is in it."""
    source: frozenset[str]
    """The same of the source distribution."""
    installed: Path
    """What the wheel puts into `site-packages`."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a checkout: which files belong to the project is not known")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    folder = tmp_path_factory.mktemp("built")
    checkout, made, installed = folder / "checkout", folder / "made", folder / "installed"
    for name in filter(None, listed.split("\0")):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, checkout / name, follow_symlinks=False)
    tracked = frozenset(files_below(checkout))
    made.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", _BUILD, made], cwd=checkout, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    with tarfile.open(next(made.glob("*.tar.gz"))) as archive:
        source = frozenset(one.name.partition("/")[2] for one in archive.getmembers() if one.isfile())
    with zipfile.ZipFile(next(made.glob("*.whl"))) as wheel:
        wheel.extractall(installed)
    return Built(tracked, source, installed)


def files_below(folder: Path) -> set[str]:
    """Relative paths; links to folders are followed."""
    found = set()
    for path in folder.iterdir():
        if path.is_dir():
            found |= {f"{path.name}/{inner}" for inner in files_below(path)}
        else:
            found.add(path.name)
    return found


def run_installed(built: Built, *arguments: str) -> str:
    command = [sys.executable, "-I", "-S", "-c", _RUN_WITHOUT_PACKAGES, str(built.installed), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_source_distribution_holds_the_whole_project(built: Built) -> None:
    assert sorted(built.tracked - built.source) == []


def test_the_source_distribution_adds_only_its_own_description(built: Built) -> None:
    added = {name for name in built.source - built.tracked if not name.startswith("vlm_preprocessor.egg-info/")}
    assert added == {"PKG-INFO", "setup.cfg"}


def test_the_wheel_prints_its_constraints_before_anything_else_is_installed(built: Built) -> None:
    assert run_installed(built, "constraints") == (ROOT / "deploy/constraints.txt").read_text()


def test_the_wheel_says_its_version_before_anything_else_is_installed(built: Built) -> None:
    assert run_installed(built, "--version").startswith("preprocessor ")


def test_the_wheel_says_what_it_is(built: Built) -> None:
    text = next(built.installed.glob("*.dist-info/METADATA")).read_text()
    metadata = email.message_from_string(text)
    links = dict(one.split(", ", 1) for one in metadata.get_all("Project-URL", []))
    assert links.keys() == {"Repository", "Documentation", "Changelog", "Issues"}
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("Classifier") and metadata["Keywords"] and metadata["Description-Content-Type"]


def test_the_wheel_has_the_native_kernel_where_there_is_a_compiler(built: Built) -> None:
    """And not its source; one library for every release of Python."""
    installed = {path.name for path in (built.installed / "preprocessor/vision/native").iterdir()}
    assert ("_resize.abi3.so" in installed) is bool(shutil.which("cc") or shutil.which("gcc"))
    assert not [name for name in installed if name.endswith((".c", ".h"))]


def test_a_type_checker_sees_the_types_of_both_packages(built: Built) -> None:
    for package in ("preprocessor", "engine_client"):
        assert (built.installed / package / "py.typed").is_file()
