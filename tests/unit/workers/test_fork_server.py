"""How the process that forks workers ends."""

from __future__ import annotations

import subprocess
import sys

_SERVICE_GONE = """
import socket
from preprocessor.workers.forking import _serve_forks
from tests.unit.workers.payloads import NO_MODEL
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
ours.close()
_serve_forks(theirs, NO_MODEL)
"""


def test_the_fork_server_ends_without_a_traceback_if_the_service_is_gone_when_it_sends() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SERVICE_GONE], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
