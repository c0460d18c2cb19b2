"""Real vLLM servers as processes: with its gRPC service, and with one or eight API servers over HTTP."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import grpc
import psutil
from smg_grpc_proto.generated import vllm_engine_pb2 as pb
from smg_grpc_proto.generated import vllm_engine_pb2_grpc as pb_grpc

from tests.bench.service.watched import tree_cpu_seconds
from tests.local_service import LOOPBACK

GRPC, HTTP_1, HTTP_8 = "grpc", "http, 1 API server", "http, 8 API servers"
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
        logs: Where each server's output goes.
    """

    python: Path
    checkpoint: Path
    logs: Path
    options: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    many_api_servers: int = 8
    start_seconds: float = 200.0

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
        with self.log.open("wb") as log:
            self._popen = subprocess.Popen(
                [*command, *settings.options_of(self.kind)],
                env={**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", **settings.environment},
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


@contextlib.contextmanager
def started(
    kinds: Iterable[str], settings: VllmSettings
) -> Iterator[tuple[Mapping[str, VllmServer], Mapping[str, str]]]:
    """Servers of these kinds, started side by side.

    Yields:
        Each kind that started → its server, and what went wrong with the others, by kind.
    """
    running: dict[str, VllmServer] = {}
    failures: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        with ThreadPoolExecutor() as starting:
            futures: dict[str, Future[VllmServer]] = {
                kind: starting.submit(VllmServer(kind, settings).__enter__) for kind in kinds
            }
        for kind, future in futures.items():
            try:
                running[kind] = future.result()
            except (ServerNotReady, OSError) as error:
                failures[kind] = str(error)
            else:
                stack.callback(running[kind].stop)
        yield running, failures


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
