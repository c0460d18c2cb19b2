"""The event loop that the service and its fronts run on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

logger = logging.getLogger(__name__)


def event_loop_runner() -> Callable[[Coroutine[Any, Any, None]], None]:
    """uvloop's `run`, or asyncio's where uvloop is absent, as on Windows."""
    try:
        import uvloop
    except ImportError:
        logger.warning("uvloop is not installed; serving on asyncio's own event loop, which moves bytes slower")
        return asyncio.run
    return uvloop.run
