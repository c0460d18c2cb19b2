"""Runs the image as a pod would: its own entry point, variables and health check, user 1000, no capabilities, no_new_privs, a
read-only root with an empty /tmp, processes and a network of its own.

python -m tests.deploy.image_pod ROOT CONFIG      in namespaces that `image` makes; CONFIG as JSON
"""

from __future__ import annotations

import fcntl
import json
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deploy.triton.local_server import RANDOM_WEIGHTS, TritonServer
from tests.deploy.tools import REPOSITORY
from tests.media import moving_shapes_clip

_START_SECONDS = 60.0
_QUESTION = "Which shapes move, and where do they go?"


def main() -> None:
    """Doctor, the service alone, then a question with a real Triton behind it."""
    _raise_loopback()
    container = _Container(Path(sys.argv[1]), json.loads(sys.argv[2]))
    print("image-test: preprocessor doctor:", flush=True)
    container.run(*container.entrypoint, "doctor")
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        clip.write_bytes(moving_shapes_clip())
        asked = ("--video", clip, "--fps", "1", "--text", _QUESTION)
        with container.service():
            print("image-test: the service runs; a clip", flush=True)
            _client("prepare", *asked)
        with (
            TritonServer(["vlm_transformers"], environment=RANDOM_WEIGHTS) as triton,
            container.service("--isolation", "required", "--engine", triton.grpc_address),
        ):
            _client("generate", *asked, "--max-tokens", "16")


class _Container:
    """The image's root, read-only, with /proc, /dev and an empty /tmp."""

    def __init__(self, root: Path, config: dict[str, Any]) -> None:
        self._root, self._config = root, config
        self.entrypoint: list[str] = config["Entrypoint"]
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
        rights = ("--clear-groups", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs")
        # tini is not process 1 here.
        environment = ("env", "-i", "--chdir=/", *self._config["Env"], "TINI_SUBREAPER=1")
        own = ("chroot", str(self._root), "setpriv", "--reuid", user, "--regid", group, *rights, *environment)
        return [*own, *command]

    def run(self, *command: str) -> None:
        _do(*self.command(*command))

    @contextmanager
    def service(self, *options: str) -> Iterator[None]:
        """The image's own command with these options, once its health check passes; SIGTERM must end it with status 0."""
        process = subprocess.Popen(self.command(*self.entrypoint, *self._config["Cmd"], *options))
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


def _client(*arguments: str | Path) -> None:
    """A command of the client, as installed here and not in the image."""
    _do(sys.executable, "-m", "preprocessor", *arguments)


def _do(*command: str | Path) -> None:
    subprocess.run([*map(str, command)], check=True, cwd=REPOSITORY)


if __name__ == "__main__":
    main()
