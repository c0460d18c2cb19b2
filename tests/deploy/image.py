"""Builds the service's image and runs it: `make image-test`. Needs root, Buildah and debootstrap; minutes and 6 GB of disk.

No registry is asked for an image: the base is a Debian with its own Python, and dependencies come as wheels that pip downloads
here. What runs is what a container would be: the image's own entry point, variables and health check, user 1000, no
capabilities, no_new_privs, a read-only root with an empty /tmp, processes and a network of its own.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

import preprocessor
from deploy.demo import QUESTION
from deploy.pins import OF_ANOTHER_INDEX
from deploy.triton.local_server import RANDOM_WEIGHTS, TritonServer
from tests.deploy.tools import DEPLOY, REPOSITORY
from tests.media import moving_shapes_clip

_FOLDER = REPOSITORY / "build/image"
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
_MOST_BYTES = 1_300_000_000
_START_SECONDS = 60.0


def main(arguments: Sequence[str]) -> int:
    """Build, check and run; returns the exit status. With `--inside` only run, in namespaces that are there already."""
    if arguments[:1] == ["--inside"]:
        _run_inside(Path(arguments[1]), json.loads(arguments[2]))
        return 0
    missing = [name for name in ("buildah", "debootstrap", "unshare") if shutil.which(name) is None]
    if missing or os.getuid():
        wanted = (
            f"{', '.join(missing)}: apt-get install --no-install-recommends buildah debootstrap" if missing else "root"
        )
        print(f"image-test needs {wanted}", file=sys.stderr)
        return 1
    _FOLDER.mkdir(parents=True, exist_ok=True)
    try:
        _make_base()
        _download_wheels()
        _build()
        _check_and_run()
    finally:
        for image in (_IMAGE, _BASE):
            subprocess.run(["buildah", "rmi", "--force", image], check=False, capture_output=True)
        subprocess.run(["buildah", "rmi", "--prune", "--force"], check=False, capture_output=True)
        shutil.rmtree(_FOLDER)
    say("done, everything removed")
    return 0


def _make_base() -> None:
    """Debian with Python, in the place of python:3.11-slim-bookworm."""
    root = _FOLDER / "base"
    say(f"making a base: Debian with {_BASE_PACKAGES}")
    _do("debootstrap", "--variant=minbase", f"--include={_BASE_PACKAGES}", "bookworm", root, _MIRROR)
    with _container("scratch") as (name, mounted):
        packed = subprocess.Popen(
            ["tar", "-C", root, "-c", *(f"--exclude={path}" for path in _LEFT_OUT), "."], stdout=subprocess.PIPE
        )
        subprocess.run(["tar", "-C", mounted, "-x"], stdin=packed.stdout, check=True)
        for path in ("proc", "sys"):
            (mounted / path).mkdir(exist_ok=True)
        _do("buildah", "commit", name, _BASE)
    shutil.rmtree(root)


def _download_wheels() -> None:
    """What the image installs, by this machine's pip."""
    say("downloading wheels")
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
    say("building the image")
    _do(
        *("buildah", "build", "--isolation", "chroot", "--format", "docker", "--build-arg", f"PYTHON_IMAGE={_BASE}"),
        *(
            "--build-context",
            f"wheels={_FOLDER / 'wheels'}",
            "--file",
            DEPLOY / "Dockerfile",
            "--tag",
            _IMAGE,
            REPOSITORY,
        ),
    )


def _check_and_run() -> None:
    inspected = json.loads(_output("buildah", "inspect", "--type", "image", _IMAGE))["Docker"]
    config = inspected["config"]
    with _container(_IMAGE) as (_, mounted):
        size_bytes = int(_output("du", "-sxb", mounted).split()[0])
        say(f"{size_bytes / 1e9:.2f} GB; health check: {' '.join(config['Healthcheck']['Test'][:2])} …")
        if size_bytes > _MOST_BYTES:
            raise SystemExit(f"the image has {size_bytes / 1e9:.2f} GB, more than {_MOST_BYTES / 1e9:.1f}")
        _check_contents(mounted)
        namespaces = ("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
        _do(*namespaces, sys.executable, "-m", "tests.deploy.image", "--inside", mounted, json.dumps(config))


def _check_contents(root: Path) -> None:
    """What is in the image: the libraries that were pinned, Debian's packages of the base and two more, nothing to take over."""
    libraries = {
        f"{canonicalize_name(one.metadata['Name'])}=={one.version.split('+')[0]}"
        for one in distributions(path=[str(next(root.glob("opt/preprocessor/lib/python3.*/site-packages")))])
    }
    pinned = {line.split()[0] for line in (DEPLOY / "requirements.txt").read_text().splitlines() if "==" in line}
    pinned |= {
        line
        for line in (DEPLOY / "constraints.txt").read_text().splitlines()
        if line.split("==")[0] in OF_ANOTHER_INDEX
    }
    _same("libraries", libraries, pinned | {f"vlm-preprocessor=={preprocessor.__version__}"})
    with _container(_BASE) as (_, base):
        added = {path: _debian_packages(path) for path in (root, base)}
    _same("packages of Debian beside the base's", added[root] - added[base], {"libseccomp2", "tini"})
    ours = root / "opt/preprocessor"
    programs = {path.name for path in (ours / "bin").iterdir()}
    say(f"{len(libraries)} libraries; programs: {' '.join(sorted(programs))}")
    for name in ("gcc", "cc", "ld", "uv", "pip", "git", "curl", "wget"):
        if any((root / folder / name).exists() for folder in ("usr/bin", "usr/local/bin", "opt/preprocessor/bin")):
            raise SystemExit(f"the image has {name}")
    for what, tests in (
        ("set-user-id programs of ours", (ours, "-perm", "/6000")),
        ("files that everybody may write", (root, "-xdev", "-type", "f", "-perm", "-0002")),
        ("files of the service's user", (root, "-xdev", "-uid", "1000")),
        ("sources of ours that nothing imports", (ours, "-name", "*.c", "-o", "-name", "*.cpp", "-o", "-name", ".git")),
    ):
        _same(what, set(_output("find", *tests).split()), set())


def _debian_packages(root: Path) -> set[str]:
    return set(re.findall(r"^Package: (\S+)$", (root / "var/lib/dpkg/status").read_text(), re.MULTILINE))


def _same(what: str, found: set[str], expected: set[str]) -> None:
    if found != expected:
        raise SystemExit(f"{what}: too many {sorted(found - expected)}, missing {sorted(expected - found)}")


@contextmanager
def _container(image: str) -> Iterator[tuple[str, Path]]:
    """Name and root directory of a container."""
    name = _output("buildah", "from", "--pull-never", image).strip()
    try:
        yield name, Path(_output("buildah", "mount", name).strip())
    finally:
        subprocess.run(["buildah", "rm", name], check=True, capture_output=True)


def _run_inside(root: Path, config: dict[str, Any]) -> None:
    """Doctor, the service alone, then the demo's request with a real Triton behind it."""
    _raise_loopback()
    container = _Container(root, config)
    say("preprocessor doctor:")
    container.run(*config["Entrypoint"], "doctor")
    with container.service(), tempfile.TemporaryDirectory() as folder:
        say("the service runs; its health check")
        container.run(*config["Healthcheck"]["Test"][1:])
        clip = Path(folder) / "clip.mp4"
        clip.write_bytes(moving_shapes_clip())
        asked = ("--video", clip, "--fps", "1", "--text", QUESTION)
        _do(sys.executable, "-m", "preprocessor", "prepare", *asked)
    with (
        TritonServer(["vlm_transformers"], environment=RANDOM_WEIGHTS) as triton,
        container.service("serve", "--engine", triton.grpc_address),
        ExitStack() as stack,
    ):
        clip = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "clip.mp4"
        clip.write_bytes(moving_shapes_clip())
        _do(
            sys.executable,
            "-m",
            "preprocessor",
            "generate",
            "--video",
            clip,
            "--fps",
            "1",
            "--text",
            QUESTION,
            "--max-tokens",
            "16",
        )


class _Container:
    """The image's root, read-only, with /proc, /dev and an empty /tmp."""

    def __init__(self, root: Path, config: dict[str, Any]) -> None:
        self._root, self._config = root, config
        _do("mount", "--bind", root, root)
        _do("mount", "-o", "remount,bind,ro", root)
        for kind, where in (("proc", "proc"), ("tmpfs", "tmp"), ("tmpfs", "dev")):
            _do("mount", "-t", kind, kind, root / where)
        for name in ("null", "zero", "urandom", "random"):
            (root / "dev" / name).touch()
            _do("mount", "--bind", f"/dev/{name}", root / "dev" / name)
        (root / "dev/shm").mkdir(mode=0o1777)
        _do("mount", "--bind", "/dev/shm", root / "dev/shm")
        (root / "tmp").chmod(0o1777)

    def command(self, *command: str) -> list[str]:
        user, group = self._config["User"].split(":")
        rights = (
            "--reuid",
            user,
            "--regid",
            group,
            "--clear-groups",
            "--bounding-set=-all",
            "--inh-caps=-all",
            "--no-new-privs",
        )
        return [
            "chroot",
            str(self._root),
            "setpriv",
            *rights,
            "env",
            "-i",
            "--chdir=/",
            *self._config["Env"],
            "TINI_SUBREAPER=1",
            *command,
        ]  # tini is not process 1 here

    def run(self, *command: str) -> None:
        _do(*self.command(*command))

    @contextmanager
    def service(self, *arguments: str) -> Iterator[None]:
        """A running service, once its health check passes; SIGTERM must end it with status 0."""
        process = subprocess.Popen(self.command(*self._config["Entrypoint"], *(arguments or self._config["Cmd"])))
        try:
            deadline = time.monotonic() + _START_SECONDS
            check = self.command(*self._config["Healthcheck"]["Test"][1:])
            while subprocess.run(check, check=False, capture_output=True).returncode:
                if time.monotonic() > deadline or process.poll() is not None:
                    raise SystemExit("the service in the image did not start")
                time.sleep(0.2)
            yield
        finally:
            process.terminate()
            status = process.wait(_START_SECONDS)
        if status:
            raise SystemExit(f"the service in the image ended with status {status}")


def _raise_loopback() -> None:
    """A new network has its loopback interface down (netdevice(7): SIOCSIFFLAGS, IFF_UP, IFF_RUNNING)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, 0x8914, struct.pack("16sh14x", b"lo", 0x1 | 0x40))


def _do(*command: str | Path) -> None:
    subprocess.run([*map(str, command)], check=True, cwd=REPOSITORY)


def _output(*command: str | Path) -> str:
    return subprocess.run([*map(str, command)], check=True, capture_output=True, text=True).stdout


def say(text: str) -> None:
    print(f"image-test: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
