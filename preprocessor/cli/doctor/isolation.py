"""Whether workers can be isolated, tried in processes that enter the sandbox.

python -m preprocessor.cli.doctor.isolation    # prints what holds, as JSON
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping

from preprocessor.cli.doctor.finding import Finding, failed, ok, warning
from preprocessor.workers import landlock
from preprocessor.workers.sandbox import WorkerLimits, enter_sandbox

_PATIENCE_SECONDS = 30.0
# What `try_sandbox` looks for, with what is possible without it.
_MEANS: Mapping[str, str] = {
    "no_files": "a filter of system calls: a decoder that was taken over can read and write files",
    "no_sockets": "that filter: it keeps the network",
    "no_programs": "that filter: it may start programs",
    "no_signals": "that filter: it may end the service",
    "memory_limit": "the limit on address space: one worker may take all memory",
}
_FIX = (
    "install pyseccomp and libseccomp 2, on a kernel and in a container that take filters (Linux 3.17, SECCOMP_FILTER)"
)


def check_isolation(is_in_process: bool, holds: Mapping[str, bool], trouble: str = "") -> Finding:
    """Whether each means of isolation holds.

    Args:
        holds: As `try_sandbox` found; empty if it could not try.
        trouble: Why it could not.
    """
    if is_in_process:
        return warning("isolation", "--in-process: a file that crashes its decoder ends the service", "leave it out")
    if not holds:
        return failed("isolation", f"no worker can be set up: {trouble}", "see the message")
    if lacking := lacking_means(holds):
        return warning("isolation", "; ".join(f"without {text}" for text in lacking), _FIX)
    layers = (
        "a filter of system calls and Landlock"
        if holds.get("landlock")
        else "a filter of system calls (this kernel has no Landlock)"
    )
    return ok("isolation", f"workers open no files, sockets or programs and signal nobody: {layers}")


def lacking_means(holds: Mapping[str, bool]) -> list[str]:
    """What does not hold, each with what is possible without it. Landlock is not needed: it is a second layer."""
    return [text for name, text in _MEANS.items() if not holds.get(name)]


def try_sandbox() -> tuple[dict[str, bool], str]:
    """Which means of isolation work in a process that entered the sandbox; empty with the reason if none could."""
    try:
        ran = subprocess.run(
            [sys.executable, "-m", __name__], capture_output=True, text=True, timeout=_PATIENCE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return {}, f"no answer within {_PATIENCE_SECONDS:g} s"
    if ran.returncode:
        return {}, f"exit status {ran.returncode}: {ran.stderr.strip()[-500:]}"
    return dict(json.loads(ran.stdout)), ""


def main() -> None:
    """Try each thing in a process of its own that has entered the sandbox, and print which are refused, as JSON."""
    if not _ends_well(lambda: None):
        sys.exit("a process that enters the sandbox does not go on")
    with tempfile.NamedTemporaryFile() as file:
        holds = {
            "landlock": landlock.version() > 0,
            "no_files": not _ends_well(lambda: os.open(file.name, os.O_RDONLY)),
            "no_sockets": not _ends_well(lambda: socket.socket().close()),
            "no_programs": not _ends_well(lambda: os.execv("/bin/true", ["true"])),
            "no_signals": not _ends_well(lambda: os.kill(os.getppid(), signal.SIGCONT)),
            "memory_limit": _ends_well(_require_memory_limit),
        }
    print(json.dumps(holds))


def _require_memory_limit() -> None:
    if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
        raise OSError("there is no limit")


def _ends_well(action: Callable[[], object]) -> bool:
    """Whether a process that entered the sandbox can do something and then end by itself."""
    process_id = os.fork()
    if process_id:
        return os.waitstatus_to_exitcode(os.waitpid(process_id, 0)[1]) == 0
    try:
        enter_sandbox(WorkerLimits(memory_bytes=1 << 30, niceness=0))
        action()
    except OSError:
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    main()
