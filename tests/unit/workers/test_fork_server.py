"""The process that forks workers, at its end."""

from __future__ import annotations

import subprocess
import sys

_SERVICE_GONE = """
import socket
from preprocessor.workers.fork_server import _serve_forks
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
ours.close()
_serve_forks(theirs, None)
"""


def test_a_service_that_is_gone_when_it_is_told_something_is_an_end_without_a_trace() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SERVICE_GONE], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
