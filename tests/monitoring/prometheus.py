"""A real Prometheus that scrapes one service, and its answers."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deploy.child_process import held_ports
from tests.waiting import PATIENCE_SECONDS

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "deploy/prometheus/alerts.yaml"
ALERT_TESTS = ROOT / "deploy/prometheus/alerts_test.yaml"
DASHBOARD = ROOT / "deploy/grafana/vlm-preprocessor.json"
METRIC_TABLE = ROOT / "deploy/prometheus/README.md"

_STOP_SECONDS = 10.0
_PAUSE_SECONDS = 0.05


def program(name: str) -> Path:
    """The path of `prometheus` or `promtool`; skips the test where `make prometheus` has not put it there."""
    path = ROOT / ".prometheus" / name
    if not path.exists():
        pytest.skip(f"there is no {name}: `make prometheus` unpacks it, from Debian's packages")
    return path


@dataclass(frozen=True, slots=True)
class Prometheus:
    """Asks a running server."""

    address: str

    async def query(self, expression: str) -> Sequence[Mapping[str, Any]]:
        """The series of an instant query."""
        answer = await self.get("query", query=expression)
        result: Sequence[Mapping[str, Any]] = answer["result"]
        return result

    async def get(self, path: str, **parameters: str) -> Any:
        """The data of a call of its HTTP API; an error of its is an AssertionError that quotes it."""

        def fetch() -> Any:
            url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
            try:
                with urllib.request.urlopen(url, timeout=PATIENCE_SECONDS) as answer:
                    return json.load(answer)["data"]
            except urllib.error.HTTPError as error:
                raise AssertionError(f"{parameters}: {error.read().decode()}") from error

        return await asyncio.to_thread(fetch)

    async def until(self, expression: str) -> Sequence[Mapping[str, Any]]:
        """The series of a query as soon as it has any, as a comparison does when it holds."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (result := await self.query(expression)):
            assert time.monotonic() < deadline, f"not within {PATIENCE_SECONDS} s: {expression}"
            await asyncio.sleep(_PAUSE_SECONDS)
        return result


@asynccontextmanager
async def scraping(folder: Path, target: str) -> AsyncIterator[Prometheus]:
    """A server that scrapes `target` twice a second and evaluates the alerts.

    Args:
        folder: Gets its configuration, its data and its log.
    """
    binary = program("prometheus")
    configuration = {
        "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"},
        "rule_files": [str(ALERTS)],
        "scrape_configs": [
            {
                "job_name": "preprocessor",
                "static_configs": [{"targets": [target], "labels": {"namespace": "vlm", "pod": "preprocessor-0"}}],
            }
        ],
    }
    (folder / "prometheus.yaml").write_text(json.dumps(configuration))  # JSON is YAML
    with held_ports(1) as (port,), (folder / "log").open("w") as log:
        address = f"127.0.0.1:{port}"
        process = await asyncio.create_subprocess_exec(
            *(
                str(binary),
                f"--config.file={folder / 'prometheus.yaml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={address}",
                "--enable-feature=exemplar-storage",
            ),
            stdout=log,
            stderr=log,
        )
        try:
            server = Prometheus(address)
            await _until_it_answers(server, process, folder / "log")
            yield server
        finally:
            process.terminate()
            try:
                async with asyncio.timeout(_STOP_SECONDS):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


async def _until_it_answers(server: Prometheus, process: asyncio.subprocess.Process, log: Path) -> None:
    """Return when it has read its own files and takes queries."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        assert process.returncode is None and time.monotonic() < deadline, f"no Prometheus: {_text(log)}"
        try:
            await server.query("vector(1)")
            return
        except (OSError, AssertionError):
            await asyncio.sleep(_PAUSE_SECONDS)


def _text(log: Path) -> str:
    return log.read_text()
