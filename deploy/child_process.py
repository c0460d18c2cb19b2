"""What the local servers share: a command that ends with the process that runs it, and ports to give it."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Sequence

# Run by a Python of its own, which then becomes the server: a `preexec_fn` would run between fork and exec of this
# process, where threads, gRPC's among them, may hold locks. The signal is asked for first and the parent looked at
# second, so a parent that dies in between is noticed too. PR_SET_PDEATHSIG is 1.
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


def ending_with_this_process(command: Sequence[str]) -> list[str]:
    """The command so that its process gets SIGTERM when the thread that started it ends, even by SIGKILL.

    Args:
        command: Its first word is a path.
    """
    return [sys.executable, "-c", _DIE_WITH_PARENT, str(os.getpid()), *command]


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that were free a moment ago; all held until the last is known, so they differ."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
