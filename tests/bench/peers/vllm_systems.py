"""vLLM's renderer, called in a process and as a server, as far as `make vllm` has installed it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deploy.child_process import SetupError, ending_with_this_process, held_ports
from deploy.vllm.local_server import INSTALLED
from tests.bench.contest import CannotDo, Runner, Sample
from tests.bench.peers.made import Made, read_arrays
from tests.bench.peers.systems import CHAT, HttpSystem, running_server
from tests.bench.peers.workloads import SERVED_NAME, Workload

_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1"}


class InProcess:
    """vLLM's renderer called in a process of its own: `vllm_renderer.py`."""

    name = "vLLM, in process"

    def __init__(self, child: RendererProcess, folder: Path) -> None:
        self._child = child
        self._folder = folder

    def made(self, workload: Workload) -> Made:
        output = self._folder / "made.npz"
        self._child.ask(render=self._body_file(workload), write=output)
        return read_arrays(output)

    def runner(self, workload: Workload, count: int) -> Runner:
        def run() -> Sample:
            took = [self._child.ask(render=self._body_file(workload), write=None) for _ in range(count)]
            wall_ms, cpu_ms = (sum(one[key] for one in took) / count for key in ("wall_ms", "cpu_ms"))
            return Sample(wall_ms, cpu_ms, {})

        return run

    def _body_file(self, workload: Workload) -> Path:
        path = self._folder / "body.json"
        path.write_bytes(workload.chat_body())
        return path


class RendererProcess:
    """`vllm_renderer.py`, as a context manager."""

    def __init__(self, checkpoint: Path, folder: Path, under: Sequence[str]) -> None:
        script = Path(__file__).with_name("vllm_renderer.py")
        self._command = [*under, str(INSTALLED.with_name("python")), str(script), str(checkpoint)]
        self._folder = folder

    def __enter__(self) -> RendererProcess:
        with (self._folder / "renderer.log").open("wb") as log:
            self._process = subprocess.Popen(
                ending_with_this_process(self._command),
                env=os.environ | _ENVIRONMENT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self._answer()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, **asked: Path | None) -> dict[str, Any]:
        """See the script.

        Raises:
            CannotDo: It fails.
        """
        assert self._process.stdin is not None
        print(
            json.dumps({key: path and str(path) for key, path in asked.items()}), file=self._process.stdin, flush=True
        )
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SetupError(f"vLLM's renderer ended:\n{(self._folder / 'renderer.log').read_text()[-5000:]}")
        said: dict[str, Any] = json.loads(line)
        if "failed" in said:
            raise CannotDo(said["failed"])
        return said


@contextmanager
def render_server(checkpoint: Path, folder: Path, under: Sequence[str], child: RendererProcess) -> Iterator[HttpSystem]:
    """`vllm launch render`; what it answers is decoded by the child, after it is timed."""
    with held_ports(1) as (port,):
        command = [str(INSTALLED), "launch", "render", str(checkpoint), "--host", "127.0.0.1", "--port", str(port)]
        options = ["--served-model-name", SERVED_NAME, "--trust-request-mm-kwargs", "--disable-uvicorn-access-log"]
        answer, output = folder / "answer.json", folder / "answer.npz"

        def read(data: bytes) -> Made:
            answer.write_bytes(data)
            child.ask(read=answer, write=output)
            return read_arrays(output)

        with running_server("vllm", [*under, *command, *options], _ENVIRONMENT, port, "/health", folder) as cpu_seconds:
            yield HttpSystem("vLLM, render server", port, f"{CHAT}/render", cpu_seconds, read)
