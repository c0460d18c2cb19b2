"""One front as the service sees it: its process, and the sockets to it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from preprocessor.service.fronts.connection import FrontConnection
from preprocessor.service.fronts.frames import Kind, pack_seconds
from preprocessor.service.fronts.front import Setup
from preprocessor.workers.arena import Arena
from preprocessor.workers.shown_rows import ShownRows

_START_SECONDS = 60.0  # imports from a cold disk, on a busy machine
_EXIT_SECONDS = 2.0
_SEND_BUFFER_BYTES = 1 << 20  # as large as a chunk of a file, if the kernel allows it: fewer turns of both event loops


class FrontProcess:
    """A front. It is started once.

    Args:
        methods: As for `FrontConnection`.
        arena: Where rows lie.
    Attributes:
        lost: Set when the front has ended, or is about to.
    """

    def __init__(self, setup: Setup, methods: Mapping[str, Any], arena: Arena) -> None:
        self.lost = asyncio.Event()
        self._setup = setup
        self._methods = methods
        self._arena = arena
        self._ready = asyncio.Event()

    @property
    def is_listening(self) -> bool:
        return self._ready.is_set() and not self.lost.is_set()

    @property
    def process_id(self) -> int:
        return self._process.pid

    @property
    def open_count(self) -> int:
        """Calls that have not ended."""
        return self._connection.open_count

    async def start(self) -> None:
        """Start the process; returns once it listens.

        Raises:
            RuntimeError: It ended, or was not ready in time.
            OSError: It cannot be started.
        """
        with contextlib.ExitStack() as started:
            connection, their_connection = socket.socketpair()
            for end in (connection, their_connection):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
            started.callback(connection.close)
            self._supply, their_supply = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            started.callback(self._supply.close)
            with their_connection, their_supply:
                self._process = self._spawn(their_connection, their_supply)
            self._supply.send(pickle.dumps(self._setup))
            self._supply.setblocking(False)
            started.pop_all()
        self._connection = FrontConnection(
            self._methods,
            ShownRows(self._arena),
            self._supply,
            self._setup.wire.answer_idle_seconds,
            on_ready=self._ready.set,
            on_lost=self._on_lost,
            kill=self.kill,
        )
        await asyncio.get_running_loop().create_unix_connection(lambda: self._connection.protocol, sock=connection)
        try:
            async with asyncio.timeout(_START_SECONDS):
                await self._ready.wait()
        except BaseException as error:
            self.kill()
            await self.wait()
            if isinstance(error, TimeoutError):
                raise RuntimeError(f"a front was not ready within {_START_SECONDS:g} seconds") from error
            raise
        if self.lost.is_set():
            raise RuntimeError(f"a front ended at its start (exit code {await self.wait()})")

    def _spawn(self, connection: socket.socket, supply: socket.socket) -> subprocess.Popen[bytes]:
        descriptors = connection.fileno(), supply.fileno()
        code = f"from preprocessor.service.fronts.front import main; main{descriptors}"
        return subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.DEVNULL,
            pass_fds=descriptors,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)},
            start_new_session=True,  # a terminal sends Ctrl-C to the service alone
        )

    def _on_lost(self) -> None:
        self.lost.set()
        self._ready.set()
        self._supply.close()

    def drain(self, seconds: float) -> None:
        """Have it accept no more, and end once its calls have, or after that time."""
        self._connection.send(Kind.DRAIN, 0, pack_seconds(seconds))

    def kill(self) -> None:
        """End it now."""
        self._process.kill()

    async def wait(self) -> int:
        """Wait until it has ended, and end it if it does not; returns its exit code."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return await asyncio.to_thread(self._process.wait, _EXIT_SECONDS)
        self._process.kill()
        return await asyncio.to_thread(self._process.wait)
