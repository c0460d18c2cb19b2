"""A cgroup with a memory limit, if this machine allows creating one; cgroups(7)."""

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
    """A cgroup with a memory limit."""

    folder: Path

    @property
    def under(self) -> tuple[str, ...]:
        """A command prefix: it enters the cgroup and executes the command that follows."""
        return "sh", "-c", f'echo $$ > {self.folder}/cgroup.procs && exec "$@"', "sh"

    @property
    def kill_count(self) -> int:
        """The number of its processes that the OOM killer has killed."""
        for name in ("memory.events", "memory.oom_control"):
            with contextlib.suppress(FileNotFoundError):
                lines = (self.folder / name).read_text().splitlines()
                return int(dict(line.split() for line in lines)["oom_kill"])
        raise RuntimeError("the group counts no kills")


@contextmanager
def memory_group(limit_bytes: int) -> Iterator[MemoryGroup | None]:
    """A new cgroup in this process's cgroup; None if it cannot be created."""
    made = next(filter(None, (_make(folder, name, limit_bytes) for folder, name in _places())), None)
    if made is None:
        yield None
        return
    try:
        yield MemoryGroup(made)
    finally:
        _remove(made)


def _places() -> Iterator[tuple[Path, str]]:
    """Parent folders for a new cgroup, with the name of the limit's file."""
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
    """Remove it once its last processes have ended."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            folder.rmdir()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
