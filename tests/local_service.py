"""A service in another process of this machine: its ports, and what it says over HTTP."""

from __future__ import annotations

import asyncio
import re
import urllib.request

from tests.waiting import PATIENCE_SECONDS

SERVING = re.compile(r"on grpc (\S+), http (\S+);")
"""The line of the log that says the ports, once they are open."""

LOOPBACK = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Never behind a proxy, whatever the environment says."""


async def get_text(address: str, path: str) -> str:
    """The body of a GET."""

    def get() -> str:
        with LOOPBACK.open(f"http://{address}{path}", timeout=PATIENCE_SECONDS) as answer:
            return bytes(answer.read()).decode()

    return await asyncio.to_thread(get)
