"""What `--video-markers auto` means to `serve`: the engine is asked by a process of its own while this one loads its libraries.

Not by this process: gRPC starts threads, and a process with threads cannot fork the workers.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection

from preprocessor.config import EngineSettings, ServeSettings

logger = logging.getLogger(__name__)

_MOST_SECONDS = 15.0  # with the import of gRPC, on a busy machine


def ask_for_video_markers(settings: ServeSettings) -> Callable[[], str]:
    """Start to find out; the result waits, and gives "keep", "replace", or "auto" where no engine declares either."""
    if settings.video_markers != "auto" or not settings.engine.address:
        return lambda: settings.video_markers
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(settings.engine, sending), daemon=True)
    process.start()
    sending.close()

    def wait() -> str:
        try:
            found: str = receiving.recv() if receiving.poll(_MOST_SECONDS) else "auto"
        except EOFError:  # it ended without a result, and has logged why
            found = "auto"
        if found == "auto":
            logger.info("no engine declares its video markers; they are as in the transformers here")
        process.terminate()
        process.join()
        receiving.close()
        return found

    return wait


def _report(settings: EngineSettings, sending: Connection) -> None:
    from preprocessor.service.engine_options import declared_video_markers

    sending.send(asyncio.run(declared_video_markers(settings)))
