"""A real vLLM with its gRPC service on this machine's CPU, for tests and demos.

    with VllmServer(checkpoint) as server:
        VllmEngine(server.address)

    python -m deploy.vllm.local_server [CHECKPOINT] [OPTIONS OF vllm serve]     # prints its address, serves until ^C


`setup.sh` installs what it runs. The server listens on 127.0.0.1 only, on a port that the kernel chose. It ends with the
thread that started it, even when that is killed, and what it leaves in `/dev/shm` is removed. A start takes one to three
minutes. Without a checkpoint it serves the one of `tiny_checkpoint`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
from smg_grpc_proto.generated import vllm_engine_pb2 as pb
from smg_grpc_proto.generated import vllm_engine_pb2_grpc as pb_grpc

from deploy.child_process import ServerProcess, SetupError, held_ports, own_shared_memory

INSTALLED = Path(__file__).resolve().parents[2] / ".vllm" / "venv" / "bin" / "vllm"
INSTALL_HINT = "run make vllm"
CONTEXT_TOKENS = 8192

_KV_CACHE_GIB = "1"
_HEALTH_TIMEOUT_SECONDS = 5.0
_STOP_SECONDS = 20.0
_SEGMENT = re.compile(r"/dev/shm/(psm_\w+)")  # Python's multiprocessing.shared_memory


class VllmSetupError(SetupError):
    """Of vLLM."""


class VllmServer:
    """Context manager around one `vllm serve --grpc`; usable once.

    Args:
        checkpoint: A model that `vllm serve` takes.
        options: More of its own, such as `--dtype`, `float32`.
        ready_timeout_seconds: How long a start may take.
        shared_memory_bytes: As of `TritonServer`.
    """

    def __init__(
        self,
        checkpoint: Path | str,
        options: Sequence[str] = (),
        *,
        ready_timeout_seconds: float = 600.0,
        shared_memory_bytes: int | None = None,
    ) -> None:
        self._checkpoint = checkpoint
        self._options = tuple(options)
        self._ready_timeout_seconds = ready_timeout_seconds
        self._shared_memory_bytes = shared_memory_bytes
        self._process = ServerProcess("vLLM", VllmSetupError)
        self._segments: set[Path] = set()
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> Self:
        if not INSTALLED.exists():
            raise VllmSetupError(f"{INSTALLED} is missing: {INSTALL_HINT}")
        with self._cleanup:  # undoes a start that fails half way
            self._directory = Path(self._cleanup.enter_context(tempfile.TemporaryDirectory(prefix="vllm-")))
            (self._port,) = self._cleanup.enter_context(held_ports(1))
            self._cleanup.callback(self.kill)
            self._start()
            self._cleanup = self._cleanup.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cleanup.close()

    @property
    def address(self) -> str:
        """host:port of its gRPC service."""
        return f"127.0.0.1:{self._port}"

    @property
    def log_path(self) -> Path:
        """What it prints, of all its starts; gone when the context ends."""
        return self._directory / "vllm.log"

    @property
    def pid(self) -> int:
        """Of the process that listens."""
        return self._process.pid

    def core_pids(self) -> list[int]:
        """Of the processes that compute: vLLM runs its engine's core beside the one that listens."""
        return [pid for pid in self._process.group_pids() if b"EngineCore" in _command_line(pid)]

    def is_healthy(self) -> bool:
        """Whether it answers, and says that its core lives."""
        with grpc.insecure_channel(self.address) as channel, contextlib.suppress(grpc.RpcError):
            health = pb_grpc.VllmEngineStub(channel).HealthCheck(
                pb.HealthCheckRequest(), timeout=_HEALTH_TIMEOUT_SECONDS
            )
            return bool(health.healthy)
        return False

    def kill(self) -> None:
        """End all of its processes at once, as a crashed machine would."""
        self._note_segments()
        self._process.kill()
        self._remove_segments()

    def stop(self) -> None:
        """End it as a kubelet does: SIGTERM, time to finish what it has begun, then SIGKILL."""
        self._note_segments()
        self._process.stop(_STOP_SECONDS)
        self._remove_segments()

    def restart(self, checkpoint: Path | str | None = None, options: Sequence[str] | None = None) -> None:
        """Kill it, if it still runs, and start it anew at the same address.

        Args:
            checkpoint: None is the same as before.
            options: None are the same as before.
        """
        self.kill()
        self._checkpoint = checkpoint or self._checkpoint
        self._options = self._options if options is None else tuple(options)
        self._start()

    def wait(self) -> int:
        """Block until it ends; its exit status."""
        return self._process.wait()

    def _start(self) -> None:
        # gRPC sets SO_REUSEPORT: two servers of one port both start, and connections go to either.
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", self._port)) == 0:
                raise VllmSetupError(f"something listens on port {self._port} already")
        command = [str(INSTALLED), "serve", str(self._checkpoint), "--grpc", "--host", "127.0.0.1"]
        command += ["--port", str(self._port), "--max-model-len", str(CONTEXT_TOKENS), "--enforce-eager"]
        environment = {
            "VLLM_CPU_KVCACHE_SPACE": _KV_CACHE_GIB,
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            # All servers of a machine would compute on its first core; and threads that wait for each other need idle cores.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": "1",
            "SMG_VLLM_SERVICER_WARMUP": "off",  # half a minute of prompts that a GPU's kernels need
            **os.environ,
            "TMPDIR": str(self._directory),  # for what its processes leave when they are killed
        }
        size = self._shared_memory_bytes
        under = [] if size is None else own_shared_memory(size)
        self._process.start([*under, *command, *self._options], environment, self.log_path)
        self._process.wait_ready(self.is_healthy, self._ready_timeout_seconds)
        self._note_segments()  # a core that dies later leaves them

    def _note_segments(self) -> None:
        """Find the shared memory of its processes while they live; killed, they leave it in this machine's `/dev/shm`."""
        if self._shared_memory_bytes is not None:
            return
        for pid in self._process.group_pids():
            with contextlib.suppress(OSError):
                maps = Path(f"/proc/{pid}/maps").read_text()
                self._segments |= {Path("/dev/shm") / name for name in _SEGMENT.findall(maps)}

    def _remove_segments(self) -> None:
        for segment in self._segments:
            segment.unlink(missing_ok=True)
        self._segments.clear()


def _command_line(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m deploy.vllm.local_server", description="Serve on the CPU.")
    parser.add_argument("checkpoint", nargs="?", help="folder of a model; default: a tiny Qwen3-VL of random weights")
    arguments, options = parser.parse_known_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the contexts below end properly
    try:
        with contextlib.ExitStack() as stack:
            checkpoint = arguments.checkpoint
            if checkpoint is None:
                from deploy.vllm.tiny_checkpoint import write_folder  # it imports torch

                checkpoint = stack.enter_context(tempfile.TemporaryDirectory(prefix="vllm-checkpoint-"))
                write_folder(Path(checkpoint))
            server = stack.enter_context(VllmServer(checkpoint, options))
            print(f"serving {checkpoint} at {server.address} (gRPC)", flush=True)
            return server.wait()
    except VllmSetupError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
