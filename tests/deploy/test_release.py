"""deploy/release.sh up to the distributions, with a stand-in for `build`; and `make clean` removes what `make` has set up."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KERNEL = "preprocessor/vision/native/_resize.abi3.so"
# `build --outdir DIST TREE` puts the tree into a "wheel"; all else is Python.
PYTHON = f"""#!/bin/sh
case "$*" in
"-m build --outdir "*) mkdir "$4"; cd "$5"; {sys.executable} -m zipfile --create "$4/some.whl" . ;;
*) exec {sys.executable} "$@" ;;
esac
"""
CHECKED = 33  # the stand-in for twine ends the script here: what follows takes minutes


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with the scripts and a kernel, all committed."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    folder = tmp_path / "repository"
    (folder / "deploy").mkdir(parents=True)
    for name in ("release.sh", "check_wheel.sh"):
        shutil.copy2(ROOT / "deploy" / name, folder / "deploy" / name)
    (folder / KERNEL).parent.mkdir(parents=True)
    (folder / KERNEL).write_bytes(b"")
    git(folder, "init", "--quiet")
    commit(folder)
    return folder


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", folder, *arguments], check=True)


def commit(folder: Path) -> None:
    git(folder, "add", "--all")
    git(folder, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message", "a")


def release(repository: Path) -> tuple[int, str, set[str]]:
    """Exit status, errors, and the files of the tree that was built."""
    tools, dist = repository.parent / "tools", repository.parent / "dist"
    (tools / "bin").mkdir(parents=True, exist_ok=True)
    for name, text in (("python", PYTHON), ("twine", f"#!/bin/sh\nexit {CHECKED}\n")):
        (tools / "bin" / name).write_text(text)
        (tools / "bin" / name).chmod(0o755)
    done = subprocess.run(
        ["sh", repository / "deploy/release.sh", sys.executable, tools, dist], capture_output=True, text=True
    )
    built = dist / "some.whl"
    if not built.exists():
        return done.returncode, done.stderr, set()
    listed = subprocess.run([sys.executable, "-m", "zipfile", "--list", built], capture_output=True, text=True)
    names = {line.split("  ")[0].strip() for line in listed.stdout.splitlines()[1:]}
    return done.returncode, done.stderr, {name for name in names if not name.endswith("/")}


def test_a_release_holds_what_is_committed_and_nothing_beside_it(repository: Path) -> None:
    (repository / "deploy/secret.pem").write_text("a key")
    assert release(repository)[::2] == (CHECKED, {"deploy/check_wheel.sh", "deploy/release.sh", KERNEL})


def test_a_change_that_is_not_committed_is_refused(repository: Path) -> None:
    (repository / KERNEL).write_bytes(b"other")
    status, errors, built = release(repository)
    assert (status, "not committed" in errors, built) == (1, True, set())


def test_a_wheel_without_the_native_kernel_is_refused(repository: Path) -> None:
    (repository / KERNEL).unlink()
    commit(repository)
    status, errors, _ = release(repository)
    assert (status, "no native kernel" in errors) == (1, True)


def test_clean_removes_all_that_is_set_up() -> None:
    """Folders of the root that git ignores and that `make` or a script makes; caches of tools stay."""
    recipe = re.search(r"^clean:.*\n\trm -rf (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None
    removed = set(recipe[1].replace("$(VENV)", ".venv").split())
    ignored = set(re.findall(r"^/([^/\n]+)/?$", (ROOT / ".gitignore").read_text(), re.MULTILINE))
    assert ignored - removed == {".cache"}
