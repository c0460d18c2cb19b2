"""`preprocessor serve`: run the service until it is told to stop."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import logging
import os
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from preprocessor.config import AccessSettings, EngineSettings, Limits, ServeSettings, WireSettings
from preprocessor.machine import SINGLE_THREADED

logger = logging.getLogger(__name__)


def run(options: argparse.Namespace) -> int:
    logging.basicConfig(
        level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    settings = settings_from(options)
    # From here on seconds of torch, after a wrong option has been refused at once. What sets up its threads when it is
    # imported must find one wanted: work runs in processes, and a process with threads cannot be forked.
    os.environ.update(SINGLE_THREADED)
    from preprocessor.models.registry import load_model
    from preprocessor.workers.process import Zygote
    from preprocessor.workers.zygote import fork_zygote

    model = load_model(settings.model)
    zygote = None if settings.is_in_process else Zygote(model, fork_zygote(model))
    from preprocessor.service.server import serve  # gRPC comes after the fork: nothing of it is in the workers

    run_loop = event_loop_runner()
    run_loop(serve(settings, model, zygote))
    return 0


def event_loop_runner() -> Callable[[Coroutine[Any, Any, None]], None]:
    """uvloop's `run`, or asyncio's where uvloop is absent, as on Windows."""
    try:
        import uvloop
    except ImportError:
        logger.warning("uvloop is not installed; serving on asyncio's own event loop, which moves bytes slower")
        return asyncio.run
    return uvloop.run


def settings_from(options: argparse.Namespace) -> ServeSettings:
    """The options as settings.

    Raises:
        SettingError: A value is not accepted.
    """
    given = vars(options)

    def of(settings: type, prefix: str = "") -> dict[str, Any]:
        return {field.name: given[prefix + field.name] for field in dataclasses.fields(settings) if field.metadata}

    return ServeSettings(
        **of(ServeSettings),
        wire=WireSettings(**of(WireSettings)),
        access=AccessSettings(**of(AccessSettings)),
        engine=EngineSettings(**of(EngineSettings, "engine-")),
        limits=Limits(**of(Limits)),
    )
