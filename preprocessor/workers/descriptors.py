"""Descriptors of files: how many there may be, and how another process gets some, through a socket that may be full."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
from collections.abc import Iterable, Sequence

BATCH_COUNT = 64
"""Descriptors that are sent together: a worker may have only so many open."""

FULL_SECONDS = 0.01
"""Pause before another try to send to a process whose socket is full."""


def allow_descriptors() -> None:
    """Let this process open as many descriptors as its hard limit allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def open_read_only(descriptor: int) -> int:
    """Another descriptor of the same file, by which nobody can write or make a mapping that can be written."""
    return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)


def close_all(descriptors: Iterable[int]) -> None:
    """Close descriptors."""
    for descriptor in descriptors:
        os.close(descriptor)


async def send_descriptors(supply: socket.socket, message: bytes, descriptors: Sequence[int]) -> None:
    """Send descriptors together with a message, as soon as there is room.

    Args:
        supply: Does not block.
    Raises:
        OSError: The other process has ended, or this one has closed its end.
    """
    while not _try_to_send(supply, message, descriptors):  # noqa: ASYNC110 - it reads soon, or ends
        await asyncio.sleep(FULL_SECONDS)


def _try_to_send(supply: socket.socket, message: bytes, descriptors: Sequence[int]) -> bool:
    try:
        socket.send_fds(supply, [message], descriptors)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno != errno.ETOOMANYREFS:  # of all processes of this user, until they are received
            raise
        return False
    return True
