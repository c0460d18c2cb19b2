"""A control group with a limit on memory, where this machine lets one be made; cgroups(7)."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.waiting import PATIENCE_SECONDS

_MOUNTS = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class MemoryGroup:
    """A group whose processes together may take so much."""

    folder: Path

    @property
    def under(self) -> tuple[str, ...]:
        """A command that puts itself into the group and becomes the one that follows it."""
        return "sh", "-c", f'echo $$ > {self.folder}/cgroup.procs && exec "$@"', "sh"

    @property
    def kill_count(self) -> int:
        """How many of its processes the kernel has killed for memory."""
        for name in ("memory.events", "memory.oom_control"):
            with contextlib.suppress(FileNotFoundError):
                lines = (self.folder / name).read_text().splitlines()
                return int(dict(line.split() for line in lines)["oom_kill"])
        raise RuntimeError("the group counts no kills")


@contextmanager
def memory_group(limit_bytes: int) -> Iterator[MemoryGroup | None]:
    """A new group beside this process, None where none may be made."""
    made = next(filter(None, (_make(folder, name, limit_bytes) for folder, name in _places())), None)
    if made is None:
        yield None
        return
    try:
        yield MemoryGroup(made)
    finally:
        _remove(made)


def _places() -> Iterator[tuple[Path, str]]:
    """Folders in which a group may be made, and the name of the file with its limit; of version 2 first."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            yield _MOUNTS / path.strip("/"), "memory.max"
        elif "memory" in controllers.split(","):
            yield _MOUNTS / "memory" / path.strip("/"), "memory.limit_in_bytes"


def _make(parent: Path, limit_name: str, limit_bytes: int) -> Path | None:
    folder = parent / f"preprocessor-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError:
        return None
    try:
        (folder / limit_name).write_text(str(limit_bytes))
    except OSError:
        _remove(folder)
        return None
    return folder


def _remove(folder: Path) -> None:
    """Its last processes may take a moment to be gone."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            folder.rmdir()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
