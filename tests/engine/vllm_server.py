"""A real vLLM on this machine's CPU, set up by `make vllm`, with a tiny random Qwen3-VL."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
from smg_grpc_proto.generated import vllm_engine_pb2 as pb
from smg_grpc_proto.generated import vllm_engine_pb2_grpc as pb_grpc

VLLM = Path(__file__).parents[2] / ".vllm/venv/bin/vllm"
CONTEXT_TOKENS = 8192
_START_SECONDS = 600.0


@contextlib.contextmanager
def serving_vllm(checkpoint: Path, *options: str) -> Iterator[str]:
    """Start a server, wait until it answers, and yield its address.

    Raises:
        RuntimeError: It ended, or was not ready in time; the end of its log tells why.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(VLLM), "serve", str(checkpoint), "--grpc", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--max-model-len", str(CONTEXT_TOKENS), "--enforce-eager", *options]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with tempfile.NamedTemporaryFile("r", suffix=".log", errors="replace") as log:
        with open(log.name, "w") as out:  # noqa: PTH123
            process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)
        try:
            address = f"127.0.0.1:{port}"
            _wait_until_healthy(address, process, log.name)
            yield address
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_until_healthy(address: str, process: subprocess.Popen[bytes], log: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    with grpc.insecure_channel(address) as channel:
        stub = pb_grpc.VllmEngineStub(channel)
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(grpc.RpcError):
                if stub.HealthCheck(pb.HealthCheckRequest(), timeout=5, wait_for_ready=True).healthy:
                    return
    lines = Path(log).read_text(errors="replace").splitlines()[-30:]
    raise RuntimeError("vLLM did not get ready:\n" + "\n".join(lines))
