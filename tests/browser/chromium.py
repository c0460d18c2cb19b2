"""A real Chromium without a window, driven by the DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.waiting import PATIENCE_SECONDS, eventually

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_KEYS = {
    "Tab": 9,
    "Enter": 13,
    " ": 32,
    "End": 35,
    "Home": 36,
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowRight": 39,
    "ArrowDown": 40,
}


def find_chromium() -> str | None:
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


class Tab:
    """One page.

    Attributes:
        complaints: Of the console: errors, exceptions, and what the policy of the page refused.
        requested: Every URL that the page asked for.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._events: dict[str, asyncio.Event] = {}
        self._reader = asyncio.create_task(self._read())
        self.complaints: list[str] = []
        self.requested: list[str] = []

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A method of the protocol; its result."""
        number = len(self._answers) + 1
        self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        answer = await asyncio.wait_for(self._answers[number], PATIENCE_SECONDS)
        assert "error" not in answer, (method, answer["error"])
        return dict(answer["result"])

    async def open(self, page: Path | str) -> None:
        """Load a file."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.call(f"{domain}.enable")
        await self.call("Emulation.setFocusEmulationEnabled", enabled=True)  # as the window that is in front
        async with self.loading():
            await self.call("Page.navigate", url=page if isinstance(page, str) else page.as_uri())

    @asynccontextmanager
    async def loading(self) -> AsyncIterator[None]:
        """Leaves once the page that what is done inside leads to has been loaded."""
        loaded = self._events["Page.loadEventFired"] = asyncio.Event()
        yield
        await asyncio.wait_for(loaded.wait(), PATIENCE_SECONDS)

    async def evaluate(self, expression: str) -> Any:
        """The value of an expression of JavaScript."""
        answer = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def press(self, key: str, count: int = 1) -> None:
        for _ in range(count):
            about = {"key": key, "code": key, "windowsVirtualKeyCode": _KEYS[key]}
            if key in ("Enter", " "):
                about["text"] = "\r" if key == "Enter" else " "
            await self.call("Input.dispatchKeyEvent", type="keyDown", **about)
            await self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    async def prefer(self, scheme: str) -> None:
        """As a reader who prefers this colour scheme, "light" or "dark"."""
        await self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    async def resize(self, width: int, height: int) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    async def screenshot(self) -> bytes:
        """The whole page as a PNG file."""
        size = (await self.call("Page.getLayoutMetrics"))["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        answer = await self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        return base64.b64decode(answer["data"])

    async def close(self) -> None:
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)

    async def _read(self) -> None:
        async for message in self._socket:
            content = message.json()
            if "id" in content:
                self._answers[content["id"]].set_result(content)
                continue
            method, parameters = content["method"], content["params"]
            if method in self._events:
                self._events[method].set()
            if method == "Network.requestWillBeSent":
                self.requested.append(parameters["request"]["url"])
            elif method == "Runtime.exceptionThrown":
                self.complaints.append(str(parameters["exceptionDetails"]))
            elif method == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
                self.complaints.append(str(parameters["entry"]["text"]))
            elif method == "Runtime.consoleAPICalled":
                self.complaints.append(str(parameters["args"]))


@asynccontextmanager
async def browsing(folder: Path) -> AsyncIterator[Tab]:
    """A tab of a browser that keeps its files in this folder.

    The sandbox is off where this process is root, under whom Chromium refuses to use it: only pages made by tests are opened.
    """
    program = find_chromium()
    assert program is not None
    rootless = ["--no-sandbox"] if os.geteuid() == 0 else []
    process = await asyncio.create_subprocess_exec(
        *(program, "--headless=new", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage", *rootless),
        *("--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        ports = folder / "DevToolsActivePort"
        await eventually(lambda: process.returncode is not None or (ports.exists() and "\n" in ports.read_text()))
        port = ports.read_text().split("\n")[0]
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                address = next(one["webSocketDebuggerUrl"] for one in await answer.json() if one["type"] == "page")
            async with session.ws_connect(address, max_msg_size=0) as socket:
                tab = Tab(socket)
                yield tab
                await tab.close()
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
