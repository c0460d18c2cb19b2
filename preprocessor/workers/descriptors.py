"""Descriptors of files for another process, through a socket that may be full."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Sequence

FULL_SECONDS = 0.01
"""Pause before another try to send to a process whose socket is full."""


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
