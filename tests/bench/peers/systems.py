"""The systems that are asked, as far as they are installed here; each answers on one core."""

from __future__ import annotations

import http.client
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

import psutil

from deploy.child_process import ServerProcess, SetupError, held_ports
from preprocessor.models.family import Model
from tests.bench.contest import CannotDo, Runner, Sample
from tests.bench.peers.engine import StandInEngine
from tests.bench.peers.made import Made, read_prompt
from tests.bench.peers.workloads import Workload, made_by_pipeline
from tests.bench.service.watched import WatchedServer, tree_cpu_seconds
from tests.bench.service_path import OPTIONS, ServicePath

SMG = Path(__file__).resolve().parents[3] / ".peers" / "smg" / "bin" / "smg"

_TIMEOUT_SECONDS = 300.0
_START_SECONDS = 300.0
_STOP_SECONDS = 10.0
_PAUSE_SECONDS = 0.02  # until what a request leaves to do is done, so that it is counted as its own
CHAT = "/v1/chat/completions"


class System(Protocol):
    """What prepares prompts.

    Attributes:
        name: Of its column.
    """

    @property
    def name(self) -> str: ...

    def made(self, workload: Workload) -> Made:
        """Ask once.

        Raises:
            CannotDo: It refuses.
        """

    def runner(self, workload: Workload, count: int) -> Runner:
        """Asks `count` times one after another; the sample is of one request."""


class Service:
    """Our service by gRPC, whose answer is compared with the pipeline's by `ServicePath`."""

    name = "ours, service"

    def __init__(self, path: ServicePath, model: Model) -> None:
        self._path = path
        self._model = model

    def made(self, workload: Workload) -> Made:
        self._path.runner(self._model, workload.spec, workload.sent, 1)
        return made_by_pipeline(self._model, workload)

    def runner(self, workload: Workload, count: int) -> Runner:
        return self._path.runner(self._model, workload.spec, workload.sent, count)


class HttpSystem:
    """A server that takes chat completions.

    Args:
        cpu_seconds: Of all its processes so far.
        read: What it made, by its answer.
        body: What it is asked.
    """

    def __init__(
        self,
        name: str,
        port: int,
        path: str,
        cpu_seconds: Callable[[], float],
        read: Callable[[bytes], Made],
        body: Callable[[Workload], bytes] = Workload.chat_body,
    ) -> None:
        self.name = name
        self._port = port
        self._path = path
        self._cpu_seconds = cpu_seconds
        self._read = read
        self._body = body

    def made(self, workload: Workload) -> Made:
        return self._read(self._ask(self._body(workload)))

    def runner(self, workload: Workload, count: int) -> Runner:
        def run() -> Sample:
            used_seconds, wall_ms = self._cpu_seconds(), 0.0
            for _ in range(count):
                body = self._body(workload)
                began = time.perf_counter()
                self._ask(body)
                wall_ms += (time.perf_counter() - began) * 1e3
                time.sleep(_PAUSE_SECONDS)
            return Sample(wall_ms / count, (self._cpu_seconds() - used_seconds) * 1e3 / count, {})

        return run

    def _ask(self, body: bytes) -> bytes:
        return post(self._port, self._path, body)


@contextmanager
def service_before(
    engine: StandInEngine, checkpoint: Path, under: Sequence[str], name: str = "ours → engine"
) -> Iterator[HttpSystem]:
    """Our service in front of the engine, asked as OpenAI's clients do."""
    options = ("--model", str(checkpoint), "--engine", f"vllm://{engine.address}")
    with (
        held_ports(1) as (port,),
        WatchedServer(*OPTIONS, *options, "--openai-address", f"127.0.0.1:{port}", under=under) as server,
    ):
        yield HttpSystem(name, port, CHAT, server.cpu_seconds, partial(_newest, engine), _unnamed)


@contextmanager
def smg_before(
    engine: StandInEngine,
    checkpoint: Path,
    folder: Path,
    under: Sequence[str],
    name: str = "SMG → engine",
    transport: str = "inline",
) -> Iterator[HttpSystem]:
    """SMG in front of the engine."""
    options = ["--worker-urls", f"grpc://{engine.address}", "--model-path", str(checkpoint), "--log-level", "warn"]
    options += ["--mm-per-request-image-limit", "32", "--multimodal-tensor-transport", transport]
    with held_ports(2) as (port, metrics_port):
        ports = ["--port", str(port), "--prometheus-port", str(metrics_port)]
        command = [*under, str(SMG), "launch", "--host", "127.0.0.1", *ports, *options]
        with running_server(f"smg-{transport}", command, {}, port, "/readiness", folder) as cpu_seconds:
            body = partial(Workload.chat_body, fps_beside_url=True)
            yield HttpSystem(name, port, CHAT, cpu_seconds, partial(_newest, engine), body)


def on_core(core: int) -> tuple[str, ...]:
    """A command that keeps the one that follows it to one core."""
    taskset = shutil.which("taskset")
    if taskset is None:
        raise SetupError("taskset is missing: apt-get install util-linux")
    return (taskset, "--cpu-list", str(core))


def post(port: int, path: str, body: bytes) -> bytes:
    """The answer's bytes.

    Raises:
        CannotDo: It is an error.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_SECONDS)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        data = answer.read()
    finally:
        connection.close()
    if answer.status != http.HTTPStatus.OK:
        raise CannotDo(f"{answer.status}: {data[:500].decode(errors='replace')}")
    return data


def _unnamed(workload: Workload) -> bytes:
    """The model that is served, whose name is a folder here."""
    return workload.chat_body(model="")


def _newest(engine: StandInEngine, _: bytes) -> Made:
    assert engine.last is not None
    return read_prompt(engine.last)


@contextmanager
def running_server(
    name: str, command: Sequence[str], environment: Mapping[str, str], port: int, ready_path: str, folder: Path
) -> Iterator[Callable[[], float]]:
    """A server until the context ends; the CPU seconds of all its processes so far."""
    process = ServerProcess(name, SetupError)

    def is_ready() -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", ready_path)
            return connection.getresponse().status == http.HTTPStatus.OK
        except OSError:
            return False
        finally:
            connection.close()

    process.start(command, os.environ | environment, folder / f"{name}.log")
    try:
        process.wait_ready(is_ready, _START_SECONDS)
        yield partial(tree_cpu_seconds, psutil.Process(process.pid))
    finally:
        process.stop(_STOP_SECONDS)
