"""A real Triton server on this machine's CPU, for tests, benchmarks and demos.

    with TritonServer(["vlm_transformers"], environment=RANDOM_WEIGHTS) as server:
        TritonEngine(server.grpc_address)

    VLM_CHECKPOINT=… python -m deploy.triton.local_server        # prints its addresses, serves until ^C

`setup.sh` installs what it runs. The server listens on 127.0.0.1 only, on ports that the kernel chose, loads the named
models and no others. It ends with the thread that started it, even when that is killed, and its shared memory has a
prefix of its own by which it is removed.

Two faults show up inside a running server only as a hang (a stub that cannot load) or as garbage tensors (numpy 2 in
the models' environment), so both are looked for before it starts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from deploy.child_process import ServerProcess, SetupError, held_ports, own_shared_memory

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE / "models"
PACKAGE = HERE.parents[1] / "engine_client"  # what the models here import beside their own files
INSTALLED = HERE.parents[1] / ".triton"
RANDOM_WEIGHTS = {"VLM_CHECKPOINT": "random-weights"}  # what `vlm_transformers` takes in the place of a checkpoint
INSTALL_HINT = "run make triton"
LOADER_FAILED = 127  # exit status of a program whose shared libraries are missing
_STOP_SECONDS = 10.0

_DESCRIBE_PYTHON = """
import json, sys, sysconfig, numpy
print(json.dumps(["%d.%d" % sys.version_info[:2], sysconfig.get_config_var("LIBDIR"), numpy.__version__]))
"""

# Loopback is never behind a proxy, whatever the environment says.
_HTTP = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class TritonSetupError(SetupError):
    """Of Triton."""


class TritonServer:
    """Context manager around one `tritonserver` process; usable once.

    Args:
        models: Names of the models to load; all must load, or entering fails.
        repository: Model repository that holds them.
        dist: The unpacked server; default `TRITON_DIST`, else `.triton/dist`.
        python: Interpreter for the models, a virtual environment's will do; default `TRITON_PYTHON`, else
            `.triton/venv/bin/python`.
        environment: Variables to add to this process's for the server and its models.
        options: More of `tritonserver`'s own, such as `--grpc-use-ssl=true`.
        ready_timeout_seconds: How long loading may take.
        shared_memory_bytes: Give the server a `/dev/shm` of its own of this size, as a container has; None shares this
            machine's. Needs the right to make a mount namespace: root, or user namespaces.
    """

    def __init__(
        self,
        models: Sequence[str],
        *,
        repository: Path = REPOSITORY,
        dist: Path | None = None,
        python: Path | None = None,
        environment: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
        ready_timeout_seconds: float = 120.0,
        shared_memory_bytes: int | None = None,
    ) -> None:
        self._models = tuple(models)
        self._repository = repository
        dist = dist or Path(os.environ.get("TRITON_DIST") or INSTALLED / "dist")
        self._root = dist.absolute() / "pytriton" / "tritonserver"
        # Not resolved: the link is what makes it the environment's interpreter and not the system's.
        self._python = Path(python or os.environ.get("TRITON_PYTHON") or INSTALLED / "venv/bin/python").absolute()
        self._environment = dict(environment or {})
        self._options = tuple(options)
        self._ready_timeout_seconds = ready_timeout_seconds
        self._shared_memory_bytes = shared_memory_bytes
        self._process = ServerProcess("tritonserver", TritonSetupError)
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with self._cleanup:  # undoes a start that fails half way
            self._directory = Path(self._cleanup.enter_context(tempfile.TemporaryDirectory(prefix="triton-")))
            backends, self._full_environment = self._prepare()
            ports = self._cleanup.enter_context(held_ports(3))
            self._ports = dict(zip(("http", "grpc", "metrics"), ports, strict=True))
            self._shm_prefix = f"triton_{os.getpid()}_{self._ports['grpc']}_"
            self._cleanup.callback(self._remove_shared_memory)
            size = self._shared_memory_bytes
            self._full_command = [*([] if size is None else own_shared_memory(size)), *self._command(backends)]
            self._cleanup.callback(self._process.kill)
            self._start()
            self._cleanup.callback(self.stop)
            self._cleanup = self._cleanup.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cleanup.close()

    @property
    def grpc_address(self) -> str:
        """host:port of the KServe v2 gRPC service."""
        return f"127.0.0.1:{self._ports['grpc']}"

    @property
    def log_path(self) -> Path:
        """What the server and its models print; gone when the context ends."""
        return self._directory / "triton.log"

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the server's process is there."""
        return self._process.is_running

    def model_pids(self) -> list[int]:
        """Process ids of the Python models, one an instance."""
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def kill(self) -> None:
        """End the server and its models at once, as a crashed machine would."""
        self._process.kill()

    def stop(self) -> None:
        """End it as a kubelet does: SIGTERM, time to finish what it has begun, then SIGKILL."""
        self._process.stop(_STOP_SECONDS)

    def restart(self) -> None:
        """Kill it, if it still runs, and start it anew at the same addresses."""
        self.kill()
        self._remove_shared_memory()
        self._start()

    def metrics(self) -> str:
        """The server's Prometheus text, custom metrics of the models included."""
        with _HTTP.open(f"http://127.0.0.1:{self._ports['metrics']}/metrics", timeout=60) as answer:
            return str(answer.read(), "utf-8")

    def wait(self) -> int:
        """Block until the server ends; its exit status."""
        return self._process.wait()

    def _start(self) -> None:
        self._process.start(self._full_command, self._full_environment, self.log_path)
        self._process.wait_ready(self._is_ready, self._ready_timeout_seconds)

    def _prepare(self) -> tuple[Path, dict[str, str]]:
        """Check the installation, and lay out a backend directory whose stub is the one for our Python."""
        for needed in (self._root / "bin" / "tritonserver", self._python):
            if not needed.exists():
                raise TritonSetupError(f"{needed} is missing: {INSTALL_HINT}")
        # Isolated, as the models will run.
        described = subprocess.run([self._python, "-I", "-c", _DESCRIBE_PYTHON], capture_output=True, text=True)
        if described.returncode:
            raise TritonSetupError(f"{self._python} does not import numpy: {INSTALL_HINT}\n{described.stderr}")
        version, library_directory, numpy_version = json.loads(described.stdout)
        if int(numpy_version.split(".")[0]) >= 2:
            raise TritonSetupError(f"{self._python} has numpy {numpy_version}; the server's Python stub needs numpy<2")

        backend = self._directory / "backends" / "python"
        backend.mkdir(parents=True)
        stub = self._root / "python_backend_stubs" / version / "triton_python_backend_stub"
        if not stub.exists():
            raise TritonSetupError(f"this server has no stub for Python {version}: {stub}")
        shared_files = [path for path in (self._root / "backends" / "python").iterdir() if path.name != stub.name]
        # Models find it there: Triton puts the backend's folder on their path. Their Python is isolated (2.51): it ignores
        # PYTHONPATH.
        for source in (*shared_files, stub, PACKAGE):
            (backend / source.name).symlink_to(source)

        environment = {"OMP_NUM_THREADS": "1"} | dict(os.environ) | self._environment
        environment.pop("PYTHONHOME", None)
        # The stub embeds Python and finds its packages through the first `python` on PATH.
        environment["PATH"] = os.pathsep.join((str(self._python.parent), environment.get("PATH", os.defpath)))
        searched = (library_directory, environment.get("LD_LIBRARY_PATH", ""))
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, searched))
        usage = subprocess.run([stub], env=environment, capture_output=True, text=True)
        if usage.returncode == LOADER_FAILED:
            raise TritonSetupError(f"the Python stub does not load: {INSTALL_HINT}\n{usage.stderr.strip()}")
        return backend.parent, environment

    def _command(self, backends: Path) -> list[str]:
        listen = [
            option
            for protocol, port in self._ports.items()
            for option in (f"--{protocol}-address=127.0.0.1", f"--{protocol}-port={port}")
        ]
        return [
            str(self._root / "bin" / "tritonserver"),
            f"--model-repository={self._repository.absolute()}",
            f"--backend-directory={backends}",
            f"--cache-directory={self._root / 'caches'}",
            "--model-control-mode=explicit",
            *(f"--load-model={model}" for model in self._models),
            "--disable-auto-complete-config",  # config.pbtxt says all; otherwise Triton starts the model twice
            *listen,
            "--allow-gpu-metrics=false",
            "--pinned-memory-pool-byte-size=0",
            "--exit-on-error=true",
            "--exit-timeout-secs=2",
            f"--backend-config=python,shm-region-prefix-name={self._shm_prefix}",
            *self._options,
        ]

    def _is_ready(self) -> bool:
        try:
            # The metrics port opens after the server has said that it is ready, so both are asked.
            for url in (f"{self._ports['http']}/v2/health/ready", f"{self._ports['metrics']}/metrics"):
                _HTTP.open(f"http://127.0.0.1:{url}", timeout=1).close()
        except OSError:  # not listening yet, or answers 400: still loading
            return False
        return True

    def _remove_shared_memory(self) -> None:
        for left in Path("/dev/shm").glob(self._shm_prefix + "*"):
            left.unlink(missing_ok=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m deploy.triton.local_server", description="Serve on the CPU.")
    parser.add_argument("models", nargs="*", default=["vlm_transformers"], help="default: %(default)s")
    parser.add_argument("--repository", type=Path, default=REPOSITORY, help="model repository that holds them")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the context below ends properly
    try:
        with TritonServer(arguments.models, repository=arguments.repository) as server:
            print(f"serving {', '.join(arguments.models)} at {server.grpc_address} (gRPC)", flush=True)
            return server.wait()
    except TritonSetupError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
