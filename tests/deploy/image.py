"""Builds the service's image and runs it: `make image-test`. Needs root, Buildah and debootstrap; minutes and 6 GB of disk.

No registry is asked for an image: the base is a Debian with its own Python, and dependencies come as wheels that pip downloads
here. `image_contents` checks what the image holds, `image_pod` runs it.

All of it happens in one folder, Buildah's storage included, and in mount and process namespaces of its own: whatever ends it, no
process and no mount is left, no other image of this machine is touched, and the next run removes a folder that was left.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.pins import OF_ANOTHER_INDEX
from tests.deploy.image_contents import check_contents
from tests.deploy.tools import DEPLOY, REPOSITORY

_FOLDER = REPOSITORY / "build/image"
_BUILDAH = ("buildah", "--root", str(_FOLDER / "storage"), "--runroot", str(_FOLDER / "run"))
_BASE, _IMAGE = "localhost/preprocessor-test-base", "localhost/preprocessor-test"
_MIRROR = "http://deb.debian.org/debian"
_BASE_PACKAGES = "ca-certificates,python3,python3-venv,python-is-python3"
# What Debian's slim images leave out, too.
_LEFT_OUT = (
    "./proc",
    "./sys",
    "./var/cache/apt",
    "./var/lib/apt/lists",
    "./usr/share/doc",
    "./usr/share/man",
    "./usr/share/locale",
)
_NAMESPACES = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
_INSIDE = "--inside"


def main() -> int:
    """Build, check and run; returns the exit status."""
    if sys.argv[1:] == [_INSIDE]:  # in namespaces that are there already
        _make_base()
        _download_wheels()
        _build()
        _check_and_run()
        return 0
    missing = [name for name in ("buildah", "debootstrap", "unshare") if shutil.which(name) is None]
    if missing or os.getuid():
        wanted = (
            f"{', '.join(missing)}: apt-get install --no-install-recommends buildah debootstrap" if missing else "root"
        )
        print(f"image-test needs {wanted}", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the folder goes in any case
    try:
        _remove_folder()
        (_FOLDER / "tmp").mkdir(parents=True)
        environment = {**os.environ, "TMPDIR": str(_FOLDER / "tmp")}
        command = (*_NAMESPACES, sys.executable, "-m", "tests.deploy.image", _INSIDE)
        status = subprocess.run(command, check=False, cwd=REPOSITORY, env=environment).returncode
    finally:
        _remove_folder()
    _say("failed" if status else "all is well", "everything removed", sep="; ")
    return status


def _remove_folder() -> None:
    if _FOLDER.exists():
        shutil.rmtree(_FOLDER)


def _make_base() -> None:
    """Debian with Python, in the place of python:3.11-slim-bookworm."""
    root = _FOLDER / "base"
    _say(f"making a base: Debian with {_BASE_PACKAGES}")
    _do("debootstrap", "--variant=minbase", f"--include={_BASE_PACKAGES}", "bookworm", root, _MIRROR)
    with _container("scratch") as (name, mounted):
        packed = subprocess.Popen(
            ["tar", "-C", root, "-c", *(f"--exclude={path}" for path in _LEFT_OUT), "."], stdout=subprocess.PIPE
        )
        subprocess.run(["tar", "-C", mounted, "-x"], stdin=packed.stdout, check=True)
        if packed.wait():
            raise SystemExit(f"tar ended with status {packed.returncode}")
        for path in ("proc", "sys"):
            (mounted / path).mkdir(exist_ok=True)
        _do(*_BUILDAH, "commit", name, _BASE)
    shutil.rmtree(root)


def _download_wheels() -> None:
    """What the image installs, by this machine's pip."""
    _say("downloading wheels")
    options = ("--quiet", "--no-deps", "--only-binary", ":all:", "--dest", _FOLDER / "wheels")
    by_digest = (
        "--require-hashes",
        "--requirement",
        DEPLOY / "requirements.txt",
        "--requirement",
        DEPLOY / "installer.txt",
    )
    by_version = ("--constraint", DEPLOY / "constraints.txt", *OF_ANOTHER_INDEX)
    for asked in (by_digest, by_version):
        _do(sys.executable, "-m", "pip", "download", *options, *asked)


def _build() -> None:
    _say("building the image")
    options = ("--isolation", "chroot", "--format", "docker", "--build-arg", f"PYTHON_IMAGE={_BASE}")
    sources = ("--build-context", f"wheels={_FOLDER / 'wheels'}", "--file", DEPLOY / "Dockerfile")
    _do(*_BUILDAH, "build", *options, *sources, "--tag", _IMAGE, REPOSITORY)


def _check_and_run() -> None:
    inspected = json.loads(_output(*_BUILDAH, "inspect", "--type", "image", _IMAGE))["Docker"]
    config = inspected["config"]
    with _container(_IMAGE) as (_, root):
        with _container(_BASE) as (_, base):
            _say(check_contents(root, base, config))
        _do(*_NAMESPACES, "--net", sys.executable, "-m", "tests.deploy.image_pod", root, json.dumps(config))


@contextmanager
def _container(image: str) -> Iterator[tuple[str, Path]]:
    """Name and root directory of a container."""
    name = _output(*_BUILDAH, "from", "--pull-never", image).strip()
    try:
        yield name, Path(_output(*_BUILDAH, "mount", name).strip())
    finally:
        _do(*_BUILDAH, "rm", name)


def _do(*command: str | Path) -> None:
    subprocess.run([*map(str, command)], check=True, cwd=REPOSITORY)


def _output(*command: str | Path) -> str:
    return subprocess.run([*map(str, command)], check=True, stdout=subprocess.PIPE, text=True).stdout


def _say(*text: str, sep: str = " ") -> None:
    print("image-test:", sep.join(text), flush=True)


if __name__ == "__main__":
    sys.exit(main())
