"""Replicas: `preprocessor serve` processes that tests may stop, kill and restart."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import psutil
from prometheus_client.parser import text_string_to_metric_families

from deploy.child_process import held_ports
from tests.local_service import SERVING, get_text
from tests.waiting import eventually
from tests.warm_service import WarmProcess

_START_SECONDS = 100.0  # three at once, on a machine that does other things too


class Replica:
    """One process. It listens on the same ports when it is started again."""

    def __init__(self, log: Path, ports: Sequence[int], *options: str) -> None:
        self.address, self.http_address = (f"127.0.0.1:{port}" for port in ports)
        self._log = log
        self._options = options
        self._process: WarmProcess | None = None

    def launch(self) -> None:
        """Start the process; `listening` waits for it."""
        ports = ("--address", self.address, "--http-address", self.http_address)
        with self._log.open("wb") as log:
            arguments = ("serve", "--workers", "1", *ports, *self._options)
            self._process = WarmProcess(arguments, os.environ, log.fileno())

    async def listening(self) -> None:
        process = self._running()
        await eventually(lambda: process.poll() is not None or SERVING.search(self.log) is not None, _START_SECONDS)
        assert SERVING.search(self.log) is not None, self.log

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def terminate(self) -> None:
        """As a kubelet begins: SIGTERM."""
        self._running().terminate()

    def kill(self) -> None:
        """As a node that is gone, or memory that has run out: SIGKILL."""
        process = self._running()
        process.kill()
        process.wait()

    async def exit_status(self) -> int:
        process = self._running()
        await eventually(lambda: process.poll() is not None)
        return process.wait()

    @contextlib.asynccontextmanager
    async def workers_stopped(self) -> AsyncIterator[None]:
        """Its worker processes, held by SIGSTOP: what they have begun stays begun."""
        service = psutil.Process(self._running().pid)
        workers = [process for fork_server in service.children() for process in fork_server.children()]
        assert workers, "the replica has no worker processes"
        for worker in workers:
            worker.suspend()
        try:
            yield
        finally:
            for worker in workers:
                with contextlib.suppress(psutil.NoSuchProcess):
                    worker.resume()

    async def metric(self, name: str, **labels: str) -> float:
        """Sum of the samples with these labels."""
        families = text_string_to_metric_families(await get_text(self.http_address, "/metrics"))
        samples = [sample for family in families for sample in family.samples if sample.name == name]
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()

    def _running(self) -> WarmProcess:
        assert self._process is not None, "the replica was never started"
        return self._process


@contextlib.asynccontextmanager
async def running_replicas(directory: Path, count: int, *options: str) -> AsyncIterator[list[Replica]]:
    """So many replicas, started side by side."""
    with held_ports(2 * count) as ports, contextlib.ExitStack() as stack:
        replicas = []
        for index in range(count):
            replica = Replica(directory / f"replica-{index}.log", ports[2 * index : 2 * index + 2], *options)
            stack.callback(replica.close)
            replica.launch()
            replicas.append(replica)
        for replica in replicas:
            await replica.listening()
        yield replicas
