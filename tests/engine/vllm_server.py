"""One real vLLM on this machine's CPU for all tests of a run, since a start takes minutes; set up by `make vllm`."""

from __future__ import annotations

import contextlib
from pathlib import Path

from deploy.vllm.local_server import CONTEXT_TOKENS, INSTALLED, VllmServer

__all__ = ["CONTEXT_TOKENS", "FLOAT32", "INSTALLED", "NORMALIZED_BEFORE", "SharedVllm"]

FLOAT32 = ("--dtype", "float32")
NORMALIZED_BEFORE = ("--no-mm-device-do-normalize",)
"""It then takes floats instead of uint8."""


class SharedVllm:
    """Context manager around a server that is started when it is first needed, and anew when a test needs another.

    Tests may break it: the next one gets a whole one.
    """

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._server: VllmServer | None = None
        self._serves: tuple[Path, tuple[str, ...]] | None = None
        self._shared_memory_bytes: int | None = None

    def __enter__(self) -> SharedVllm:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def serving(self, checkpoint: Path, *options: str, shared_memory_bytes: int | None = None) -> VllmServer:
        """The server, with that checkpoint and `FLOAT32` beside these options, in working order.

        Args:
            shared_memory_bytes: As of `VllmServer`.
        """
        wanted = (checkpoint, (*FLOAT32, *options))
        if self._server is None or shared_memory_bytes != self._shared_memory_bytes:
            self._stack.close()
            self._server = self._stack.enter_context(VllmServer(*wanted, shared_memory_bytes=shared_memory_bytes))
            self._shared_memory_bytes = shared_memory_bytes
        elif self._serves != wanted or not self._server.is_healthy():
            self._server.restart(*wanted)
        self._serves = wanted
        return self._server
