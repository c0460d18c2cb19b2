"""Real vLLM servers as processes: with its gRPC service, with one or eight API servers over HTTP, and as a model in Triton."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import grpc
import psutil
from smg_grpc_proto.generated import vllm_engine_pb2 as pb
from smg_grpc_proto.generated import vllm_engine_pb2_grpc as pb_grpc

from deploy.child_process import SetupError
from deploy.triton.local_server import TritonServer
from deploy.vllm.triton_python import make_environment
from tests.bench.cpus import on_server_cpus
from tests.bench.service.watched import tree_cpu_seconds
from tests.engine.vllm_triton_server import MODEL, write_model
from tests.local_service import LOOPBACK

GRPC, HTTP_1, HTTP_8, TRITON = "grpc", "http, 1 API server", "http, 8 API servers", "in Triton"
SERVED_NAME = "bench"
_POLL_SECONDS = 0.5
_LOG_TAIL_BYTES = 20_000


@dataclass(frozen=True, slots=True)
class VllmSettings:
    """What all servers share.

    Attributes:
        python: The interpreter of vLLM's environment.
        checkpoint: The model's folder.
        options: Of `vllm serve`, beside those of the kind.
        environment: Variables beside this process's own.
        many_api_servers: How many `HTTP_8` really has: on a small machine, fewer.
        start_seconds: A server that does not answer after so long is given up.
        gpu_of: Of each kind: the number of the GPU that it may use; all of them where it is not named.
        triton_python: For `TRITON`: an interpreter with vLLM and numpy below 2.
        logs: Where each server's output goes.
    """

    python: Path
    checkpoint: Path
    logs: Path
    options: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    many_api_servers: int = 8
    start_seconds: float = 200.0
    gpu_of: Mapping[str, int] = field(default_factory=dict)
    triton_python: Path | None = None

    def environment_of(self, kind: str) -> dict[str, str]:
        gpu = {"CUDA_VISIBLE_DEVICES": str(self.gpu_of[kind])} if kind in self.gpu_of else {}
        return {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", **gpu, **self.environment}

    def options_of(self, kind: str) -> tuple[str, ...]:
        if kind == GRPC:
            return ("--grpc", *self.options)
        count = self.many_api_servers if kind == HTTP_8 else 1
        # A question says how many frames it wants, which vLLM believes only so.
        return ("--api-server-count", str(count), "--trust-request-mm-kwargs", *self.options)


class ServerNotReady(RuntimeError):
    """The server ended, or did not answer in time; the message has the end of its log."""


class VllmServer:
    """One `vllm serve`, as a context manager that ends its whole process group.

    Attributes:
        address: host:port.
        process: The first process; the engine's core and the API servers are below it.
        start_seconds: How long it took until it answered.
    """

    def __init__(self, kind: str, settings: VllmSettings) -> None:
        self.kind = kind
        self._settings = settings
        self.log = settings.logs / f"vllm-{kind.replace(', ', '-').replace(' ', '-')}.log"
        self.start_seconds = 0.0

    def __enter__(self) -> Self:
        """Start it.

        Raises:
            ServerNotReady: see there.
        """
        settings, began = self._settings, time.monotonic()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            host, port = free.getsockname()
        self.address = f"{host}:{port}"
        command = [str(settings.python), "-m", "vllm.entrypoints.cli.main", "serve", str(settings.checkpoint)]
        command += ["--host", host, "--port", str(port), "--served-model-name", SERVED_NAME]
        with self.log.open("wb") as log, on_server_cpus():
            self._popen = subprocess.Popen(
                [*command, *settings.options_of(self.kind)],
                env={**os.environ, **settings.environment_of(self.kind)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.process = psutil.Process(self._popen.pid)
        is_healthy = _grpc_is_healthy if self.kind == GRPC else _http_is_healthy
        try:
            self._wait_until(is_healthy, began + settings.start_seconds)
        except BaseException:
            self.stop()
            raise
        self.start_seconds = time.monotonic() - began
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait()

    def cpu_seconds(self) -> float:
        """Of all its processes."""
        return tree_cpu_seconds(self.process)

    def core(self) -> psutil.Process | None:
        """The engine's core, which names itself so."""
        for process in self.process.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "EngineCore" in " ".join(process.cmdline()):
                    return process
        return None

    def log_tail(self) -> str:
        return self.log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace")

    def _wait_until(self, is_healthy: Callable[[str], bool], deadline: float) -> None:
        while time.monotonic() < deadline and self._popen.poll() is None:
            if is_healthy(self.address):
                return
            time.sleep(_POLL_SECONDS)
        how = "was not ready in time" if self._popen.poll() is None else f"ended with {self._popen.returncode}"
        raise ServerNotReady(f"vLLM ({self.kind}) {how}:\n{self.log_tail()}")


class VllmInTriton:
    """A Triton with `vlm_vllm`, as a context manager.

    Attributes:
        address: host:port of its gRPC service.
        start_seconds: How long it took until it answered.
    """

    def __init__(self, settings: VllmSettings) -> None:
        self._settings = settings
        self.start_seconds = 0.0

    def __enter__(self) -> Self:
        """Start it.

        Raises:
            SetupError: it does not start.
        """
        settings, began = self._settings, time.monotonic()
        self._folder = tempfile.TemporaryDirectory(prefix="vllm-in-triton-")
        folder = Path(self._folder.name)
        write_model(folder / "models", {"engine_arguments": json.dumps(as_arguments(settings.options))})
        self._server = TritonServer(
            [MODEL],
            repository=folder / "models",
            python=settings.triton_python or make_environment(folder / "python"),
            environment={"VLM_CHECKPOINT": str(settings.checkpoint), **settings.environment_of(TRITON)},
            ready_timeout_seconds=settings.start_seconds,
        )
        try:
            with on_server_cpus():
                self._server.__enter__()
        except BaseException:
            self._folder.cleanup()
            raise
        self.address = self._server.grpc_address
        self.start_seconds = time.monotonic() - began
        return self

    def stop(self) -> None:
        shutil.copy(self._server.log_path, self._settings.logs / "vllm-in-triton.log")
        self._server.kill()
        self._server.__exit__(None, None, None)
        self._folder.cleanup()

    def cpu_seconds(self) -> float:
        """Of all its processes."""
        return tree_cpu_seconds(psutil.Process(self._server.pid))


Engine = VllmServer | VllmInTriton


@contextlib.contextmanager
def started(kinds: Iterable[str], settings: VllmSettings) -> Iterator[tuple[Mapping[str, Engine], Mapping[str, str]]]:
    """Servers of these kinds, started side by side.

    Yields:
        Each kind that started → its server, and what went wrong with the others, by kind.
    """
    running: dict[str, Engine] = {}
    failures: dict[str, str] = {}
    # A Triton ends with the thread that has started it, so the threads stay until the servers have been stopped.
    with ThreadPoolExecutor() as starting, contextlib.ExitStack() as stack:
        futures: dict[str, Future[Engine]] = {kind: starting.submit(_start, kind, settings) for kind in kinds}
        for kind, future in futures.items():
            try:
                running[kind] = future.result()
            except (ServerNotReady, SetupError, OSError) as error:
                failures[kind] = str(error)
            else:
                stack.callback(running[kind].stop)
        yield running, failures


def _start(kind: str, settings: VllmSettings) -> Engine:
    return (VllmInTriton(settings) if kind == TRITON else VllmServer(kind, settings)).__enter__()


def as_arguments(options: Iterable[str]) -> dict[str, Any]:
    """`--max-model-len 32768 --enforce-eager` as `vllm.AsyncEngineArgs` names them: sizes such as 45G are worked out."""
    arguments: dict[str, Any] = {}
    name = ""
    for word in options:
        if word.startswith("--"):
            name = word.removeprefix("--").replace("-", "_")
            arguments[name] = True
        else:
            arguments[name] = _as_value(word)
    return arguments


def _as_value(word: str) -> Any:
    scaled = word.removesuffix("G")
    try:
        return int(scaled) * (10**9 if scaled != word else 1)
    except ValueError:
        try:
            return float(word)
        except ValueError:
            return word


def _http_is_healthy(address: str) -> bool:
    try:
        with LOOPBACK.open(f"http://{address}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _grpc_is_healthy(address: str) -> bool:
    with grpc.insecure_channel(address) as channel, contextlib.suppress(grpc.RpcError):
        return bool(pb_grpc.VllmEngineStub(channel).HealthCheck(pb.HealthCheckRequest(), timeout=5).healthy)
    return False
