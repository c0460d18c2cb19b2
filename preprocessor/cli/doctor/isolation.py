"""Whether workers can be sandboxed, tried in a process that then ends.

python -m preprocessor.cli.doctor.isolation    # enters the sandbox and prints what holds, as JSON
"""

from __future__ import annotations

import json
import resource
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from preprocessor.cli.doctor.finding import Finding, failed, ok, warning
from preprocessor.workers.sandbox import WorkerLimits, enter_sandbox

_PATIENCE_SECONDS = 30.0
# Each means that `try_sandbox` looks for, with what is possible without it.
_MEANS: Mapping[str, str] = {
    "no_new_privs": "no_new_privs: a program that a worker starts may gain privileges",
    "seccomp": "the seccomp filter: workers keep the network and may start programs",
    "no_sockets": "the refusal of sockets: workers keep the network",
    "memory_limit": "the limit on address space: one worker may take all memory",
}


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
    lacking = [text for name, text in _MEANS.items() if not holds.get(name)]
    if lacking:
        fix = "install pyseccomp and libseccomp 2, on a kernel and in a container that take filters (Linux 3.17, SECCOMP_FILTER)"
        return warning("isolation", "; ".join(f"without {text}" for text in lacking), fix)
    return ok("isolation", "workers have no_new_privs, a seccomp filter, no sockets, and a limit on memory")


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
    """Enter the sandbox, find out which means work, and print them."""
    enter_sandbox(WorkerLimits(memory_bytes=1 << 30, niceness=0))
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    try:
        socket.socket().close()
        is_refused = False
    except PermissionError:
        is_refused = True
    holds = {
        "no_new_privs": status.get("NoNewPrivs") == "1",
        "seccomp": status.get("Seccomp") == "2",  # proc(5): 2 is filter mode
        "no_sockets": is_refused,
        "memory_limit": resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY,
    }
    print(json.dumps(holds))


if __name__ == "__main__":
    main()
